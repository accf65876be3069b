"""How a critic is spoken to over HTTP: what both sides know.

    GET  /critic   -> Hello                                                  JSON
    POST /start    Stand -> Hello                                            JSON
    POST /infer    tokens, sequence_lengths, next -> values, rewards         safetensors, both ways
    POST /train    tokens, returns, prev_values, mask -> numbers             safetensors in, JSON out
    POST /save     Stand -> {"path": ...}                                    JSON

Every request says after how many optimiser steps of the critic it is meant (`num_updates`), so none is done twice, and
none by a critic that has lost what it had learnt. Shapes are those of `seams.Critic`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steersman.errors import ConfigError, DataError

PROTOCOL = 2
BINARY = {"content-type": "application/octet-stream"}

DTYPES = {
    "tokens": torch.int64,
    "sequence_lengths": torch.int64,
    "next": torch.bool,
    "returns": torch.float32,
    "prev_values": torch.float32,
    "mask": torch.bool,
    "values": torch.float32,
    "rewards": torch.float32,
    "num_updates": torch.int64,
}


class Hello(BaseModel):
    """What a critic says of itself.

    Attributes:
        protocol: of this module.
        steersman: version of the package.
        model: folder of the reward model.
        vocabulary: fingerprint of its tokens: an actor with others would be misread.
        window: longest sequence that it takes.
        gives_rewards: whether it was trained to; a critic without a reward model's head only values.
        num_updates: optimiser steps done.
        steps: those at which it can stand.
    """

    model_config = ConfigDict(extra="ignore")

    protocol: int
    steersman: str
    model: str
    vocabulary: str
    window: int
    gives_rewards: bool
    num_updates: int
    steps: list[int]

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `ConfigError` unless an actor with this tokenizer, and this version, can work with it."""
        critic = f"the critic (reward model {self.model}, steersman {self.steersman})"
        if self.protocol != PROTOCOL:
            raise ConfigError(
                f"{critic} speaks version {self.protocol} of the protocol, not {PROTOCOL}; install the same version of "
                "steersman on both sides"
            )
        if self.vocabulary != vocabulary_fingerprint(tokenizer):
            raise ConfigError(
                f"{critic} has another vocabulary than the actor, and would misread it; train the reward model from a "
                "model with the actor's tokenizer"
            )


class Stand(BaseModel):
    """A step of a run: to stand at (`num_updates`: those of the whole run), or to commit (those done)."""

    model_config = ConfigDict(extra="forbid")

    step: int
    num_updates: int


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits that equal vocabularies share."""
    tokens = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(orjson.dumps(tokens)).hexdigest()[:16]


def pack(num_updates: int, **tensors: Tensor) -> bytes:
    """Tensors as a body."""
    named = {**tensors, "num_updates": torch.tensor(num_updates)}
    return save({name: tensor.to(DTYPES[name]).contiguous() for name, tensor in named.items()})


def unpack(body: bytes, names: Sequence[str]) -> tuple[int, list[Tensor]]:
    """`num_updates`, and the tensors of these names in order.

    Raises:
        DataError: not safetensors, a tensor is absent or of another type.
    """
    try:
        tensors: Mapping[str, Any] = load(body)
    except (SafetensorError, ValueError) as error:
        raise DataError(f"the body is not safetensors ({error})") from None
    for name in (*names, "num_updates"):
        if name not in tensors or tensors[name].dtype != DTYPES[name]:
            raise DataError(f"the body needs {name}, {DTYPES[name]}")
    return int(tensors["num_updates"]), [tensors[name] for name in names]


def check_shapes(tokens: Tensor, **others: tuple[Tensor, int]) -> None:
    """Raise `DataError` unless the tokens are [B, S], and the others [B, S less so many] ([B] for -1)."""
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise DataError(f"tokens must be [B, S] with S at least 2, not {list(tokens.shape)}")
    num_sequences, length = tokens.shape
    for name, (tensor, less) in others.items():
        wanted = [num_sequences] if less < 0 else [num_sequences, length - less]
        if list(tensor.shape) != wanted:
            raise DataError(f"{name} must be {wanted} beside tokens {list(tokens.shape)}, not {list(tensor.shape)}")
