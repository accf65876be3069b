"""LoRA layers that work in few steps.

    a = x A^T      y = x W^T + b + s a B^T
    dB = s dy^T a      d = s dy B      dA = d^T x      dx = dy W + d A

As peft writes it, the update is a matrix of the output's size, which is scaled and added, and autograd passes over all
of that once more, in fp32 where A and B are, though x is in bf16. Here each sum is part of a product in the precision
of x, fp32 within, and of the update only a, as narrow as the rank, is kept. Layers with the same input find their a in
one product, and W is multiplied in the processor's order where it is packed.

Shapes: R rows, I inputs, O outputs, K rank; N ranks of layers with the same input, one after another.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from steersman.models.derived import Derived
from steersman.models.packed import PackedLinear
from steersman.models.same_input import SameInput, same_input


class _LowRank(torch.autograd.Function):
    """The layer with the gradients above; none for W and b, which are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a_KI: Tensor, b_OK: Tensor, layer: "LeanLora", name: str) -> Tensor:
        y, narrow_RK = layer.output(x, name)
        ctx.save_for_backward(x, layer.base_layer.weight, narrow_RK, layer.narrowing(name), layer.widening(name))
        ctx.base, ctx.scale, ctx.dtypes = layer.base_layer, layer.scaling[name], (a_KI.dtype, b_OK.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI, narrow_RK, a_KI, b_OK = ctx.saved_tensors
        grad_RO = gradients[0].flatten(0, -2)
        grad_b_OK = (grad_RO.T @ narrow_RK).mul_(ctx.scale)
        grad_narrow_RK = (grad_RO @ b_OK).mul_(ctx.scale)
        grad_a_KI = grad_narrow_RK.T @ x.flatten(0, -2)
        grad_x = None
        if ctx.needs_input_grad[0]:
            packed = isinstance(ctx.base, PackedLinear)
            grad_x_RI = ctx.base.backward_product(grad_RO) if packed else grad_RO @ weight_OI
            grad_x = grad_x_RI.addmm_(grad_narrow_RK, a_KI).view(x.shape)
        return grad_x, grad_a_KI.to(ctx.dtypes[0]), grad_b_OK.to(ctx.dtypes[1]), None, None


class LeanLora(Linear):  # type: ignore[misc]
    """What `lighten_lora` makes of peft's layer. Where there is more to it than one plain update of a frozen layer, it
    works as peft's."""

    _narrow: "_Narrow"
    _wide: Derived[Tensor]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self.plain_adapter(x)
        if name is None or args or kwargs:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        if torch.is_grad_enabled():
            a_KI, b_OK = self.lora_A[name].weight, self.lora_B[name].weight
            return _LowRank.apply(x, a_KI, b_OK, self, name)  # type: ignore[no-any-return, no-untyped-call]
        return self.output(x, name, Tensor.addmm_)[0]

    def output(self, x: Tensor, name: str, add: Callable[..., Tensor] = torch.addmm) -> tuple[Tensor, Tensor]:
        """y, in the shape of x, and a: [R, K]; without gradients. `add` may write to W's output, which is often a part
        of a wider one, if autograd has not to follow."""
        narrow_RK = self._narrow.output(self, x, name)
        frozen_RO = self.base_layer(x).flatten(0, -2)
        y_RO = add(frozen_RO, narrow_RK, self.widening(name).T, alpha=self.scaling[name])
        return y_RO.view(*x.shape[:-1], -1), narrow_RK

    def narrowing(self, name: str) -> Tensor:
        """A in the precision of W: [K, I]."""
        return self._narrow.parts(name)[self]

    def joint_narrowing(self, name: str) -> Tensor:
        """That of all adapted layers with the same input, one below the other: [N, I]."""
        return self._narrow.matrix(name)[0]

    def widening(self, name: str) -> Tensor:
        """B in the precision of W: [O, K]."""
        return self._wide.of([self.lora_B[name].weight, self.base_layer.weight])

    def plain_adapter(self, x: Tensor) -> str | None:
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


class _Narrow:
    """a of layers with the same input, as one product."""

    def __init__(self, layers: Sequence[LeanLora]) -> None:
        self._layers = layers
        self._joined = Derived(_as_precise)
        self._outputs = SameInput[LeanLora]()

    def output(self, layer: LeanLora, x: Tensor, name: str) -> Tensor:
        """What one of the layers makes of its input: [R, K]."""

        def compute() -> Mapping[LeanLora, Tensor]:
            joined_NI, ranks = self.matrix(name)
            parts = torch.split(x.flatten(0, -2) @ joined_NI.T, list(ranks.values()), dim=1)
            return dict(zip(ranks, parts, strict=True))

        return self._outputs.of(layer, x, compute)

    def parts(self, name: str) -> dict[LeanLora, Tensor]:
        """A of each layer, as precise as W."""
        joined_NI, ranks = self.matrix(name)
        return dict(zip(ranks, torch.split(joined_NI, list(ranks.values())), strict=True))

    def matrix(self, name: str) -> tuple[Tensor, dict[LeanLora, int]]:
        """A of all layers with an adapter of this name, one below the other: [N, I]; and their ranks."""
        weights = {layer: layer.lora_A[name].weight for layer in self._layers if name in layer.lora_A}
        joined_NI = self._joined.of([*weights.values(), self._layers[0].base_layer.weight])
        return joined_NI, {layer: len(weight) for layer, weight in weights.items()}


def lighten_lora(model: nn.Module) -> None:
    """Let the linear layers that peft has adapted work as above."""
    for module in list(model.modules()):
        children = {name: layer for name, layer in module.named_children() if type(layer) is Linear}
        for layers in same_input(children):
            narrow = _Narrow(cast(list[LeanLora], layers))
            for layer in layers:
                layer.__class__ = LeanLora
                cast(LeanLora, layer)._narrow, cast(LeanLora, layer)._wide = narrow, Derived(_as_precise)


def _as_precise(weights: Sequence[Tensor]) -> Tensor:
    """All but the last, one below the other, as precise as the last; for a training step even if an engine asked."""
    with torch.inference_mode(False):
        *parts, weight_OI = (weight.detach() for weight in weights)
        return torch.cat(parts).to(weight_OI.dtype)
