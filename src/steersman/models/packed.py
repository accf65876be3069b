"""Weights in the order in which the processor multiplies them, for inference in bf16 on a CPU.

A product of few rows with a plain weight runs at a quarter of the rate at which memory is read: the kernel jumps from
row to row. Once laid out in the kernel's own blocks the weight is read at up to twice that speed, and the products are
the same to the last bit. The copy costs as much memory as the weight, and is made again when the weight has changed.

Shapes: I inputs, O outputs of a layer.
"""

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEMORY_SHARE = 0.25
"""Most of the free memory that copies may take."""


class PackedWeight:
    """The copy of one weight."""

    def __init__(self) -> None:
        self._weight: Tensor | None = None  # what it was made of, and of which of its versions
        self._version = -1
        self._packed: Any = None

    def linear(self, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """`x @ weight_OI.T + bias_O`; by the plain weight where gradients are wanted, or it is no bf16 on a CPU."""
        if torch.is_grad_enabled() or weight_OI.is_inference() or not _is_bf16_on_cpu(weight_OI):
            return F.linear(x, weight_OI, bias_O)
        if weight_OI is not self._weight or weight_OI._version != self._version:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach())
            self._weight, self._version = weight_OI, weight_OI._version
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, bias_O, "none", [], "")  # type: ignore[no-any-return]


class PackedLinear(nn.Linear):
    """A linear layer with such a copy, which is neither saved nor copied with it."""

    _copy: PackedWeight

    def forward(self, input: Tensor) -> Tensor:
        return self._copy.linear(input, self.weight, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": PackedWeight()}


def pack(model: nn.Module) -> bool:
    """Let all linear layers of a model keep copies, if that pays here and there is memory for them; whether it does."""
    has_kernels: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    linears = [module for module in model.modules() if type(module) is nn.Linear and _is_bf16_on_cpu(module.weight)]
    num_bytes = sum(module.weight.nbytes for module in linears)
    if not (has_kernels and linears) or num_bytes > MEMORY_SHARE * _free_memory():
        return False
    for module in linears:
        module.__class__ = PackedLinear
        module._copy = PackedWeight()  # type: ignore[assignment]
    return True


def _is_bf16_on_cpu(weight_OI: Tensor) -> bool:
    return weight_OI.dtype == torch.bfloat16 and weight_OI.device.type == "cpu"


def _free_memory() -> int:
    """Bytes; 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
