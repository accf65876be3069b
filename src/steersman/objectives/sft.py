"""Supervised fine-tuning: cross-entropy of the trained tokens, fused with the output head.

In: the hidden states from which a trained token is predicted, the head's weight, and those tokens. Out: the sum of
-log p(token) and the number of tokens whose likeliest prediction was right. With logits z = cap(h W^T), where
cap(z) = c tanh(z / c) for models that have a soft-cap c:

    L = sum_m [ log sum_v exp z_mv - z_m,target(m) ]        dL/dz = softmax(z) - onehot(target)

Logits exist for one chunk of rows at a time, and their gradients are made in the forward pass while they are at hand,
so memory is bounded by chunk x V however many tokens are trained. The loss is computed in fp32 from logits of the
inputs' precision. The weight's gradient takes the weight's dtype when there is a single chunk; sums over several chunks
are kept in fp32, where rounding at every addition would otherwise lose small contributions.

Shapes: M trained tokens, C of them in a chunk, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from steersman.objectives import Loss


def fused_linear_cross_entropy(
    hidden_MH: Tensor, weight_VH: Tensor, targets_M: Tensor, *, chunk: int, softcap: float | None = None
) -> Loss:
    """The cross-entropy of `hidden_MH @ weight_VH.T` against `targets_M`, summed.

    Args:
        hidden_MH: hidden states, floating point.
        weight_VH: head weight, same dtype; no gradient is computed for it when it is frozen.
        targets_M: token ids, int64.
        chunk: rows whose logits exist at the same time.
        softcap: c of cap(z) = c tanh(z / c), or None.

    Returns:
        The sum in nats (fp32, or fp64 for fp64 inputs), M, and metric "accuracy": the number of correct predictions.
    """
    assert chunk > 0, "chunk must be at least 1"
    loss, num_correct = _FusedLinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_MH, weight_VH, targets_M, chunk, softcap, torch.is_grad_enabled()
    )
    return Loss(sum=loss, num=len(targets_M), metrics={"accuracy": num_correct})


class _FusedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        targets_M: Tensor,
        chunk: int,
        softcap: float | None,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight = (grad_enabled and wanted for wanted in ctx.needs_input_grad[:2])
        wide = torch.promote_types(hidden_MH.dtype, torch.float32)
        loss = hidden_MH.new_zeros((), dtype=wide)
        num_correct = targets_M.new_zeros(())
        grad_hidden_MH = torch.empty_like(hidden_MH) if wants_hidden else None
        grad_weight_VH: Tensor | None = None

        for start in range(0, len(targets_M), chunk):
            rows = slice(start, start + chunk)
            hidden_CH, targets_C1 = hidden_MH[rows], targets_M[rows, None]
            logits_CV = (hidden_CH @ weight_VH.T).to(wide)
            if softcap is not None:
                logits_CV.div_(softcap).tanh_().mul_(softcap)
            log_probs_CV = logits_CV.log_softmax(-1)
            target_log_probs_C1 = log_probs_CV.gather(1, targets_C1)
            loss -= target_log_probs_C1.sum()
            num_correct += (target_log_probs_C1 >= log_probs_CV.amax(1, keepdim=True)).sum()
            if not (wants_hidden or wants_weight):
                continue

            grad_logits_CV = log_probs_CV.exp_()
            grad_logits_CV.scatter_add_(1, targets_C1, -torch.ones_like(target_log_probs_C1))
            if softcap is not None:
                grad_logits_CV *= 1 - (logits_CV / softcap).square_()
            grad_logits_CV = grad_logits_CV.to(hidden_MH.dtype)
            if grad_hidden_MH is not None:
                torch.mm(grad_logits_CV, weight_VH, out=grad_hidden_MH[rows])
            if wants_weight:
                if grad_weight_VH is None:
                    grad_weight_VH = grad_logits_CV.T @ hidden_CH
                    if len(targets_M) > chunk:
                        grad_weight_VH = grad_weight_VH.to(wide)
                elif grad_weight_VH.dtype == hidden_CH.dtype:
                    grad_weight_VH.addmm_(grad_logits_CV.T, hidden_CH)
                else:
                    grad_weight_VH += grad_logits_CV.T @ hidden_CH

        ctx.save_for_backward(grad_hidden_MH, grad_weight_VH)
        ctx.mark_non_differentiable(num_correct)
        return loss, num_correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        if grad_loss != 1:  # the training loop asks for the gradient of the plain sum, which needs no further pass
            grads = tuple(None if grad is None else grad * grad_loss.to(grad.dtype) for grad in grads)
        return (*grads, None, None, None, None)
