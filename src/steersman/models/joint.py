"""Layers with the same input as one product, adapters included, where nothing wants gradients.

    y = x W^T + b + s a B^T      a = x A^T

W, b and A of the layers lie one below the other; B has a block for each layer, and zeros elsewhere.

Shapes: R rows, I inputs, O outputs of all layers, N ranks of their adapters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steersman.models.derived import Derived
from steersman.models.low_rank import LeanLora
from steersman.models.packed import PackedLinear


class Joint:
    """Such a product. It keeps what it needs of the adapters until they change."""

    def __init__(self) -> None:
        self._narrowing, self._widening = Derived(_below), Derived(_blocks)

    def output(self, layers: Sequence[nn.Module], x: Tensor) -> Tensor | None:
        """The layers' outputs side by side, for the caller to write to if need be. None if these layers are no one
        product: not packed together, not adapted alike, or one works in peft's way."""
        bases = [getattr(layer, "base_layer", layer) for layer in layers]
        if not isinstance(bases[0], PackedLinear) or bases[0].product.layers != bases:
            return None
        adapted = [layer for layer in layers if isinstance(layer, LeanLora)]
        if not adapted:
            return bases[0].product.whole(x) if bases == layers else None
        names = {layer.plain_adapter(x) for layer in adapted}
        scales = {layer.scaling.get(name) for layer in adapted for name in names}
        if len(adapted) < len(layers) or len(names) > 1 or len(scales) > 1 or names == {None}:
            return None
        whole = bases[0].product.whole(x)
        if whole is not None:
            (name,), (scale,), like = names, scales, bases[0].weight
            narrowing_NI = self._narrowing.of([*(layer.lora_A[name].weight for layer in adapted), like])
            widening_ON = self._widening.of([*(layer.lora_B[name].weight for layer in adapted), like])
            whole.flatten(0, -2).addmm_(x.flatten(0, -2) @ narrowing_NI.T, widening_ON.T, alpha=scale)
        return whole


def _below(tensors: Sequence[Tensor]) -> Tensor:
    """All but the last, one below the other, as precise as the last."""
    *parts, like = (tensor.detach() for tensor in tensors)
    return torch.cat(parts).to(like.dtype)


def _blocks(tensors: Sequence[Tensor]) -> Tensor:
    """All but the last along a diagonal, as precise as the last."""
    *parts, like = (tensor.detach() for tensor in tensors)
    diagonal: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    return diagonal.to(like.dtype)
