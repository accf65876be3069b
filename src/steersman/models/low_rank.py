"""LoRA layers that work in few steps.

    a = s x A^T      y = x W^T + b + a B^T
    dB = dy^T a      d = s dy B      dA = d^T x      dx = dy W + d A

As peft writes it, the update is a matrix of the output's size, which is scaled and added, and autograd passes over all
of that once more, in fp32 where A and B are, though x is in bf16. Here each sum is part of a product in the precision
of x, fp32 within, and of the update only a, as narrow as the rank, is kept.

Shapes: R rows, I inputs, O outputs, K rank.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from steersman.models.derived import Derived


class _LowRank(torch.autograd.Function):
    """The layer with the gradients above; none for W and b, which are frozen. A and B have copies as precise as x."""

    @staticmethod
    def forward(
        ctx: Any,
        x_RI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        copies: tuple[Tensor, Tensor],
        a_KI: Tensor,
        b_OK: Tensor,
        scale: float,
    ) -> Tensor:
        narrow_RK = (x_RI @ copies[0].T).mul_(scale)
        ctx.save_for_backward(x_RI, weight_OI, narrow_RK, *copies)
        ctx.scale, ctx.dtypes = scale, (a_KI.dtype, b_OK.dtype)
        return F.linear(x_RI, weight_OI, bias_O).addmm_(narrow_RK, copies[1].T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_RI, weight_OI, narrow_RK, a_KI, b_OK = ctx.saved_tensors
        grad_RO = gradients[0]
        grad_b_OK = grad_RO.T @ narrow_RK
        grad_narrow_RK = (grad_RO @ b_OK).mul_(ctx.scale)
        grad_a_KI = grad_narrow_RK.T @ x_RI
        grad_x_RI = (grad_RO @ weight_OI).addmm_(grad_narrow_RK, a_KI) if ctx.needs_input_grad[0] else None
        return grad_x_RI, None, None, None, grad_a_KI.to(ctx.dtypes[0]), grad_b_OK.to(ctx.dtypes[1]), None


class LeanLora(Linear):  # type: ignore[misc]
    """What `lighten_lora` makes of peft's layer. Where there is more to it than one plain update of a frozen layer, it
    works as peft's."""

    _copies: Derived[tuple[Tensor, Tensor]]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base, name = self.base_layer, self._plain_adapter(x)
        if name is None or args or kwargs:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        a_KI, b_OK, scale = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        copies = self._copies.of((a_KI, b_OK, base.weight))
        x_RI = x.flatten(0, -2)
        if torch.is_grad_enabled():
            y_RO = _LowRank.apply(x_RI, base.weight, base.bias, copies, a_KI, b_OK, scale)  # type: ignore[no-untyped-call]
        else:
            narrow_RK = (x_RI @ copies[0].T).mul_(scale)
            y_RO = torch.addmm(base(x).flatten(0, -2), narrow_RK, copies[1].T)
        return cast(Tensor, y_RO.view(*x.shape[:-1], -1))

    def _plain_adapter(self, x: Tensor) -> str | None:
        """The one adapter's name, if it is all that there is to it."""
        base, names = self.base_layer, self.active_adapters
        if self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A:
            return None
        (name,) = names
        if name in self.lora_variant or self.lora_bias[name]:
            return None
        if self.training and isinstance(self.lora_dropout[name], nn.Dropout):
            return None
        if not isinstance(base, nn.Linear) or base._forward_hooks or base._forward_pre_hooks:
            return None
        weights = (base.weight, self.lora_A[name].weight, self.lora_B[name].weight)
        here = all(type(weight) is nn.Parameter and not weight.is_inference() for weight in weights)
        return name if here and base.weight.dtype == x.dtype and not base.weight.requires_grad else None


def lighten_lora(model: nn.Module) -> None:
    """Let the linear layers that peft has adapted work as above."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = LeanLora
            cast(LeanLora, module)._copies = Derived(_as_precise)


def _as_precise(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A and B in the precision of W, the third; also for a training step when an engine asked first."""
    with torch.inference_mode(False):
        a_KI, b_OK, weight_OI = (weight.detach() for weight in weights)
        return a_KI.to(weight_OI.dtype), b_OK.to(weight_OI.dtype)
