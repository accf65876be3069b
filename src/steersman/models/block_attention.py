"""Causal attention of one sequence on a CPU, forward and backward, as matrix products over blocks of queries.

With P = softmax(c Q K^T) and O = P V, the gradients of a loss with dO are

    dV = P^T dO        dS = P * (dO V^T - rowsum(dO * O))        dQ = c dS K        dK = c dS^T Q

Queries are taken `ROWS` at a time with the keys that any of them sees, so about half of the T x T products are made.
The heads that share a key/value head are one matrix product, which at bf16 runs two to three times as fast as PyTorch's
fused kernel for CPUs; the price is that P is kept for the backward pass, so longer sequences are left to that kernel.

Shapes: K key/value heads, G query heads for each, T tokens, D head size, N queries in a block, S keys that they see.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steersman.models.masks import cached_causal_mask

ROWS = 128
LONGEST = 2048  # tokens; P takes 2 T^2 bytes or less for each head and layer


def block_attention(
    query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, *, scaling: float, window: int | None
) -> Tensor:
    """softmax(scaling * q k^T) v, each token seeing itself and the past, and at most `window` tokens: 1 x H x T x D."""
    num_heads, num_keys = query_1HTD.shape[1], key_1KTD.shape[1]
    query_KGTD = (query_1HTD * scaling)[0].unflatten(0, (num_keys, num_heads // num_keys))
    output_KGTD: Tensor = _BlockAttention.apply(query_KGTD, key_1KTD[0], value_1KTD[0], window)  # type: ignore[no-untyped-call]
    return output_KGTD.flatten(0, 1)[None]


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_KGTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, window: int | None) -> Tensor:
        output_KGTD = torch.empty_like(query_KGTD, memory_format=torch.contiguous_format)
        weights = []
        for queries, keys in _blocks(query_KGTD.shape[2], window):
            scores_KGNS = _product(query_KGTD[:, :, queries], key_KTD[:, keys].mT)
            _hide(scores_KGNS, queries.stop, window)
            weights.append(scores_KGNS.softmax(-1))
            output_KGTD[:, :, queries] = _product(weights[-1], value_KTD[:, keys])
        ctx.save_for_backward(query_KGTD, key_KTD, value_KTD, output_KGTD, *weights)
        ctx.window = window
        return output_KGTD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_KGTD: Tensor) -> tuple[Tensor | None, ...]:
        query_KGTD, key_KTD, value_KTD, output_KGTD, *weights = ctx.saved_tensors
        wide = torch.promote_types(grad_KGTD.dtype, torch.float32)
        sums_KGT1 = torch.linalg.vecdot(grad_KGTD, output_KGTD)[..., None]
        grad_query_KGTD = torch.empty_like(output_KGTD)
        grad_key_KTD, grad_value_KTD = torch.zeros_like(key_KTD, dtype=wide), torch.zeros_like(value_KTD, dtype=wide)
        for (queries, keys), weights_KGNS in zip(_blocks(query_KGTD.shape[2], ctx.window), weights, strict=True):
            query_KGND, grad_KGND = query_KGTD[:, :, queries], grad_KGTD[:, :, queries]
            grad_value_KTD[:, keys] += _transposed_product(weights_KGNS, grad_KGND)
            grad_scores_KGNS = _product(grad_KGND, value_KTD[:, keys].mT)
            grad_scores_KGNS = grad_scores_KGNS.sub_(sums_KGT1[:, :, queries]).mul_(weights_KGNS)
            grad_query_KGTD[:, :, queries] = _product(grad_scores_KGNS, key_KTD[:, keys])
            grad_key_KTD[:, keys] += _transposed_product(grad_scores_KGNS, query_KGND)
        return grad_query_KGTD, grad_key_KTD.to(key_KTD.dtype), grad_value_KTD.to(value_KTD.dtype), None


def _blocks(num_tokens: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """The queries of each block, and the keys that they see."""
    for start, end in itertools.pairwise([*range(0, num_tokens, ROWS), num_tokens]):
        yield slice(start, end), slice(0 if window is None else max(0, start + 1 - window), end)


def _hide(scores_KGNS: Tensor, end: int, window: int | None) -> None:
    """Minus infinity, in place, for keys that a query does not see; both end before position `end`."""
    size, num_keys = scores_KGNS.shape[-2:]
    if window is None or end <= window:
        window, num_keys = None, size  # only keys among the block's own positions are hidden
    hidden_NS = cached_causal_mask(size, num_keys, window).logical_not()
    scores_KGNS[..., -num_keys:].masked_fill_(hidden_NS, -torch.inf)


def _product(a_KGNX: Tensor, b_KXY: Tensor) -> Tensor:
    """a b for each key/value head: K x G x N x Y."""
    return torch.bmm(a_KGNX.flatten(1, 2), b_KXY).unflatten(1, a_KGNX.shape[1:3])


def _transposed_product(a_KGNX: Tensor, b_KGNY: Tensor) -> Tensor:
    """a^T b, summed over the heads that share a key/value head: K x X x Y."""
    return torch.bmm(a_KGNX.flatten(1, 2).mT, b_KGNY.flatten(1, 2))
