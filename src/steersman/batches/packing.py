"""Whole sequences packed into rows: no padding, no cut, no attention across sequences (`starts_N1` says where each is).

In: shifted sequences. Out: `PackedBatch`, one row of at most `micro_tokens` inputs, what one forward call takes.

Shapes: N sequences in a row of T tokens, M of which predict a trained token.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from steersman.batches.sequences import Sequences, Shifted


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch.

    Attributes:
        input_ids_1T: i64.
        position_ids_1T: i64, from 0 in each sequence.
        starts_N1: i32, cumulative bounds of the sequences, from 0 to T (N + 1 numbers); stays on the CPU.
        trained_M: i64, positions of the row whose hidden state predicts a trained token.
        targets_M: i64, those tokens.
    """

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    starts_N1: Tensor
    trained_M: Tensor
    targets_M: Tensor

    @property
    def num_tokens(self) -> int:
        """Inputs that a trained token needs: all of them, or none in an idle row."""
        return self.input_ids_1T.shape[1] if self.num_trained else 0

    @property
    def num_trained(self) -> int:
        return len(self.targets_M)

    def to(self, device: torch.device) -> "PackedBatch":
        return replace(
            self,
            input_ids_1T=self.input_ids_1T.to(device),
            position_ids_1T=self.position_ids_1T.to(device),
            trained_M=self.trained_M.to(device),
            targets_M=self.targets_M.to(device),
        )


def join(sequences: Sequence[Shifted]) -> PackedBatch:
    """The row made of these sequences, in order."""
    starts = [0, *itertools.accumulate(len(sequence.inputs_T) for sequence in sequences)]
    row = np.concatenate([sequence.inputs_T for sequence in sequences])
    positions = np.concatenate([np.arange(len(sequence.inputs_T)) for sequence in sequences])
    trained = np.concatenate([s.trained_M + start for s, start in zip(sequences, starts, strict=False)])
    targets = np.concatenate([sequence.targets_M for sequence in sequences])
    return PackedBatch(
        input_ids_1T=torch.from_numpy(row.astype(np.int64))[None],
        position_ids_1T=torch.from_numpy(positions)[None],
        starts_N1=torch.tensor(starts, dtype=torch.int32),
        trained_M=torch.from_numpy(trained),
        targets_M=torch.from_numpy(targets.astype(np.int64)),
    )


def idle() -> PackedBatch:
    """A row of one token with nothing to train: what a process without a share of a step runs beside the others."""
    nothing = np.empty(0, np.int64)
    return join([Shifted(np.zeros(1, np.int64), nothing, nothing)])


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices by row: each sequence, in order, goes into the first row with room for it.

    A sequence longer than `capacity` gets a row of its own.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index, length in enumerate(lengths):
        for row, free in enumerate(room):
            if length <= free:
                rows[row].append(index)
                room[row] -= length
                break
        else:
            rows.append([index])
            room.append(capacity - length)
    return rows


def pack(sequences: Sequence[Shifted], micro_tokens: int) -> list[PackedBatch]:
    """Micro-batches of at most `micro_tokens` inputs that hold all the sequences; an idle one when there are none."""
    if not sequences:
        return [idle()]
    rows = first_fit([len(sequence.inputs_T) for sequence in sequences], micro_tokens)
    return [join([sequences[index] for index in row]) for row in rows]


def pack_all(sequences: Sequences, micro_tokens: int, limit: int | None = None) -> Iterator[PackedBatch]:
    """A whole data set as micro-batches, at most `limit` of them: what validation runs over."""
    rows = first_fit(sequences.lengths.tolist(), micro_tokens)
    return (join([sequences[index] for index in row]) for row in rows[:limit])
