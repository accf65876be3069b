"""The order of training: mixtures, epochs, steps, shares."""

import itertools

import numpy as np
import pytest

from steersman.batches.plan import BatchConfig, mix, plan_steps, share
from steersman.config import validate
from steersman.errors import ConfigError


def alone(*sizes):
    """Data sets whose families are single sequences."""
    return [np.ones(size, np.int64) for size in sizes]


def take(iterator, number):
    return list(itertools.islice(iterator, number))


def test_an_epoch_has_every_sequence_once_in_a_new_order():
    draws = take(mix(alone(5, 3), None, seed=1), 24)
    everything = sorted((d, i) for d, size in enumerate((5, 3)) for i in range(size))
    epochs = [draws[:8], draws[8:16], draws[16:]]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("weights", [[0.7, 0.2, 0.1], [7, 2, 1]])
def test_proportions_hold_at_every_moment(weights):
    counts = np.zeros(3)
    for number, draw in enumerate(take(mix(alone(40, 1000, 3), weights, seed=2), 2000), start=1):
        counts[draw.dataset] += 1
        assert np.abs(counts - number * np.array([0.7, 0.2, 0.1])).max() <= 1 + 1e-9
    assert counts.tolist() == [1400, 400, 200]


def test_a_small_data_set_is_passed_through_evenly():
    indices = [draw.family for draw in take(mix(alone(3, 90), [0.5, 0.5], seed=0), 60) if draw.dataset == 0]
    assert [sorted(indices[start : start + 3]) for start in range(0, 30, 3)] == [[0, 1, 2]] * 10


def test_shares_count_the_sequences_of_families():
    sizes = [np.array([4, 4]), np.ones(50, np.int64)]
    counts = np.zeros(2)
    for draw in take(mix(sizes, [0.5, 0.5], seed=0), 50):
        counts[draw.dataset] += sizes[draw.dataset][draw.family]
        assert abs(counts[0] - counts[1]) <= 4
    assert counts.tolist() == [40, 40]


def test_families_take_at_most_a_micro_batch_and_half_a_step():
    assert BatchConfig(tokens=2048, micro_tokens=2048).max_family == 1024
    assert BatchConfig(tokens=8192, micro_tokens=2048).max_family == 2048
    assert BatchConfig(sequences=8).max_family == 0


def test_steps_that_surely_are_one_forward_pass():
    def several(**config: int) -> bool:
        return BatchConfig(micro_tokens=2048, **config).several_micro_batches(seq_len=256)

    assert (several(tokens=2048), several(tokens=2049)) == (False, True)
    assert (several(sequences=8), several(sequences=9)) == (False, True)
    assert (several(pairs=4), several(pairs=5)) == (False, True)


def test_the_order_is_a_function_of_the_seed():
    assert take(mix(alone(50), None, seed=3), 50) == take(mix(alone(50), None, seed=3), 50)
    assert take(mix(alone(50), None, seed=3), 50) != take(mix(alone(50), None, seed=4), 50)


def test_steps_of_sequences():
    lengths = [np.full(7, 10)]
    steps = list(plan_steps(lengths, alone(7), None, BatchConfig(sequences=3), seed=0, epochs=2))
    assert [len(step) for step in steps] == [3, 3, 3, 3, 2]
    assert [draw for step in steps for draw in step] == take(mix(alone(7), None, seed=0), 14)


def test_steps_of_tokens_hold_as_many_whole_sequences_as_fit():
    lengths = [np.array([40, 30, 50, 120, 10])]
    steps = list(plan_steps(lengths, alone(5), None, BatchConfig(tokens=100), seed=0, epochs=3))
    totals = [[int(lengths[0][draw.family]) for draw in step] for step in steps]
    assert sum(map(len, totals)) == 15
    for step, after in itertools.pairwise(totals):
        assert sum(step) <= 100 or step == [120]
        assert sum(step) + after[0] > 100


def test_exactly_one_batch_size():
    for bad in ({}, {"sequences": 1, "tokens": 10}):
        with pytest.raises(ConfigError, match="exactly one of sequences, pairs and tokens"):
            validate(bad, BatchConfig, "recipe")


def test_shares_are_balanced_and_complete():
    assert share([10, 2, 3, 9, 4], 2) == [[0, 1, 2], [3, 4]]
    assert share([5, 6, 7], 1) == [[0, 1, 2]]
    assert share([5], 2) == [[0], []]
