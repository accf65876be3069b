"""Something made of weights, kept until one of them changes."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

Made = TypeVar("Made")


class Derived(Generic[Made]):
    """What `make` makes of some tensors; made again when one is another tensor, or was written to, since.

    PyTorch counts what is written to a tensor but for those born in inference mode, which must not be given.
    """

    def __init__(self, make: Callable[[Sequence[Tensor]], Made]) -> None:
        self._make = make
        self._made: Made | None = None
        self._sources: list[tuple[Tensor, int]] = []

    def of(self, tensors: Sequence[Tensor]) -> Made:
        """What is made of these as they are now."""
        same = len(tensors) == len(self._sources) and all(
            tensor is source and tensor._version == version
            for tensor, (source, version) in zip(tensors, self._sources, strict=True)
        )
        if not same or self._made is None:
            self._made = self._make(tensors)
            self._sources = [(tensor, tensor._version) for tensor in tensors]
        return self._made

    def __getstate__(self) -> dict[str, Any]:
        return {"make": self._make}  # a copy has other tensors, whose counts begin anew

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
