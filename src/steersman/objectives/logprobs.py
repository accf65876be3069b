"""Log-probabilities of given tokens and the entropy of their distributions, fused with the output head.

In: the hidden states from which the tokens are predicted, the head's weight, the tokens. With logits
z = cap(h W^T) / t, where t is the temperature at which the tokens were drawn, and p = softmax(z):

    l_m = z_m,target(m) - log sum_v exp z_mv        dl/dz =  onehot(target) - p
    H_m = -sum_v p_mv log p_mv                      dH/dz = -p (log p + H)

Unlike a sum of cross-entropies, what becomes of l and H is only known when their gradients come back, so the backward
pass computes the logits again: they exist for one chunk of rows and one block of the vocabulary at a time.

Shapes: M tokens of N sequences, C tokens in a chunk, H hidden size, V vocabulary, B of it in a block.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steersman.objectives.sft import CPU_BLOCK, GPU_BLOCK, cap, find_targets


def token_logprobs(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    targets_M: Tensor,
    *,
    chunk: int,
    temperature: float = 1.0,
    softcap: float | None = None,
    weight_grad_VH: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The natural log-probability of each target, and the entropy of the distribution in its place.

    Args:
        hidden_MH: hidden states, floating point.
        weight_VH: head weight, same dtype; no gradient is computed for it when it is frozen.
        targets_M: token ids, int64.
        chunk: rows whose logits exist at the same time.
        temperature: divides the logits.
        softcap: c of cap(z) = c tanh(z / c), or None.
        weight_grad_VH: where the weight's gradient is added at once, in place of another tensor of its size that
            autograd would carry there.

    Returns:
        Two tensors [M], fp32 (fp64 for fp64 inputs).
    """
    assert chunk > 0, "chunk must be at least 1"
    chunk = max(1, min(chunk, len(targets_M)))  # what rows leave of a block is given to columns
    logprobs_M, entropy_M = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_MH, weight_VH, targets_M, chunk, temperature, softcap, weight_grad_VH
    )
    return logprobs_M, entropy_M


def sequence_sums(logprobs_M: Tensor, sizes: Sequence[int]) -> Tensor:
    """The log-probability of each sequence, [N]: the sum over its tokens, of which it has as many as `sizes` says."""
    number_N = torch.arange(len(sizes), device=logprobs_M.device)
    number_M = number_N.repeat_interleave(torch.tensor(sizes, dtype=torch.int64, device=logprobs_M.device))
    return logprobs_M.new_zeros(len(sizes)).index_add(0, number_M, logprobs_M)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        targets_M: Tensor,
        chunk: int,
        temperature: float,
        softcap: float | None,
        weight_grad_VH: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden_MH.dtype, torch.float32)
        log_sums_M1 = hidden_MH.new_empty((len(targets_M), 1), dtype=wide)
        logprobs_M, entropy_M = torch.empty_like(log_sums_M1[:, 0]), torch.empty_like(log_sums_M1[:, 0])
        for rows in _chunks(len(targets_M), chunk):
            hidden_CH, targets_C1 = hidden_MH[rows], targets_M[rows, None]
            largest_C1 = hidden_CH.new_full((len(hidden_CH), 1), -torch.inf, dtype=wide)
            sum_C1, weighted_C1, target_C1 = (torch.zeros_like(largest_C1) for _ in range(3))
            for first, weight_BH in _blocks(weight_VH, chunk):
                z_CB = cap(torch.mm(hidden_CH, weight_BH.T).to(wide), softcap) / temperature
                here_C1, column_C1 = find_targets(targets_C1, first, z_CB)
                target_C1 += z_CB.gather(1, column_C1) * here_C1
                previous_C1, largest_C1 = largest_C1, torch.maximum(largest_C1, z_CB.amax(1, keepdim=True))
                shrink_C1 = (previous_C1 - largest_C1).exp_()
                exp_CB = (z_CB - largest_C1).exp_()
                sum_C1 = sum_C1 * shrink_C1 + exp_CB.sum(1, keepdim=True)
                weighted_C1 = weighted_C1 * shrink_C1 + exp_CB.mul_(z_CB).sum(1, keepdim=True)
            log_sums_M1[rows] = largest_C1 + sum_C1.log()
            logprobs_M[rows] = (target_C1 - log_sums_M1[rows])[:, 0]
            entropy_M[rows] = (log_sums_M1[rows] - weighted_C1 / sum_C1)[:, 0]
        ctx.save_for_backward(hidden_MH, weight_VH, targets_M, log_sums_M1, entropy_M)
        ctx.chunk, ctx.temperature, ctx.softcap, ctx.weight_grad_VH = chunk, temperature, softcap, weight_grad_VH
        return logprobs_M, entropy_M

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprobs_M: Tensor, grad_entropy_M: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MH, weight_VH, targets_M, log_sums_M1, entropy_M = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        wide = log_sums_M1.dtype
        grad_hidden_MH = torch.empty_like(hidden_MH) if wants_hidden else None
        weight_grad_VH = None
        if wants_weight:
            weight_grad_VH = (
                torch.zeros_like(weight_VH, dtype=wide) if ctx.weight_grad_VH is None else ctx.weight_grad_VH
            )
        for rows in _chunks(len(targets_M), ctx.chunk):
            hidden_CH, targets_C1, log_sums_C1 = hidden_MH[rows], targets_M[rows, None], log_sums_M1[rows]
            grad_logprobs_C1, grad_entropy_C1 = grad_logprobs_M[rows, None], grad_entropy_M[rows, None]
            grad_hidden_CH = torch.zeros_like(hidden_CH, dtype=wide)
            for first, weight_BH in _blocks(weight_VH, ctx.chunk):
                capped_CB = cap(torch.mm(hidden_CH, weight_BH.T).to(wide), ctx.softcap)
                logprob_CB = capped_CB / ctx.temperature - log_sums_C1
                here_C1, column_C1 = find_targets(targets_C1, first, capped_CB)
                grad_CB = (logprob_CB + entropy_M[rows, None]).mul_(-grad_entropy_C1).sub_(grad_logprobs_C1)
                grad_CB.mul_(logprob_CB.exp_()).scatter_add_(1, column_C1, here_C1 * grad_logprobs_C1)
                if ctx.softcap is not None:
                    grad_CB *= 1 - (capped_CB / ctx.softcap).square_()
                grad_CB = (grad_CB / ctx.temperature).to(hidden_CH.dtype)
                if wants_hidden:
                    grad_hidden_CH += torch.mm(grad_CB, weight_BH)
                if weight_grad_VH is not None:
                    weight_grad_VH[first : first + len(weight_BH)] += torch.mm(grad_CB.T, hidden_CH)
            if grad_hidden_MH is not None:
                grad_hidden_MH[rows] = grad_hidden_CH
        returned = weight_grad_VH if ctx.weight_grad_VH is None else None
        return grad_hidden_MH, returned, None, None, None, None, None


def _chunks(num_rows: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, num_rows, chunk))


def _blocks(weight_VH: Tensor, chunk: int) -> Iterator[tuple[int, Tensor]]:
    """The first token of each block of the vocabulary, and the block's rows of the weight."""
    size = max(1, (CPU_BLOCK if weight_VH.device.type == "cpu" else GPU_BLOCK) // chunk)
    return ((first, weight_VH[first : first + size]) for first in range(0, len(weight_VH), size))
