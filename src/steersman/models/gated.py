"""Gated feed-forward layers whose activation and gate are part of the products, for answers in bf16 on a CPU.

    y = W_down (f(W_gate x) * W_up x)

As `transformers` writes it, f and the gate pass over memory again, and each rounds what it finds. Here f is taken of
the sums of one product, and those of the other are multiplied by it, both in fp32. That is faster and more precise, but
not the same to the last bit, so it is for inference mode alone: a reference without gradients has to equal the actor
with them. With adapters the two products are one, with f and the gate behind it.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from steersman.models.joint import Joint
from steersman.models.packed import PackedLinear, PackedWeight, can_pack

FAMILIES = {f"{family}MLP" for family in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3")}
"""Classes of `transformers` with the equation above."""

ACTIVATIONS = {
    "GELUTanh": ("gelu", "tanh"),
    "SiLUActivation": ("swish", ""),
    "SiLU": ("swish", ""),
}
"""Classes of activations -> oneDNN's name and algorithm."""


class GatedMLP(nn.Module):
    """What `fuse_gates` makes of a layer."""

    gate_proj: Any  # linear, or with an adapter
    up_proj: Any
    down_proj: nn.Module
    act_fn: nn.Module
    _gate: PackedWeight
    _up: PackedWeight
    _joint: Joint

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj, self.up_proj
        if torch.is_inference_mode_enabled():
            packed = type(gate) is PackedLinear and type(up) is PackedLinear  # without adapters
            if packed and can_pack(gate.weight) and can_pack(up.weight):
                factor = self._gate.linear(x, [gate.weight], gate.bias, ACTIVATIONS[type(self.act_fn).__name__])
                return self.down_proj(self._up.gate(x, up.weight, up.bias, factor))  # type: ignore[no-any-return]
            whole = self._joint.output([gate, up], x)
            if whole is not None:
                factor, values = whole.chunk(2, dim=-1)
                return self.down_proj(self.act_fn(factor).mul_(values))  # type: ignore[no-any-return]
        return super().forward(x)  # type: ignore[no-any-return]


@functools.cache
def _fused(layer: type[nn.Module]) -> type[nn.Module]:
    return type(layer.__name__, (GatedMLP, layer), {})


def fuse_gates(model: nn.Module) -> None:
    """Let a packed model's gated layers, where they and their activation are known, work as above."""
    for module in model.modules():
        known = type(module).__name__ in FAMILIES and type(module.act_fn).__name__ in ACTIVATIONS
        if known and not isinstance(module, GatedMLP):
            module.__class__ = _fused(type(module))  # type: ignore[arg-type]
            module._gate, module._up, module._joint = PackedWeight(), PackedWeight(), Joint()  # type: ignore[assignment]
