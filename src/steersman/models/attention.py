"""Attention over one packed row, chosen by the caller.

Every model runs with the attention implementation "steersman" (registered in `transformers`), which hands each layer's
queries, keys and values to the `AttentionContext` that the caller passed to the forward call:

- training passes `Segments`: several sequences lie one after another in a row, and each attends to itself alone, chunk
  by chunk, so no T x T mask is ever built and nothing leaks from one sequence to the next;
- the generation engine passes its own context, which keeps keys and values of past tokens.

Shapes: H query heads, K key/value heads, T tokens in the row, D head size.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from steersman.models.block_attention import block_attention, pays
from steersman.models.masks import causal_mask, query_blocks

IMPLEMENTATION = "steersman"

MASKED_ROWS = 256
"""Queries under one mask: bounds the mask, and the keys that a window reads in vain."""


class AttentionContext(Protocol):
    """Computes attention for every layer of one forward call."""

    def attend(
        self,
        layer_idx: int,
        query_1HTD: Tensor,
        key_1KTD: Tensor,
        value_1KTD: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """The attention output, 1 x T x H x D. Keys and queries are already rotated."""
        ...


def attention(
    query_BHQD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    *,
    scaling: float,
    mask: Tensor | None = None,
    is_causal: bool = False,
    softcap: float | None = None,
) -> Tensor:
    """softmax(scaling * q k^T) v with grouped key/value heads: B x H x Q x D. The mask is bool, True = attended, or
    is added to the scores. `softcap` c turns a score s into c tanh(s / c)."""
    if softcap is None:
        return F.scaled_dot_product_attention(
            query_BHQD, key_BKSD, value_BKSD, attn_mask=mask, is_causal=is_causal, scale=scaling, enable_gqa=True
        )
    groups = query_BHQD.shape[1] // key_BKSD.shape[1]
    key_BHSD, value_BHSD = key_BKSD.repeat_interleave(groups, 1), value_BKSD.repeat_interleave(groups, 1)
    scores_BHQS = torch.tanh(query_BHQD @ key_BHSD.transpose(2, 3) * (scaling / softcap)) * softcap
    if is_causal:
        mask = causal_mask(query_BHQD.shape[2], key_BKSD.shape[2], None, query_BHQD.device)
    if mask is not None:
        added = mask if mask.is_floating_point() else torch.where(mask, 0.0, -torch.inf)
        scores_BHQS = scores_BHQS + added.to(scores_BHQS.dtype)
    return scores_BHQS.softmax(-1, dtype=torch.float32).to(value_BHSD.dtype) @ value_BHSD


def causal_attention(
    query_1HQD: Tensor,
    key_1KSD: Tensor,
    value_1KSD: Tensor,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention of one sequence's last Q of S tokens to themselves and the past, at most `window` tokens each:
    1 x H x Q x D."""
    num_queries, num_keys = query_1HQD.shape[2], key_1KSD.shape[2]
    if softcap is None and pays(query_1HQD, num_keys):
        return block_attention(query_1HQD, key_1KSD, value_1KSD, scaling=scaling, window=window)
    options: dict[str, Any] = {"scaling": scaling, "softcap": softcap}
    if num_queries == num_keys and (window is None or num_keys <= window):
        return attention(query_1HQD, key_1KSD, value_1KSD, is_causal=True, **options)
    outputs = []
    for queries, keys in query_blocks(num_queries, num_keys, window, MASKED_ROWS):
        mask_QS = causal_mask(queries.stop - queries.start, keys.stop - keys.start, window, query_1HQD.device)
        block = query_1HQD[:, :, queries], key_1KSD[:, :, keys], value_1KSD[:, :, keys]
        outputs.append(attention(*block, mask=mask_QS, **options))
    return torch.cat(outputs, dim=2)


class Segments:
    """Sequences packed in one row; each attends causally to itself alone.

    The row is made of chunks. A chunk may continue another one, so that several sequences have the same beginning: it
    attends to itself and to all that it continues.

    Args:
        bounds: of the chunks, from 0 to T (N + 1 numbers for N chunks).
        parents: the chunk that each continues, which stands before it; -1 for none. By default every chunk is a
            sequence of its own.
    """

    def __init__(self, bounds: Sequence[int], parents: Sequence[int] | None = None) -> None:
        self._lengths = [end - start for start, end in itertools.pairwise(bounds)]
        self._paths: list[list[int]] = []  # of each chunk: itself and what it continues, from the start
        for number, parent in enumerate(parents or [-1] * len(self._lengths)):
            self._paths.append([number] if parent < 0 else [*self._paths[parent], number])

    def attend(
        self,
        layer_idx: int,
        query_1HTD: Tensor,
        key_1KTD: Tensor,
        value_1KTD: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        # split, not slices: its backward is one concatenation, where N slices would each fill a whole row.
        queries, *keys_and_values = (torch.split(x, self._lengths, dim=2) for x in (query_1HTD, key_1KTD, value_1KTD))
        outputs = []
        for query, path in zip(queries, self._paths, strict=True):
            key, value = (
                chunks[path[0]] if len(path) == 1 else torch.cat([chunks[number] for number in path], dim=2)
                for chunks in keys_and_values
            )
            outputs.append(causal_attention(query, key, value, scaling=scaling, window=sliding_window, softcap=softcap))
        return torch.cat(outputs, dim=2).transpose(1, 2)


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention_context: AttentionContext | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The seam of `transformers`: see `AttentionInterface`."""
    if attention_context is None:
        # A plain forward call, such as `model.generate`: rows of equal length, no packing.
        assert query.shape[0] == 1, "without an attention_context only a single row is supported"
        attention_context = Segments([0, query.shape[2]])
    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = attention_context.attend(
        layer_idx, query, key, value, scaling=scaling, sliding_window=sliding_window, softcap=softcap
    )
    return output, None


AttentionInterface.register(IMPLEMENTATION, _forward)
