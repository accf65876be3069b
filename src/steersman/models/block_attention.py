"""Causal attention of one sequence's last tokens on a CPU, forward and backward, as products over blocks of queries.

With P = softmax(c Q K^T) and O = P V, the gradients of a loss with dO are

    dV = P^T dO        dS = P * (dO V^T - rowsum(dO * O))        dQ = c dS K        dK = c dS^T Q

Queries are taken `ROWS` at a time with the keys that any of them sees, so about half of the T x T products are made.
The heads that share a key/value head are one matrix product, which at bf16 runs two to three times as fast as PyTorch's
fused kernel for CPUs; the price is that P is kept for a backward pass, so it is for sequences up to `LONGEST` there.

Shapes: K key/value heads, G query heads for each, H in all, Q queries, T >= Q keys, D head size, N queries in a block,
S keys that they see.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from steersman.models.masks import causal_mask, query_blocks

ROWS = 128
SHORTEST, LONGEST = 64, 2048  # keys; P takes T^2 bytes or so for each head and layer


def pays(query_1HQD: Tensor, num_keys: int) -> bool:
    """Whether this is faster than PyTorch's kernel, and P, if a backward pass needs it, small enough to be kept."""
    on_fast_cpu = query_1HQD.device.type == "cpu" and query_1HQD.dtype == torch.bfloat16
    return on_fast_cpu and num_keys > SHORTEST and (num_keys <= LONGEST or not torch.is_grad_enabled())


def block_attention(
    query_1HQD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, *, scaling: float, window: int | None
) -> Tensor:
    """softmax(scaling * q k^T) v: 1 x H x Q x D. The queries are those of the last Q of T tokens; each sees itself and
    the past, and at most `window` tokens."""
    _, H, Q, D = query_1HQD.shape
    K = key_1KTD.shape[1]
    query_KGQD = (query_1HQD * scaling).reshape(K, H // K, Q, D)
    output_KGQD: Tensor = _BlockAttention.apply(query_KGQD, key_1KTD[0], value_1KTD[0], window)  # type: ignore[no-untyped-call]
    return output_KGQD.flatten(0, 1)[None]


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_KGQD: Tensor, key_KTD: Tensor, value_KTD: Tensor, window: int | None) -> Tensor:
        output_KGQD = torch.empty_like(query_KGQD, memory_format=torch.contiguous_format)
        weights = []
        for queries, keys in query_blocks(query_KGQD.shape[2], key_KTD.shape[1], window, ROWS):
            scores_KGNS = _product(query_KGQD[:, :, queries], key_KTD[:, keys].mT)
            _hide(scores_KGNS, keys.stop, window)
            weights_KGNS = scores_KGNS.softmax(-1)
            output_KGQD[:, :, queries] = _product(weights_KGNS, value_KTD[:, keys])
            if any(ctx.needs_input_grad):
                weights.append(weights_KGNS)
        ctx.save_for_backward(query_KGQD, key_KTD, value_KTD, output_KGQD, *weights)
        ctx.window = window
        return output_KGQD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_KGQD: Tensor) -> tuple[Tensor | None, ...]:
        query_KGQD, key_KTD, value_KTD, output_KGQD, *weights = ctx.saved_tensors
        wide = torch.promote_types(grad_KGQD.dtype, torch.float32)
        sums_KGQ1 = torch.linalg.vecdot(grad_KGQD, output_KGQD)[..., None]
        grad_query_KGQD = torch.empty_like(output_KGQD)
        grad_key_KTD, grad_value_KTD = torch.zeros_like(key_KTD, dtype=wide), torch.zeros_like(value_KTD, dtype=wide)
        blocks = query_blocks(query_KGQD.shape[2], key_KTD.shape[1], ctx.window, ROWS)
        for (queries, keys), weights_KGNS in zip(blocks, weights, strict=True):
            query_KGND, grad_KGND = query_KGQD[:, :, queries], grad_KGQD[:, :, queries]
            grad_value_KTD[:, keys] += _transposed_product(weights_KGNS, grad_KGND)
            grad_scores_KGNS = _product(grad_KGND, value_KTD[:, keys].mT)
            grad_scores_KGNS = grad_scores_KGNS.sub_(sums_KGQ1[:, :, queries]).mul_(weights_KGNS)
            grad_query_KGQD[:, :, queries] = _product(grad_scores_KGNS, key_KTD[:, keys])
            grad_key_KTD[:, keys] += _transposed_product(grad_scores_KGNS, query_KGND)
        return grad_query_KGQD, grad_key_KTD.to(key_KTD.dtype), grad_value_KTD.to(value_KTD.dtype), None


def _hide(scores_KGNS: Tensor, end: int, window: int | None) -> None:
    """Minus infinity, in place, for keys that a query does not see; both end before position `end`."""
    size, num_keys = scores_KGNS.shape[-2:]
    if window is None or end <= window:
        window, num_keys = None, size  # only keys among the block's own positions are hidden
    scores_KGNS[..., -num_keys:].masked_fill_(_hidden(size, num_keys, window), -torch.inf)


@lru_cache(maxsize=64)
def _hidden(num_queries: int, num_keys: int, window: int | None) -> Tensor:
    """bool[N, S], True = not attended."""
    return causal_mask(num_queries, num_keys, window).logical_not()


def _product(a_KGNX: Tensor, b_KXY: Tensor) -> Tensor:
    """a b for each key/value head: K x G x N x Y."""
    return torch.bmm(a_KGNX.flatten(1, 2), b_KXY).view(*a_KGNX.shape[:3], -1)


def _transposed_product(a_KGNX: Tensor, b_KGNY: Tensor) -> Tensor:
    """a^T b, summed over the heads that share a key/value head: K x X x Y."""
    return torch.bmm(a_KGNX.flatten(1, 2).mT, b_KGNY.flatten(1, 2))
