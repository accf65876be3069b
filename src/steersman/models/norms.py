"""RMS norms that keep little for the backward pass, and make it in few steps.

    r = (mean(x^2) + eps)^(-1/2)      n = r x      y = g n
    dL/dg = sum over rows: n dL/dy    dL/dx = r (g dL/dy - n mean(g n dL/dy))

Written as separate operations, as in `transformers`, a norm keeps its input in fp32, and on a CPU its backward pass
takes three times as long. Here the input itself and r are kept. What comes out is the same to the last bit.

Shapes: D features; any dimensions before.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FAMILIES = {
    **dict.fromkeys(("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"), False),
    **dict.fromkeys(("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm"), True),
}
"""Classes of `transformers` -> whether g is 1 + the weight; n is rounded before it is multiplied by a weight itself."""


def normalise(x: Tensor, weight_D: Tensor, eps: float, from_one: bool) -> tuple[Tensor, Tensor]:
    """y, as precise as x, and r: f32[..., 1]."""
    wide = _wide(x)
    r = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    n = wide.mul_(r)
    return (n.mul_(1.0 + weight_D.float()).to(x.dtype) if from_one else weight_D * n.to(x.dtype)), r


def _wide(x: Tensor) -> Tensor:
    """A copy in fp32."""
    return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


class _Normalise(torch.autograd.Function):
    """`normalise` with the gradients above."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, from_one: bool) -> Tensor:
        y, r = normalise(x, weight_D, eps, from_one)
        ctx.save_for_backward(x, weight_D, r)
        ctx.from_one = from_one
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight_D, r = ctx.saved_tensors
        gain_D, size = weight_D.float() + float(ctx.from_one), len(weight_D)
        gradient = _wide(gradients[0])
        n = _wide(x).mul_(r)
        weighted_RD = (n * gradient).view(-1, size)
        weight_gradient = weighted_RD.sum(0).to(weight_D.dtype) if ctx.needs_input_grad[1] else None
        mean = (weighted_RD @ gain_D).view(r.shape) / size
        return gradient.mul_(gain_D).addcmul_(n, mean, value=-1).mul_(r).to(x.dtype), weight_gradient, None, None


class LeanNorm(nn.Module):
    """What `lighten` makes of a norm; its weight and the name of its class are as they were."""

    weight: nn.Parameter
    from_one: bool

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _Normalise.apply(x, self.weight, self._eps, self.from_one)  # type: ignore[no-any-return, no-untyped-call]
        return self.normalised(x, self.weight)

    def normalised(self, x: Tensor, weight: Tensor) -> Tensor:
        """`normalise` without gradients, with a weight for each of several heads, say."""
        return normalise(x, weight, self._eps, self.from_one)[0]

    @property
    def _eps(self) -> Any:
        return self.eps if self.from_one else self.variance_epsilon


@functools.cache
def _lean(norm: type[nn.Module]) -> type[nn.Module]:
    return type(norm.__name__, (LeanNorm, norm), {"from_one": FAMILIES[norm.__name__]})


def lighten(model: nn.Module) -> None:
    """Let a model's norms, where they are of a class that is known, work as above."""
    for module in model.modules():
        if type(module).__name__ in FAMILIES and not isinstance(module, LeanNorm):
            module.__class__ = _lean(type(module))  # type: ignore[arg-type]
