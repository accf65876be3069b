"""What a model says of tokens, fused with its output head: log-probabilities, entropies, which tokens are likeliest.

In: the hidden states from which the tokens are predicted, the head's weight, the tokens. With logits
z = cap(h W^T) / t, where t is the temperature at which the tokens were drawn, cap(z) = c tanh(z / c) for models that
have a soft-cap c, and p = softmax(z):

    l_m = z_m,target(m) - log sum_v exp z_mv        dl/dz = onehot(target) - p
    H_m = -sum_v p_mv log p_mv                      dH/dz = -p (log p + H)

Logits are never stored: they exist for one chunk of rows and one block of the vocabulary at a time, small enough to
stay in the processor's cache, and the backward pass computes them again. That is a fourth matrix product beside the
three that cannot be avoided; storing them would take 2 V bytes a token and save a seventh of the time. Sums and
exponentials are in fp32, matrix products in the precision of the inputs, and a chunk is long, so that the weight's
gradient is passed over seldom.

A frozen head, as beside adapters, needs two products: the forward pass then sums up, as it meets them, what

    dl/dh = ((1 - p_target) W_target - sum_{v != target} p_v W_v) / t        (without a soft-cap)

consists of. The target has a term of its own, since little is left of it where p_target is near 1.

Shapes: M tokens of N sequences, C tokens in a chunk, H hidden size, V vocabulary, B of it in a block.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = 2048  # rows
CPU_BLOCK, GPU_BLOCK = 3 * 2**20, 2**26  # logits


class TokenScores(NamedTuple):
    """Of M tokens.

    Attributes:
        logprobs_M: natural log-probabilities, fp32 (fp64 for fp64 inputs).
        likeliest_M: whether no other token was likelier; bool.
        entropies_M: of the distributions in their places, if asked for.
    """

    logprobs_M: Tensor
    likeliest_M: Tensor
    entropies_M: Tensor | None


def token_scores(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    targets_M: Tensor,
    *,
    entropies: bool = False,
    entropy_gradient: bool = False,
    temperature: float = 1.0,
    softcap: float | None = None,
    weight_grad_VH: Tensor | None = None,
) -> TokenScores:
    """Score each target.

    Args:
        hidden_MH: hidden states, floating point.
        weight_VH: head weight, same dtype; no gradient is computed for it when it is frozen.
        targets_M: token ids, int64.
        entropies: whether entropies are wanted; they are constants, unless
        entropy_gradient: they have a gradient.
        temperature: divides the logits.
        softcap: c of cap(z) = c tanh(z / c), or None.
        weight_grad_VH: where the weight's gradient is added at once, in place of another tensor of its size that
            autograd would carry there.
    """
    scores = _TokenScores.apply(  # type: ignore[no-untyped-call]
        hidden_MH, weight_VH, targets_M, entropies, entropy_gradient, temperature, softcap, weight_grad_VH
    )
    return TokenScores(*scores)


def sequence_sums(logprobs_M: Tensor, sizes: Sequence[int]) -> Tensor:
    """The log-probability of each sequence, [N]: the sum over its tokens, of which it has as many as `sizes` says."""
    number_N = torch.arange(len(sizes), device=logprobs_M.device)
    number_M = number_N.repeat_interleave(torch.tensor(sizes, dtype=torch.int64, device=logprobs_M.device))
    return logprobs_M.new_zeros(len(sizes)).index_add(0, number_M, logprobs_M)


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        targets_M: Tensor,
        entropies: bool,
        entropy_gradient: bool,
        temperature: float,
        softcap: float | None,
        weight_grad_VH: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        at_once = wants_hidden and not wants_weight and not entropy_gradient
        wide = torch.promote_types(hidden_MH.dtype, torch.float32)
        log_sums_M1 = hidden_MH.new_empty((len(targets_M), 1), dtype=wide)
        logprobs_M, likeliest_M = torch.empty_like(log_sums_M1[:, 0]), torch.empty_like(targets_M, dtype=torch.bool)
        entropies_M = torch.empty_like(logprobs_M) if entropies else None
        slope_MH = torch.empty_like(hidden_MH, dtype=wide) if at_once else None  # dl/dh
        for rows in _chunks(len(targets_M)):
            hidden_CH, targets_C1 = hidden_MH[rows], targets_M[rows, None]
            largest_C1 = hidden_CH.new_full((len(hidden_CH), 1), -torch.inf, dtype=wide)
            sum_C1, weighted_C1, target_C1 = (torch.zeros_like(largest_C1) for _ in range(3))
            others_CH = torch.zeros_like(hidden_CH, dtype=wide) if at_once else None
            for first, weight_BH in _blocks(weight_VH, len(hidden_CH)):
                z_CB = _cap(torch.mm(hidden_CH, weight_BH.T).to(wide), softcap)
                if temperature != 1:
                    z_CB = z_CB / temperature
                here_C1, column_C1 = _find_targets(targets_C1, first, z_CB)
                target_C1 += z_CB.gather(1, column_C1) * here_C1
                previous_C1, largest_C1 = largest_C1, torch.maximum(largest_C1, z_CB.amax(1, keepdim=True))
                shrink_C1 = (previous_C1 - largest_C1).exp_()
                exp_CB = (z_CB - largest_C1).exp_()
                sum_C1 = sum_C1 * shrink_C1 + exp_CB.sum(1, keepdim=True)
                if others_CH is not None:
                    others_CB = exp_CB if softcap is None else exp_CB * _cap_slope(z_CB, temperature, softcap)
                    narrow_CB = others_CB.to(hidden_CH.dtype, copy=True)
                    narrow_CB.scatter_(1, column_C1, narrow_CB.gather(1, column_C1) * (1 - here_C1).to(narrow_CB.dtype))
                    others_CH.mul_(shrink_C1).add_(torch.mm(narrow_CB, weight_BH))
                if entropies:
                    weighted_C1 = weighted_C1 * shrink_C1 + exp_CB.mul_(z_CB).sum(1, keepdim=True)
            log_sums_M1[rows] = largest_C1 + sum_C1.log()
            logprobs_M[rows] = (target_C1 - log_sums_M1[rows])[:, 0]
            likeliest_M[rows] = (target_C1 >= largest_C1)[:, 0]
            if entropies_M is not None:
                entropies_M[rows] = (log_sums_M1[rows] - weighted_C1 / sum_C1)[:, 0]
            if slope_MH is not None and others_CH is not None:
                own_C1 = -logprobs_M[rows, None].expm1()  # 1 - p_target
                if softcap is not None:
                    own_C1 *= _cap_slope(target_C1, temperature, softcap)
                own_CH = own_C1 * weight_VH[targets_M[rows]]
                slope_MH[rows] = (own_CH - others_CH / sum_C1) / temperature
        kept = (hidden_MH, weight_VH, targets_M, log_sums_M1, entropies_M) if slope_MH is None else (slope_MH,)
        ctx.save_for_backward(*kept)
        ctx.dtype = hidden_MH.dtype if at_once else None
        ctx.temperature, ctx.softcap, ctx.weight_grad_VH = temperature, softcap, weight_grad_VH
        constants = [likeliest_M] if entropies_M is None or entropy_gradient else [likeliest_M, entropies_M]
        ctx.mark_non_differentiable(*constants)
        ctx.set_materialize_grads(False)
        return logprobs_M, likeliest_M, entropies_M

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprobs_M: Tensor | None, _: Any, grad_entropies_M: Tensor | None) -> tuple[Any, ...]:
        if ctx.dtype is not None:
            assert grad_logprobs_M is not None
            (slope_MH,) = ctx.saved_tensors
            return (grad_logprobs_M[:, None] * slope_MH).to(ctx.dtype), None, None, None, None, None, None, None
        hidden_MH, weight_VH, targets_M, log_sums_M1, entropies_M = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        wide = log_sums_M1.dtype
        if grad_logprobs_M is None:
            grad_logprobs_M = torch.zeros_like(log_sums_M1[:, 0])
        grad_hidden_MH = torch.empty_like(hidden_MH) if wants_hidden else None
        weight_grad_VH = ctx.weight_grad_VH if wants_weight else None
        if wants_weight and weight_grad_VH is None:
            weight_grad_VH = torch.zeros_like(weight_VH, dtype=wide)
        for rows in _chunks(len(targets_M)):
            hidden_CH, targets_C1, log_sums_C1 = hidden_MH[rows], targets_M[rows, None], log_sums_M1[rows]
            grad_logprobs_C1 = grad_logprobs_M[rows, None]
            grad_hidden_CH = torch.zeros_like(hidden_CH, dtype=wide)
            for first, weight_BH in _blocks(weight_VH, len(hidden_CH)):
                capped_CB = _cap(torch.mm(hidden_CH, weight_BH.T).to(wide), ctx.softcap)
                here_C1, column_C1 = _find_targets(targets_C1, first, capped_CB)
                logprob_CB = (capped_CB if ctx.temperature == 1 else capped_CB / ctx.temperature) - log_sums_C1
                if entropies_M is None or grad_entropies_M is None:
                    grad_CB = logprob_CB.exp_().mul_(-grad_logprobs_C1)
                else:
                    grad_CB = (logprob_CB + entropies_M[rows, None]).mul_(-grad_entropies_M[rows, None])
                    grad_CB.sub_(grad_logprobs_C1).mul_(logprob_CB.exp_())
                grad_CB.scatter_add_(1, column_C1, here_C1 * grad_logprobs_C1)
                if ctx.softcap is not None:
                    grad_CB *= _cap_slope(capped_CB, 1.0, ctx.softcap)
                if ctx.temperature != 1:
                    grad_CB /= ctx.temperature
                narrow_CB = grad_CB.to(hidden_CH.dtype)
                if wants_hidden:
                    grad_hidden_CH += torch.mm(narrow_CB, weight_BH)
                if weight_grad_VH is not None:
                    weight_grad_VH[first : first + len(weight_BH)] += torch.mm(narrow_CB.T, hidden_CH)
            if grad_hidden_MH is not None:
                grad_hidden_MH[rows] = grad_hidden_CH
        returned = weight_grad_VH if ctx.weight_grad_VH is None else None
        return grad_hidden_MH, returned, None, None, None, None, None, None


def _chunks(num_rows: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, num_rows, CHUNK))


def _blocks(weight_VH: Tensor, num_rows: int) -> Iterator[tuple[int, Tensor]]:
    """The first token of each block of the vocabulary, and the block's rows of the weight."""
    size = max(1, (CPU_BLOCK if weight_VH.device.type == "cpu" else GPU_BLOCK) // num_rows)
    return ((first, weight_VH[first : first + size]) for first in range(0, len(weight_VH), size))


def _cap(logits_CB: Tensor, softcap: float | None) -> Tensor:
    """The logits under the soft-cap, if there is one."""
    return logits_CB if softcap is None else (logits_CB / softcap).tanh_().mul_(softcap)


def _cap_slope(z_CB: Tensor, temperature: float, softcap: float) -> Tensor:
    """cap'(logit) where cap(logit) / temperature is z."""
    return 1 - (z_CB * (temperature / softcap)).square_()


def _find_targets(targets_C1: Tensor, first: int, z_CB: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each target lies in the block (1.0 or 0.0), and its column there (0 if not)."""
    column_C1 = targets_C1 - first
    here_C1 = (column_C1 >= 0) & (column_C1 < z_CB.shape[1])
    return here_C1.to(z_CB.dtype), column_C1 * here_C1
