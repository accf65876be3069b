"""Causal attention of one sequence's last tokens on a CPU, forward and backward, as products over blocks of queries.

With P = softmax(c Q K^T) and O = P V, the gradients of a loss with dO are

    dV = P^T dO        dS = P * (dO V^T - rowsum(dO * O))        dQ = c dS K        dK = c dS^T Q

Queries are taken `ROWS` at a time with the keys that any of them sees, so about half of the T x T products are made.
The heads that share a key/value head are one matrix product, which at bf16 runs two to three times as fast as PyTorch's
fused kernel for CPUs; the price is that P is kept for a backward pass, so it is for sequences up to `LONGEST` there.

Shapes: K key/value heads, G query heads for each, H in all, Q queries, R = Q G rows (the heads of a query side by side,
as they lie in memory), T >= Q keys, D head size, N rows of a block, S keys that they see.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from steersman.models.masks import causal_mask, query_blocks

ROWS = 128
SHORTEST, LONGEST = 64, 2048  # keys; P takes T^2 bytes or so for each head and layer

Block = tuple[slice, slice]
"""Rows, and the keys that any of them sees."""


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
    K, T = key_1KTD.shape[1:3]
    G = H // K
    query_KRD = (query_1HQD * scaling).view(K, G, Q, D).transpose(1, 2).flatten(1, 2)
    blocks = [(slice(queries.start * G, queries.stop * G), keys) for queries, keys in query_blocks(Q, T, window, ROWS)]
    attend: Any = _BlockAttention.apply if torch.is_grad_enabled() else _attend
    output_KRD: Tensor = attend(query_KRD, key_1KTD[0], value_1KTD[0], G, blocks, window)
    return output_KRD.view(K, Q, G, D).transpose(1, 2).flatten(0, 1)[None]


def _attend(
    query_KRD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    G: int,
    blocks: list[Block],
    window: int | None,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """O, K x R x D; P of each block, K x N x S, is added to what is kept."""
    output_KRD = torch.empty_like(query_KRD)
    for rows, keys in blocks:
        scores_KNS = _product(query_KRD[:, rows], key_KTD[:, keys].mT)
        _hide(scores_KNS.unflatten(1, (-1, G)), keys.stop, window)  # type: ignore[no-untyped-call]
        weights_KNS = scores_KNS.softmax(-1)
        _product(weights_KNS, value_KTD[:, keys], out_KNY=output_KRD[:, rows])
        if kept is not None:
            kept.append(weights_KNS)
    return output_KRD


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_KRD: Tensor,
        key_KTD: Tensor,
        value_KTD: Tensor,
        G: int,
        blocks: list[Block],
        window: int | None,
    ) -> Tensor:
        weights: list[Tensor] = []
        output_KRD = _attend(query_KRD, key_KTD, value_KTD, G, blocks, window, weights)
        ctx.save_for_backward(query_KRD, key_KTD, value_KTD, output_KRD, *weights)
        ctx.blocks = blocks
        return output_KRD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_KRD: Tensor) -> tuple[Tensor | None, ...]:
        query_KRD, key_KTD, value_KTD, output_KRD, *weights = ctx.saved_tensors
        wide = torch.promote_types(grad_KRD.dtype, torch.float32)
        sums_KR1 = torch.linalg.vecdot(grad_KRD, output_KRD)[..., None]
        grad_query_KRD = torch.empty_like(output_KRD)
        grad_key_KTD, grad_value_KTD = torch.zeros_like(key_KTD, dtype=wide), torch.zeros_like(value_KTD, dtype=wide)
        for (rows, keys), weights_KNS in zip(ctx.blocks, weights, strict=True):
            grad_value_KTD[:, keys] += _product(weights_KNS.mT, grad_KRD[:, rows])
            grad_scores_KNS = _product(grad_KRD[:, rows], value_KTD[:, keys].mT)
            grad_scores_KNS.sub_(sums_KR1[:, rows]).mul_(weights_KNS)
            _product(grad_scores_KNS, key_KTD[:, keys], out_KNY=grad_query_KRD[:, rows])
            grad_key_KTD[:, keys] += _product(grad_scores_KNS.mT, query_KRD[:, rows])
        return grad_query_KRD, grad_key_KTD.to(key_KTD.dtype), grad_value_KTD.to(value_KTD.dtype), None, None, None


def _product(a_KNX: Tensor, b_KXY: Tensor, out_KNY: Tensor | None = None) -> Tensor:
    """a b for each key/value head; a single one is no batch, whose kernel takes up to a quarter longer."""
    if len(a_KNX) == 1:
        return torch.mm(a_KNX[0], b_KXY[0], out=None if out_KNY is None else out_KNY[0])[None]
    return torch.bmm(a_KNX, b_KXY, out=out_KNY)


def _hide(scores_KQGS: Tensor, end: int, window: int | None) -> None:
    """Minus infinity, in place, for keys that a query does not see; both end before position `end`."""
    size, num_keys = scores_KQGS.shape[1], scores_KQGS.shape[-1]
    if window is None or end <= window:
        window, num_keys = None, size  # only keys among the block's own positions are hidden
    scores_KQGS[..., -num_keys:].add_(_hidden(size, num_keys, window))


@lru_cache(maxsize=64)
def _hidden(num_queries: int, num_keys: int, window: int | None) -> Tensor:
    """bf16[Q, 1, S]: 0 = attended, minus infinity = not; adding takes half the time of filling."""
    seen_QS = causal_mask(num_queries, num_keys, window)
    return torch.where(seen_QS, 0.0, -torch.inf).bfloat16()[:, None]
