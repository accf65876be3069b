"""Weights in the order in which the processor multiplies them, for products in bf16 on a CPU.

A product of few rows with a plain weight runs at a quarter of the rate at which memory is read: the kernel jumps from
row to row. Once laid out in the kernel's own blocks the weight is read at up to twice that speed, and the products are
the same to the last bit. The copy costs as much memory as the weight, and is made again when the weight has changed.

Layers with the same input are one product: each alone is too short a read to come near the memory's rate.

Shapes: R rows, I inputs, O outputs of all layers of a product.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steersman.models.derived import Derived
from steersman.models.same_input import SameInput, same_input

MEMORY_SHARE = 0.25
"""Most of the free memory that copies may take."""


class PackedWeight:
    """The copy of a weight, or of several with the same inputs, one below the other."""

    def __init__(self) -> None:
        self._packed = Derived(_reordered)

    def linear(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        bias_O: Tensor | None = None,
        activation: tuple[str, str] = ("none", ""),
    ) -> Tensor:
        """`activation(x @ weight_OI.T + bias_O)`, for weights that `can_pack`. Activations are oneDNN's, with the
        algorithm; rounded once."""
        return _multiply(x, self._packed.of(weights), bias_O, activation)

    def gate(self, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, factor: Tensor) -> Tensor:
        """`factor * (x @ weight_OI.T + bias_O)`, rounded once."""
        packed = self._packed.of([weight_OI])
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, packed, bias_O, "mul")  # type: ignore[no-any-return]


class _Product:
    """One product for layers with the same input."""

    def __init__(self, layers: Sequence["PackedLinear"]) -> None:
        self.layers = layers
        self._weight = PackedWeight()
        self._bias = Derived(_joined)
        self._outputs = SameInput[PackedLinear]()

    def output(self, layer: "PackedLinear", x: Tensor) -> Tensor:
        """What one of the layers makes of its input; by its plain weight once a weight is none that `can_pack`."""

        def compute() -> Mapping[PackedLinear, Tensor]:
            whole = self.whole(x)
            if whole is None:
                return {layer: F.linear(x, layer.weight, layer.bias)}
            parts = torch.split(whole, [each.out_features for each in self.layers], dim=-1)
            return dict(zip(self.layers, parts, strict=True))

        return self._outputs.of(layer, x, compute)

    def whole(self, x: Tensor) -> Tensor | None:
        """The outputs of all layers side by side; None once a weight is none that `can_pack`."""
        weights = [layer.weight for layer in self.layers]
        if not all(map(can_pack, weights)):
            return None
        biases = [layer.bias for layer in self.layers if layer.bias is not None]
        return self._weight.linear(x, weights, self._bias.of(biases) if biases else None)


class PackedLinear(nn.Linear):
    """A linear layer with such a copy, which is neither saved nor copied with it.

    Where gradients are wanted it uses the plain weight; an adapter around it asks for the copies.
    """

    product: _Product
    _transposed: Derived[Tensor]

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return F.linear(input, self.weight, self.bias)
        return self.product.output(self, input)

    def backward_product(self, gradient_RO: Tensor) -> Tensor:
        """`gradient_RO @ weight_OI`, by a copy of its own."""
        if not can_pack(self.weight):
            return gradient_RO @ self.weight
        return _multiply(gradient_RO, self._transposed.of([self.weight]), None)


def pack(model: nn.Module) -> bool:
    """Let all linear layers of a model keep copies, if that pays here and there is memory for them; whether it does."""
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        return True
    products = list(_products(model))
    num_bytes = sum(layer.weight.nbytes for layers in products for layer in layers)
    if not num_bytes or num_bytes > MEMORY_SHARE * _free_memory():
        return False
    for layers in products:
        for layer in layers:
            layer.__class__ = PackedLinear
        packed = [layer for layer in layers if isinstance(layer, PackedLinear)]
        product = _Product(packed)
        for each in packed:
            each.product, each._transposed = product, Derived(_reordered_transpose)
    return True


def _products(model: nn.Module) -> Iterator[list[nn.Linear]]:
    """The layers that can be packed, those with the same input together; also those that peft has wrapped."""
    for module in model.modules():
        if not hasattr(module, "base_layer"):
            children = {name: getattr(layer, "base_layer", layer) for name, layer in module.named_children()}
            linears = {name: layer for name, layer in children.items() if type(layer) is nn.Linear}
            for has_bias in (False, True):
                alike = {name: layer for name, layer in linears.items() if (layer.bias is not None) == has_bias}
                yield from same_input({name: layer for name, layer in alike.items() if can_pack(layer.weight)})


def can_pack(weight_OI: Tensor) -> bool:
    """Whether there is a faster order for this weight, and whoever changes it leaves a trace."""
    on_cpu = weight_OI.dtype == torch.bfloat16 and weight_OI.device.type == "cpu"
    has_kernels: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return on_cpu and has_kernels and not weight_OI.is_inference()


def _multiply(x: Tensor, packed: Tensor, bias_O: Tensor | None, activation: tuple[str, str] = ("none", "")) -> Tensor:
    name, algorithm = activation
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias_O, name, [], algorithm)  # type: ignore[no-any-return]


def _reordered(weights: Sequence[Tensor]) -> Any:
    return torch.ops.mkldnn._reorder_linear_weight(_joined(weights))


def _reordered_transpose(weights: Sequence[Tensor]) -> Any:
    (weight_OI,) = weights
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().T.contiguous())


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].detach() if len(tensors) == 1 else torch.cat([tensor.detach() for tensor in tensors])


def _free_memory() -> int:
    """Bytes; 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
