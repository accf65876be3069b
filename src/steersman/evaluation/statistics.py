"""Statistics of measurements, with 95 % intervals by bootstrap over groups (the trees or questions observations share).

In: observations and the group of each. Out: estimates.

Every statistic takes weights, a row saying how often each observation counts. A row of ones gives the statistic
itself; the rows of `group_weights` give its bootstrap distribution, all resamples at once. Statistics computed from
the same rows are paired: their difference, row by row, is the bootstrap distribution of the difference.

Shapes: N observations, R rows of weights, G groups, U distinct values, V values of a scale, S reference values.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from steersman.errors import DataError

Array = NDArray[np.float64]

NUM_RESAMPLES = 2000


class Estimate(BaseModel):
    """A value and the ends of its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def group_weights(groups: Sequence[Hashable], num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Array:
    """Bootstrap weights f64[R, N]: as many groups as there are, drawn with replacement; an observation counts as often
    as its group was drawn.

    Raises:
        DataError: fewer than two groups, which say nothing of how groups differ.
    """
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    group_N = [number[group] for group in groups]
    num_groups = len(number)
    if num_groups < 2:
        raise DataError("an interval needs observations of at least two trees (or questions); give more data")
    times_RG = np.random.default_rng(seed).multinomial(num_groups, np.full(num_groups, 1 / num_groups), num_resamples)
    return times_RG[:, group_N].astype(np.float64)


def estimate(statistic: Callable[[Array], Array], weights_RN: Array) -> Estimate:
    """`statistic` (rows of weights -> one value a row) with its percentile interval. Rows where it is not defined (NaN)
    are left out of the interval."""
    value = statistic(np.ones((1, weights_RN.shape[1])))[0]
    low, high = np.nanpercentile(statistic(weights_RN), [2.5, 97.5])
    return Estimate(value=float(value), low=float(low), high=float(high))


def mean(values_N: ArrayLike, weights_RN: Array) -> Array:
    """Weighted mean of each row, f64[R]; NaN where all weights are 0."""
    with np.errstate(invalid="ignore"):
        return np.asarray((weights_RN @ np.asarray(values_N, np.float64)) / weights_RN.sum(1), np.float64)


def ratio(numerators_N: ArrayLike, denominators_N: ArrayLike, weights_RN: Array) -> Array:
    """Weighted sum over weighted sum, f64[R]: such as nats over tokens."""
    return (weights_RN @ np.asarray(numerators_N, np.float64)) / (weights_RN @ np.asarray(denominators_N, np.float64))


def mid_ranks(values_N: ArrayLike, weights_RN: Array) -> Array:
    """Rank of each observation in each weighted sample f64[R, N], up to a constant; ties share their mean rank."""
    _, distinct_N = np.unique(np.asarray(values_N), return_inverse=True)
    order_N = np.argsort(distinct_N, kind="stable")
    first_U = np.flatnonzero(np.diff(distinct_N[order_N], prepend=-1))
    count_RU = np.add.reduceat(weights_RN[:, order_N], first_U, axis=1)
    rank_RU = np.cumsum(count_RU, axis=1) - count_RU / 2
    return rank_RU[:, distinct_N]


def _moments(x: Array, y: Array, weights_RN: Array) -> tuple[Array, Array, Array]:
    """Weighted variances and covariance of each row: (var x, var y, cov), f64[R] each."""
    share_RN = weights_RN / weights_RN.sum(1, keepdims=True)
    dx = x - (share_RN * x).sum(1, keepdims=True)
    dy = y - (share_RN * y).sum(1, keepdims=True)
    return (share_RN * dx * dx).sum(1), (share_RN * dy * dy).sum(1), (share_RN * dx * dy).sum(1)


def spearman(x_N: ArrayLike, y_N: ArrayLike, weights_RN: Array) -> Array:
    """Spearman's rank correlation f64[R]; 0 where either side is constant, since a constant orders nothing."""
    var_x, var_y, cov = _moments(mid_ranks(x_N, weights_RN), mid_ranks(y_N, weights_RN), weights_RN)
    scale = np.sqrt(var_x * var_y)
    return np.divide(cov, scale, out=np.zeros_like(cov), where=scale > 1e-12)


def slope(x_N: ArrayLike, y_N: ArrayLike, weights_RN: Array) -> Array:
    """Slope f64[R] of the least-squares line of y on x; 0 where x is constant."""
    var_x, _, cov = _moments(np.asarray(x_N, np.float64), np.asarray(y_N, np.float64), weights_RN)
    return np.divide(cov, var_x, out=np.zeros_like(cov), where=var_x > 1e-12)


def mean_absolute_error(predicted_N: ArrayLike, true_N: ArrayLike, weights_RN: Array) -> Array:
    """Mean of |predicted - true|, f64[R]."""
    return mean(np.abs(np.asarray(predicted_N, np.float64) - np.asarray(true_N, np.float64)), weights_RN)


def posterior_median(probabilities_NV: ArrayLike, reference: ArrayLike, low: int = 0) -> Array:
    """Median f64[N] of a quantity of which a predictor gives the probability of each rounded value low..low+V-1.

    A whole number stands for the reference values that round to it (half to even), in their shares; for itself when
    there are none. So the median of a predictor that knows only the reference's own shares is the reference's median,
    the best constant. Lower median where two values meet at one half.
    """
    probabilities_NV = np.asarray(probabilities_NV, np.float64)
    value_S, count_S = np.unique(np.asarray(reference, np.float64), return_counts=True)
    bin_S = np.rint(value_S).astype(int) - low
    empty = np.setdiff1d(np.arange(probabilities_NV.shape[1]), bin_S)
    value_S, count_S, bin_S = np.r_[value_S, empty + low], np.r_[count_S, np.ones(len(empty))], np.r_[bin_S, empty]
    order_S = np.argsort(value_S)
    value_S, bin_S = value_S[order_S], bin_S[order_S]
    share_S = count_S[order_S] / np.bincount(bin_S, count_S[order_S])[bin_S]
    cumulative_NS = np.cumsum(probabilities_NV[:, bin_S] * share_S, axis=1)
    half_N1 = probabilities_NV.sum(1, keepdims=True) / 2
    return np.asarray(value_S[(cumulative_NS >= half_N1 - 1e-9).argmax(1)], np.float64)
