"""Layers that are called one after another with the same input, and work that one of them does for all."""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from torch import Tensor, nn

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Such layers of a module, as `transformers` names them."""

Layer = TypeVar("Layer", bound=nn.Module)


def same_input(children: Mapping[str, Layer]) -> Iterator[list[Layer]]:
    """A module's layers by name -> those with the same input together, in order of the call; each other one alone."""
    left = dict(children)
    for names in TOGETHER:
        together = [left.pop(name) for name in names if name in left]
        if together:
            yield together
    for layer in left.values():
        yield [layer]


class SameInput(Generic[Layer]):
    """What layers make of one input, from when the first of them is called with it until the last is."""

    def __init__(self) -> None:
        self._known: tuple[Tensor | None, dict[Layer, Tensor]] = None, {}  # an input, and outputs not asked for

    def of(self, layer: Layer, x: Tensor, compute: Callable[[], Mapping[Layer, Tensor]]) -> Tensor:
        """What a layer makes of x; `compute` gives that of all, its own at least. Threads may call at once."""
        known, outputs = self._known
        if x is not known or layer not in outputs:
            outputs = dict(compute())
            self._known = x, outputs
        output = outputs.pop(layer)
        if not outputs:
            self._known = None, {}
        return output
