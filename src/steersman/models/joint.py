"""Layers with the same input as one product, adapters included, where nothing wants gradients.

    y = x W^T + b + s a B^T      a = x A^T

W, b and A of the layers lie one below the other; B has a block for each layer, and zeros elsewhere.

Shapes: R rows, I inputs, O outputs of all layers, N ranks of their adapters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steersman.models.derived import Derived
from steersman.models.packed import PackedLinear


class Joint:
    """Such a product."""

    def __init__(self) -> None:
        self._widening = Derived(_blocks)

    def output(self, layers: Sequence[nn.Module], x: Tensor) -> Tensor | None:
        """The layers' outputs side by side, for the caller to write to if need be. None if these layers are no one
        product: not packed together, not adapted alike, or one works in peft's way."""
        bases = [getattr(layer, "base_layer", layer) for layer in layers]
        if not isinstance(bases[0], PackedLinear) or bases[0].product.layers != bases:
            return None
        if bases == layers:
            return bases[0].product.whole(x)
        from steersman.models.low_rank import LeanLora  # with peft, which a model without adapters does not need

        adapted = [layer for layer in layers if isinstance(layer, LeanLora)]
        if len(adapted) < len(layers):
            return None
        name, *others = {layer.plain_adapter(x) for layer in adapted}
        if name is None or others:
            return None
        scale, *others = {layer.scaling[name] for layer in adapted}
        if others or (whole := bases[0].product.whole(x)) is None:
            return None
        narrow_RN = x.flatten(0, -2) @ adapted[0].joint_narrowing(name).T
        widening_ON = self._widening.of([*(layer.lora_B[name].weight for layer in adapted), bases[0].weight])
        whole.flatten(0, -2).addmm_(narrow_RN, widening_ON.T, alpha=scale)
        return whole


def _blocks(tensors: Sequence[Tensor]) -> Tensor:
    """All but the last along a diagonal, as precise as the last."""
    *parts, like = (tensor.detach() for tensor in tensors)
    diagonal: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    return diagonal.to(like.dtype)
