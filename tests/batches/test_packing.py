"""Packing by hand."""

import numpy as np
import torch

from steersman.batches.packing import first_fit, join, pack, pack_all
from steersman.batches.sequences import Sequences, Shifted


def sequence(*ids, trained):
    return Shifted(np.array(ids), np.array(trained), np.array([100 + t for t in trained]))


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
    assert row.starts_N1.tolist() == [0, 3, 5]
    assert row.trained_M.tolist() == [1, 2, 4]
    assert row.targets_M.tolist() == [101, 102, 101]
    assert (row.num_tokens, row.num_trained) == (5, 3)
    assert row.input_ids_1T.dtype == row.position_ids_1T.dtype == row.trained_M.dtype == torch.int64
    assert row.starts_N1.dtype == torch.int32


def test_pack_all_equals_pack_and_stops_at_the_limit():
    sequences = Sequences(
        ids_S=np.arange(12, dtype=np.int32), loss_mask_S=np.ones(12, bool), bounds=np.array([0, 3, 7, 9, 12])
    )
    packed = pack([sequences[i] for i in range(4)], 5)
    assert [row.num_tokens for row in packed] == [5, 3]  # lengths 2, 3, 1, 2
    for one, other in zip(packed, pack_all(sequences, 5), strict=True):
        assert torch.equal(one.input_ids_1T, other.input_ids_1T)
        assert torch.equal(one.targets_M, other.targets_M)
    assert len(list(pack_all(sequences, 5, limit=1))) == 1
