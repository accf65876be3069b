"""Whole families of sequences packed into rows: no padding, no cut, no attention from one sequence to another.

In: shifted families. Out: `PackedBatch`, one row of at most `micro_tokens` inputs, what one forward call takes.

Shapes: N chunks in a row of T tokens, M of which predict a trained token, of B sequences with A values each. Padded
tensors: B sequences, S tokens, Q = S - 1 states.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from steersman.batches.sequences import Floats, Ints, Sequences, Shifted, shift


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch.

    Attributes:
        input_ids_1T: i64.
        position_ids_1T: i64, in each token's sequence.
        bounds: of the chunks, from 0 to T (N + 1 numbers).
        parents: the chunk that each continues (see `sequences.Shifted`), -1 for none.
        trained_M: i64, positions of the row whose hidden state predicts a trained token.
        targets_M: i64, those tokens.
        sizes: how many of them each sequence has.
        values_BA: f32, what else is known of each sequence (see `sequences.Shifted`).
    """

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    bounds: Sequence[int]
    parents: Sequence[int]
    trained_M: Tensor
    targets_M: Tensor
    sizes: Sequence[int]
    values_BA: Tensor

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
            values_BA=self.values_BA.to(device),
        )


def join(families: Sequence[Shifted]) -> PackedBatch:
    """The row made of these families, in order."""
    starts = [0, *itertools.accumulate(len(family.inputs_T) for family in families)]
    chunks = [0, *itertools.accumulate(len(family.parents_N) for family in families)]
    placed = list(zip(families, starts, chunks, strict=False))
    bounds = np.concatenate([*(family.starts_N + start for family, start, _ in placed), [starts[-1]]])
    parents = np.concatenate([np.where(f.parents_N < 0, -1, f.parents_N + chunk) for f, _, chunk in placed])
    return PackedBatch(
        input_ids_1T=_tensor([family.inputs_T for family in families])[None],
        position_ids_1T=_tensor([family.positions_T for family in families])[None],
        bounds=bounds.tolist(),
        parents=parents.tolist(),
        trained_M=_tensor([family.trained_M + start for family, start, _ in placed]),
        targets_M=_tensor([family.targets_M for family in families]),
        sizes=np.concatenate([family.sizes_B for family in families]).tolist(),
        values_BA=_tensor([family.values_BA for family in families]),
    )


def _tensor(parts: Sequence[Ints | Floats]) -> Tensor:
    whole = np.concatenate(parts)
    return torch.from_numpy(whole if whole.dtype == np.float32 else whole.astype(np.int64))


def idle() -> PackedBatch:
    """A row of one token with nothing to train: what a process without a share of a step runs beside the others."""
    zero, nothing = np.zeros(1, np.int64), np.empty(0, np.int64)
    return join([Shifted(zero, zero, zero, zero - 1, nothing, nothing, nothing, np.empty((0, 0), np.float32))])


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices by row: each family, in order, goes into the first row with room for it.

    One longer than `capacity` gets a row of its own.
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


def pack(families: Sequence[Shifted], micro_tokens: int) -> list[PackedBatch]:
    """Micro-batches of at most `micro_tokens` inputs that hold all the families; an idle one when there are none."""
    if not families:
        return [idle()]
    rows = first_fit([len(family.inputs_T) for family in families], micro_tokens)
    return [join([families[index] for index in row]) for row in rows]


def pack_all(sequences: Sequences, micro_tokens: int, limit: int | None = None) -> Iterator[PackedBatch]:
    """A whole data set as micro-batches, at most `limit` of them: what validation runs over."""
    rows = first_fit(sequences.lengths.tolist(), micro_tokens)
    return (join([sequences[index] for index in row]) for row in rows[:limit])


Places = tuple[Tensor, Tensor]
"""Where some states lie in a [B, Q] tensor: their sequences and their states, i64[M] each. It indexes such a tensor."""


def pack_padded(tokens_BS: Tensor, mask_BQ: Tensor, micro_tokens: int) -> list[tuple[Places, PackedBatch]]:
    """Padded sequences as micro-batches, each with the places of the states that are read in it, in order.

    State q comes before token q + 1, and is read where `mask_BQ[q]`. Sequences where none is are left out.
    """
    read_B = mask_BQ.any(1).nonzero()[:, 0]
    loss_mask_BS = torch.cat([torch.zeros_like(mask_BQ[:, :1]), mask_BQ], dim=1).numpy(force=True)
    tokens = tokens_BS.numpy(force=True)
    families = [shift(tokens[index], loss_mask_BS[index]) for index in read_B.tolist()]
    rows = first_fit([len(family.inputs_T) for family in families], micro_tokens)
    packed = []
    for row in rows:
        sequence_M, state_M = mask_BQ[read_B[row]].nonzero(as_tuple=True)
        packed.append(((read_B[row][sequence_M], state_M), join([families[index] for index in row])))
    return packed
