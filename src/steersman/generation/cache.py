"""Keys and values of the running sequences, and attention over them: the engine's side of `models.attention`.

A forward call takes one packed row with the new tokens of many sequences. `CachedAttention` stores their keys and
values behind those of each sequence's past, and lets every new token attend to its own sequence:

- sequences with one new token (decoding): one call a slab, with the query heads that share a key/value head as rows
  of one product, so that every key and value is read once;
- sequences with several (prefill): one by one.

Sequences live in slabs by size, so that a long one costs the others neither memory nor time. Sliding-window layers
keep the whole past (prefixes are reused whole) but read no further back than their window.

Shapes: L layers, N slots of a slab, K key/value heads, H query heads, G = H / K, C capacity, D head size, T tokens of
the row, n of them from one sequence or slab, S keys attended to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from mmap import mmap
from typing import Any

import torch
from torch import Tensor

from steersman.models.attention import attention, causal_attention

MIN_CAPACITY = 128


class Slab:
    """Slots of one capacity; rows 0 to len(slots) - 1 of `kv_L2NKCD` are taken. Free places hold finite numbers."""

    def __init__(self, kv_L2NKCD: Tensor) -> None:
        self.kv_L2NKCD = kv_L2NKCD
        self.slots: list[Slot] = []

    @property
    def capacity(self) -> int:
        return self.kv_L2NKCD.shape[4]

    def add(self, slot: "Slot") -> None:
        """Give a slot the next row; the slab doubles when it is full."""
        num_rows = self.kv_L2NKCD.shape[2]
        if len(self.slots) == num_rows:
            L, two, N, K, C, D = self.kv_L2NKCD.shape
            larger = _zeros((L, two, 2 * N, K, C, D), self.kv_L2NKCD.dtype, self.kv_L2NKCD.device)
            for each in self.slots:
                larger[:, :, each.row, :, : each.length] = self.kv_L2NKCD[:, :, each.row, :, : each.length]
            self.kv_L2NKCD = larger
        slot.slab, slot.row = self, len(self.slots)
        self.slots.append(slot)

    def remove(self, slot: "Slot") -> None:
        """Free a slot's row; the last one moves there, so that rows in use stay together."""
        last = self.slots.pop()
        if last is not slot:
            self.kv_L2NKCD[:, :, slot.row, :, : last.length] = self.kv_L2NKCD[:, :, last.row, :, : last.length]
            last.row = slot.row
            self.slots[slot.row] = last


@dataclass(eq=False)
class Slot:
    """Where one sequence's keys and values are, and how many tokens they cover."""

    slab: Slab = field(init=False)
    row: int = field(init=False)
    length: int = 0

    def read(self, start: int, end: int) -> Tensor:
        """A copy of the keys and values of tokens [start, end): L x 2 x K x n x D."""
        return self.slab.kv_L2NKCD[:, :, self.row, :, start:end].clone()

    def append(self, kv_L2KnD: Tensor) -> None:
        """Store keys and values of the next n tokens, computed elsewhere."""
        end = self.length + kv_L2KnD.shape[3]
        self.slab.kv_L2NKCD[:, :, self.row, :, self.length : end] = kv_L2KnD
        self.length = end


