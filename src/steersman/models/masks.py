"""Which keys a query sees: the past, itself included, and no further back than a window.

Shapes: Q queries, those of the last Q of S positions.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor


def causal_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device | None = None) -> Tensor:
    """bool[Q, S], True = attended: the queries are the last Q of S positions, each sees itself and the past, and no
    further back than `window` positions, itself included."""
    offset = num_keys - num_queries
    ages_QS = (torch.arange(num_queries, device=device)[:, None] + offset) - torch.arange(num_keys, device=device)
    return (ages_QS >= 0) if window is None else (ages_QS >= 0) & (ages_QS < window)


def query_blocks(num_queries: int, num_keys: int, window: int | None, rows: int) -> Iterator[tuple[slice, slice]]:
    """The queries, `rows` at a time, and the keys that any of a block's queries sees."""
    past = num_keys - num_queries
    for start, end in itertools.pairwise([*range(0, num_queries, rows), num_queries]):
        yield slice(start, end), slice(0 if window is None else max(0, past + start + 1 - window), past + end)
