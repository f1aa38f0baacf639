"""What an experiment's figures mean: means over seeds, differences of pairs, and what could have been seen.

Pure functions. Seeds are the unit: all arms of a seed see the same questions in the same order, so that differences are
taken seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

LEVEL, POWER = 0.95, 0.8


class Mean(NamedTuple):
    """A mean over `count` seeds and its standard error, None of fewer than two."""

    count: int
    value: float
    error: float | None


class Difference(NamedTuple):
    """A paired difference over `count` seeds: its mean, standard error, and interval.

    `detectable` is the true difference that so many pairs, spread like these, would find in 80 % of experiments. With
    fewer than two pairs there is only the mean; pairs that do not spread at all find any difference.
    """

    count: int
    mean: float
    error: float | None = None
    low: float | None = None
    high: float | None = None
    detectable: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def area(curve: Sequence[tuple[float, float]]) -> float:
    """Under a curve of (x, y) in order of x, by trapezoids, divided by its length: the mean height."""
    xs, ys = np.asarray(curve, np.float64).T
    if len(xs) == 1:
        return float(ys[0])
    return float(np.sum(np.diff(xs) * (ys[1:] + ys[:-1]) / 2) / (xs[-1] - xs[0]))


def mean_of(values: Sequence[float]) -> Mean:
    """Of at least one value."""
    found = np.asarray(values, np.float64)
    error = float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else None
    return Mean(len(found), float(found.mean()), error)


def paired_difference(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Difference:
    """first - second, pair by pair, with the interval of Student's t."""
    count, mean, error = mean_of(np.asarray(first, np.float64) - np.asarray(second, np.float64))
    if error is None:
        return Difference(count, mean)
    half = error * float(stats.t.ppf((1 + level) / 2, count - 1))
    return Difference(count, mean, error, mean - half, mean + half, error * _detectable_noncentrality(count, 1 - level))


def power(difference: float, spread: float, count: int, alpha: float = 1 - LEVEL) -> float:
    """Chance that `count` pairs whose differences have this true mean and standard deviation are found to differ.

    Two-sided: the t statistic is noncentral with difference / spread · √count.
    """
    return _power(difference / spread * math.sqrt(count), count, alpha)


def _power(noncentrality: float, count: int, alpha: float) -> float:
    freedom = count - 1
    limit = stats.t.ppf(1 - alpha / 2, freedom)
    wrong_side = np.nan_to_num(stats.nct.cdf(-limit, freedom, noncentrality))  # scipy has no number below 1e-16
    return float(stats.nct.sf(limit, freedom, noncentrality) + wrong_side)


def _detectable_noncentrality(count: int, alpha: float) -> float:
    """The true difference in standard errors that is found with the chance POWER."""
    highest = 8.0
    while _power(highest, count, alpha) < POWER:
        highest *= 2
    return float(optimize.brentq(lambda x: _power(x, count, alpha) - POWER, 0.0, highest))
