"""Packing by hand."""

import numpy as np
import torch

from steersman.batches.packing import first_fit, join, pack, pack_all
from steersman.batches.sequences import Sequences, shift, shift_family


def sequence(*ids, trained):
    """A sequence that goes in as `ids`, with 100 as its last target."""
    return shift(np.array([*ids, 100]), np.isin(np.arange(len(ids) + 1), np.array(trained) + 1))


def test_first_fit_by_hand():
    assert first_fit([5, 6, 4, 3, 9, 1], capacity=10) == [[0, 2, 5], [1, 3], [4]]
    assert first_fit([12, 1], capacity=10) == [[0], [1]]


def test_first_fit_never_exceeds_capacity_and_keeps_everything():
    lengths = np.random.default_rng(0).integers(1, 50, 200).tolist()
    rows = first_fit(lengths, 64)
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    assert sorted(i for row in rows for i in row) == list(range(200))


def test_row_by_hand():
    row = join([sequence(7, 8, 9, trained=[1, 2]), sequence(5, 6, trained=[1])])
    assert row.input_ids_1T.tolist() == [[7, 8, 9, 5, 6]]
    assert row.position_ids_1T.tolist() == [[0, 1, 2, 0, 1]]
    assert (row.bounds, row.parents) == ([0, 3, 5], [-1, -1])
    assert row.trained_M.tolist() == [1, 2, 4]
    assert row.targets_M.tolist() == [9, 100, 100]
    assert (row.num_tokens, row.num_trained) == (5, 3)
    assert row.input_ids_1T.dtype == row.position_ids_1T.dtype == row.trained_M.dtype == torch.int64


def test_a_row_of_families_by_hand():
    one = shift_family(
        [(np.array([1, 2, 3, 9]), np.array([0, 0, 0, 1])), (np.array([1, 2, 4, 8]), np.array([0, 1, 0, 1]))]
    )
    row = join([sequence(7, 8, trained=[1]), one])
    assert row.input_ids_1T.tolist() == [[7, 8, 1, 2, 3, 4]]
    assert row.position_ids_1T.tolist() == [[0, 1, 0, 1, 2, 2]]
    assert (row.bounds, row.parents) == ([0, 2, 4, 5, 6], [-1, -1, 1, 1])
    assert row.trained_M.tolist() == [1, 4, 2, 5]
    assert row.targets_M.tolist() == [100, 9, 2, 8]


def test_pack_all_equals_pack_and_stops_at_the_limit():
    sequences = Sequences(
        ids_S=np.arange(12, dtype=np.int32),
        loss_mask_S=np.ones(12, bool),
        bounds=np.array([0, 3, 7, 9, 12]),
        families=np.arange(5),
        lengths=np.array([2, 3, 1, 2]),
    )
    packed = pack([sequences[i] for i in range(4)], 5)
    assert [row.num_tokens for row in packed] == [5, 3]  # lengths 2, 3, 1, 2
    for one, other in zip(packed, pack_all(sequences, 5), strict=True):
        assert torch.equal(one.input_ids_1T, other.input_ids_1T)
        assert torch.equal(one.targets_M, other.targets_M)
    assert len(list(pack_all(sequences, 5, limit=1))) == 1
