"""Items parked on disk so that data larger than memory can be shuffled and regrouped: memory holds 16 bytes an item."""

import operator
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import SupportsIndex

import numpy as np

from steersman.errors import named_errors

Items = np.ndarray[tuple[int], np.dtype[np.int64]]
"""Numbers of items, in the order in which they are to be read."""


class Spool:
    """Items of bytes in a temporary file without a name (a killed run leaves nothing behind), each under a key.

    All are appended before the first is read.

    Args:
        folder: where the file lives; made when absent. The items' size must fit there once.
    """

    def __init__(self, folder: Path) -> None:
        with named_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed on exit)
        self._folder = folder
        self._keys = array("q")
        self._bounds = array("q", [0])

    def __len__(self) -> int:
        return len(self._keys)

    def append(self, key: int, item: bytes) -> None:
        """Park an item under a key (63 bits, such as `randomness.derive_seed` gives)."""
        with named_errors(self._folder):
            self._file.write(item)
        self._keys.append(key)
        self._bounds.append(self._bounds[-1] + len(item))

    @property
    def keys(self) -> Items:
        """The key of every item."""
        return np.array(self._keys, dtype=np.int64)

    def __getitem__(self, index: SupportsIndex) -> bytes:
        number = operator.index(index)
        start, end = self._bounds[number], self._bounds[number + 1]
        with named_errors(self._folder):  # the first seek writes what is still buffered
            self._file.seek(start)
            return self._file.read(end - start)

    def groups(self) -> "Groups":
        """The items grouped by key."""
        return Groups(self.keys)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with named_errors(self._folder):
            self._file.close()


class Groups:
    """Items (by number, from 0) of equal key: groups in order of first appearance, items of a group in their order."""

    def __init__(self, keys: Items) -> None:
        _, first, inverse, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        by_appearance = np.argsort(first)
        number = np.empty_like(by_appearance)
        number[by_appearance] = np.arange(len(by_appearance))
        self._items = np.argsort(number[inverse], kind="stable")
        self._sizes = sizes[by_appearance]
        self._starts = np.cumsum(self._sizes) - self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[Items]:
        return (self._items[start : start + size] for start, size in zip(self._starts, self._sizes, strict=True))

    def items(self, order: Items) -> Items:
        """The items of the groups with these numbers, one group after the other."""
        sizes = self._sizes[order]
        within_group = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        items: Items = self._items[np.repeat(self._starts[order], sizes) + within_group]
        return items
