"""Which keys a query sees.

Shapes: Q queries, S keys.
"""

from functools import lru_cache

import torch
from torch import Tensor


def causal_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device | None = None) -> Tensor:
    """bool[Q, S], True = attended: the queries are the last Q of S positions, each sees itself and the past, and no
    further back than `window` positions, itself included."""
    offset = num_keys - num_queries
    ages_QS = (torch.arange(num_queries, device=device)[:, None] + offset) - torch.arange(num_keys, device=device)
    return (ages_QS >= 0) if window is None else (ages_QS >= 0) & (ages_QS < window)


cached_causal_mask = lru_cache(maxsize=64)(causal_mask)
