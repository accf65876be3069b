"""Statistics against hand-worked numbers and scipy."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from steersman.errors import DataError
from steersman.evaluation.statistics import (
    Estimate,
    estimate,
    group_weights,
    mean,
    mean_absolute_error,
    mid_ranks,
    posterior_median,
    ratio,
    slope,
    spearman,
)

ONES = np.ones((1, 4))


def test_mid_ranks_by_hand() -> None:
    # sorted: 1, 3, 3, 7 -> ranks 1, 2.5, 2.5, 4, here each less one half
    assert mid_ranks([3, 1, 7, 3], ONES).tolist() == [[2.0, 0.5, 3.5, 2.0]]


def test_mid_ranks_of_a_resample_are_those_of_repeated_values() -> None:
    # weights 2, 0, 1, 1 mean the sample 3, 3, 7, 3: ranks 2, 2, 4, 2
    ranks = mid_ranks([3, 1, 7, 3], np.array([[2.0, 0.0, 1.0, 1.0]]))[0]
    assert ranks[[0, 2, 3]].tolist() == [1.5, 3.5, 1.5]


def test_spearman_by_hand() -> None:
    # ranks 1 2 3 4 against 2 1 4 3: d^2 = 1+1+1+1, rho = 1 - 6*4/(4*15)
    assert spearman([1, 2, 3, 4], [20, 10, 40, 30], ONES)[0] == pytest.approx(0.6)


def test_spearman_equals_scipy_on_ties_and_resamples() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 5, 60), rng.integers(0, 4, 60) + rng.integers(0, 2, 60)
    weights = group_weights(list(range(60)), num_resamples=20)
    for row, got in zip(weights, spearman(x, y, weights), strict=True):
        times = row.astype(int)
        assert got == pytest.approx(spearmanr(np.repeat(x, times), np.repeat(y, times)).statistic)


def test_a_constant_orders_nothing() -> None:
    assert spearman([2, 2, 2, 2], [1, 2, 3, 4], ONES)[0] == 0.0
    assert slope([2, 2, 2, 2], [1, 2, 3, 4], ONES)[0] == 0.0


def test_slope_by_hand() -> None:
    # x 0 1 2 3, y 1 1 3 3: covariance 1.0 over variance 1.25
    assert slope([0, 1, 2, 3], [1, 1, 3, 3], ONES)[0] == pytest.approx(0.8)


def test_weighted_means_by_hand() -> None:
    weights = np.array([[1.0, 1, 1, 1], [3.0, 0, 0, 1], [0.0, 0, 0, 0]])
    assert mean([1, 2, 3, 6], weights).tolist()[:2] == [3.0, 2.25]
    assert np.isnan(mean([1, 2, 3, 6], weights)[2])
    assert mean_absolute_error([1, 2, 3, 4], [2, 2, 1, 0], weights[:2]).tolist() == [7 / 4, 7 / 4]
    assert ratio([1, 2, 3, 4], [2, 2, 2, 4], weights[:1])[0] == pytest.approx(1.0)


def test_a_resample_draws_whole_groups_as_many_as_there_are() -> None:
    groups = ["a", "b", "a", "c", "b"]
    weights = group_weights(groups, num_resamples=500)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, 0] + weights[:, 1] + weights[:, 3] == 3).all()
    assert weights.mean() == pytest.approx(1.0, abs=0.1)
    assert (group_weights(groups, num_resamples=500) == weights).all()


def test_one_group_says_nothing_of_how_groups_differ() -> None:
    with pytest.raises(DataError, match="at least two"):
        group_weights(["a", "a", "a"])


def test_interval_of_a_mean_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=400)
    got = estimate(lambda weights: mean(values, weights), group_weights(range(400)))
    half_width = 1.96 * values.std() / 20
    assert got.value == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half_width, abs=0.02)
    assert got.high == pytest.approx(values.mean() + half_width, abs=0.02)


def test_clustered_observations_widen_the_interval() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=40), 10)
    alone = estimate(lambda w: mean(values, w), group_weights(range(400)))
    grouped = estimate(lambda w: mean(values, w), group_weights([i // 10 for i in range(400)]))
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(size=200)
    good, better = truth + rng.normal(size=200), truth + rng.normal(size=200) * 0.9
    better = 0.9 * good + 0.1 * better
    weights = group_weights(range(200))
    difference = estimate(lambda w: spearman(better, truth, w) - spearman(good, truth, w), weights)
    alone = estimate(lambda w: spearman(good, truth, w), weights)
    assert difference.high - difference.low < (alone.high - alone.low) / 3


def test_posterior_median_by_hand() -> None:
    reference = [0.0, 0.0, 0.4, 1.0, 1.2, 3.0]
    certain_of_one, torn, low = [0, 1, 0, 0, 0], [0.4, 0.2, 0, 0.4, 0], [0.9, 0.1, 0, 0, 0]
    # certain of 1: values 1.0 and 1.2, lower median 1.0; torn: 0.4 lies below, and 0.1 more at 1.0 reaches one half
    assert posterior_median([certain_of_one, torn, low], reference).tolist() == [1.0, 1.0, 0.0]
    assert posterior_median([[0, 0, 1, 0, 0]], reference).tolist() == [2.0], "no reference value rounds to 2"
    assert posterior_median([[0, 1.0]], [1.0, 2.0], low=1).tolist() == [2.0], "a scale that starts at 1"


def test_posterior_median_of_the_prior_is_the_best_constant() -> None:
    reference = np.random.default_rng(3).integers(0, 13, 501) / 3
    prior = np.bincount(np.rint(reference).astype(int), minlength=5) / len(reference)
    assert posterior_median([prior], reference)[0] == np.median(reference)


def test_an_estimate_reads_well() -> None:
    assert str(Estimate(value=0.5, low=0.25, high=0.75)) == "0.500 [0.250, 0.750]"