class KVCache:
    """All slots, in slabs whose capacities are powers of two.

    Args:
        num_layers, num_heads, head_size: L, K and D of the model.
        dtype, device: of the keys and values.
    """

    def __init__(
        self, num_layers: int, num_heads: int, head_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._sizes = (num_layers, num_heads, head_size)
        self._dtype, self._device = dtype, device
        self._slabs: dict[int, Slab] = {}

    def allocate(self, length: int) -> Slot:
        """An empty slot with room for `length` tokens."""
        slot = Slot()
        self._slab(length).add(slot)
        return slot

    def reserve(self, slot: Slot, length: int) -> None:
        """Make room for `length` tokens; the slot moves to a larger slab if it has to."""
        if length > slot.slab.capacity:
            kv_L2KnD = slot.read(0, slot.length)
            self.release(slot)
            self._slab(length).add(slot)
            slot.length = 0
            slot.append(kv_L2KnD)

    def release(self, slot: Slot) -> None:
        """Give a slot's place back; an empty slab stays, since another is wanted soon and zeros cost time."""
        slot.slab.remove(slot)

    def _slab(self, length: int) -> Slab:
        capacity = max(MIN_CAPACITY, 1 << (length - 1).bit_length())
        if capacity not in self._slabs:
            L, K, D = self._sizes
            self._slabs[capacity] = Slab(_zeros((L, 2, 1, K, capacity, D), self._dtype, self._device))
        return self._slabs[capacity]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; in main memory, pages that the system makes when they are first written to: most of a slab never is."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap(-1, math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)


def row_order(slot: Slot, num_new: int) -> tuple[bool, int, int]:
    """Sort key of the sequences in a packed row: those of one slab that decode stand together, as their slots do."""
    return num_new > 1, slot.slab.capacity, slot.row


class CachedAttention:
    """The attention of one forward call.

    Args:
        segments: the row's sequences, sorted by `row_order`, each with how many new tokens it has there. Their slots
            have room for them; `Slot.length` counts the tokens before them, during the whole call.
    """

    def __init__(self, segments: Sequence[tuple[Slot, int]]) -> None:
        self._parts: list[_Decode | _Prefill] = []
        start = 0
        for (decoding, _), group in groupby(segments, key=lambda segment: (segment[1] == 1, segment[0].slab.capacity)):
            slots = list(group)
            if decoding:
                self._parts.append(_Decode([slot for slot, _ in slots], start))
                start += len(slots)
            else:
                for slot, num_new in slots:
                    self._parts.append(_Prefill(slot, start, num_new))
                    start += num_new

    def attend(
        self,
        layer_idx: int,
        query_1HTD: Tensor,
        key_1KTD: Tensor,
        value_1KTD: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """The attention output, 1 x T x H x D."""
        kv_2TKD = torch.cat([key_1KTD, value_1KTD]).transpose(1, 2)
        query_THD = query_1HTD[0].transpose(0, 1)
        out_THD = query_THD.new_empty(query_THD.shape)
        for part in self._parts:
            part.attend(layer_idx, query_THD, kv_2TKD, out_THD, sliding_window, scaling=scaling, softcap=softcap)
        return out_THD[None]


class _Decode:
    """Sequences of one slab with one new token each, side by side in the row."""

    def __init__(self, slots: list[Slot], first_token: int) -> None:
        self._slab = slots[0].slab
        self._tokens = slice(first_token, first_token + len(slots))
        self._lengths = [slot.length + 1 for slot in slots]
        device = self._slab.kv_L2NKCD.device
        self._row_n = torch.tensor([slot.row for slot in slots], device=device)
        self._position_n = torch.tensor([slot.length for slot in slots], device=device)
        self._views: dict[int | None, tuple[int, Tensor | None]] = {}

    def attend(
        self,
        layer_idx: int,
        query_THD: Tensor,
        kv_2TKD: Tensor,
        out_THD: Tensor,
        window: int | None,
        **options: Any,
    ) -> None:
        kv_2NKCD = self._slab.kv_L2NKCD[layer_idx]
        kv_2NKCD[:, self._row_n, :, self._position_n] = kv_2TKD[:, self._tokens].transpose(0, 1)
        first, mask_N11S = self._view(window)
        N, K, (_, H, D) = len(self._slab.slots), kv_2NKCD.shape[2], query_THD.shape
        query_NKGD = query_THD[self._tokens].reshape(-1, K, H // K, D)
        all_decode = len(self._lengths) == N
        if not all_decode:  # rows that prefill, or wait, compute something that nobody reads
            query_NKGD = query_NKGD.new_zeros(N, K, H // K, D).index_copy_(0, self._row_n, query_NKGD)
        key_NKSD, value_NKSD = kv_2NKCD[:, :N, :, first : max(self._lengths)]
        out_NKGD = attention(query_NKGD, key_NKSD, value_NKSD, mask=mask_N11S, **options)
        out_THD[self._tokens] = (out_NKGD if all_decode else out_NKGD[self._row_n]).reshape(-1, H, D)

    def _view(self, window: int | None) -> tuple[int, Tensor | None]:
        """The first position that is attended to at all, and the mask from there on, as numbers that are added to the
        scores: every layer would convert a bool one. None where all see all."""
        if window not in self._views:
            ends = self._lengths
            starts = [0 if window is None else max(0, end - window) for end in ends]
            mask_N11S = None
            if len(set(starts)) > 1 or len(set(ends)) > 1:
                position_S = torch.arange(min(starts), max(ends), device=self._row_n.device)
                start_n1, end_n1 = (torch.tensor(bound, device=position_S.device)[:, None] for bound in (starts, ends))
                hidden_nS = (position_S < start_n1) | (position_S >= end_n1)
                mask_NS = self._slab.kv_L2NKCD.new_zeros(len(self._slab.slots), len(position_S))
                mask_NS[self._row_n] = mask_NS.new_zeros(hidden_nS.shape).masked_fill_(hidden_nS, -math.inf)
                mask_N11S = mask_NS[:, None, None, :]
            self._views[window] = (min(starts), mask_N11S)
        return self._views[window]


class _Prefill:
    """One sequence with several new tokens."""

    def __init__(self, slot: Slot, first_token: int, num_new: int) -> None:
        self._slot = slot
        self._first_token = first_token
        self._num_new = num_new

    def attend(
        self,
        layer_idx: int,
        query_THD: Tensor,
        kv_2TKD: Tensor,
        out_THD: Tensor,
        window: int | None,
        **options: Any,
    ) -> None:
        past = self._slot.length
        tokens = slice(self._first_token, self._first_token + self._num_new)
        kv_21KCD = self._slot.slab.kv_L2NKCD[layer_idx, :, self._slot.row, None]
        kv_21KCD[:, 0, :, past : past + self._num_new] = kv_2TKD[:, tokens].transpose(1, 2)
        query_1HnD = query_THD[tokens].transpose(0, 1)[None]
        key_1KSD, value_1KSD = kv_21KCD[..., : past + self._num_new, :]
        out_1HnD = causal_attention(query_1HnD, key_1KSD, value_1KSD, window=window, **options)
        out_THD[tokens] = out_1HnD[0].transpose(0, 1)
