"""Random streams that depend on nothing but (seed, what they are for): never on order, batch or process."""

import hashlib
import random


def derive_seed(seed: int, *keys: str | int) -> int:
    """A 63-bit seed from a run's seed and the keys that name one decision, such as (record id, "temperature").

    Equal arguments give equal seeds on every machine and Python version; distinct keys give independent ones.
    """
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (seed, *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(seed: int, *keys: str | int) -> random.Random:
    """A generator of random numbers for the decision named by `keys`."""
    return random.Random(derive_seed(seed, *keys))
