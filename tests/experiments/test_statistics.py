"""Differences over seeds against scipy's tests, the power against published sample sizes and simulated experiments."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medvr_jax.experiments import statistics

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count", [2, 3, 7, 10, 40])
def test_paired_differences_against_scipy(count: int) -> None:
    first, second = RNG.normal(0.7, 0.1, count), RNG.normal(0.6, 0.1, count)
    found = statistics.paired_difference(first, second)
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    assert (found.count, found.mean) == (count, pytest.approx(np.mean(first) - np.mean(second)))
    assert found.error == pytest.approx(stats.sem(first - second))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.is_clear == (expected.pvalue < 0.05)


def test_means_against_scipy() -> None:
    values = RNG.normal(size=9)
    assert statistics.mean_of(values) == pytest.approx((9, values.mean(), stats.sem(values)))


def test_one_seed_has_a_mean_and_nothing_else() -> None:
    assert statistics.mean_of([0.25]) == (1, 0.25, None)
    found = statistics.paired_difference([0.5], [0.25])
    assert found == (1, 0.25, None, None, None, None) and not found.is_clear


def test_pairs_without_spread_are_clear() -> None:
    found = statistics.paired_difference([0.5, 0.5], [0.25, 0.25])
    assert found.is_clear and found.detectable == 0


def test_the_area_is_the_mean_height() -> None:
    rng = np.random.default_rng(1)
    xs, ys = np.cumsum(rng.uniform(1, 5, 8)) - 1, rng.uniform(size=8)
    fine = np.linspace(xs[0], xs[-1], 200_001)
    assert statistics.area(list(zip(xs, ys, strict=True))) == pytest.approx(np.interp(fine, xs, ys).mean(), abs=1e-5)
    assert statistics.area([(0, 0.5), (10, 0.7), (15, 0.9)]) == pytest.approx((10 * 0.6 + 5 * 0.8) / 15)
    assert statistics.area([(0, 0.5)]) == 0.5


@pytest.mark.parametrize(("effect", "needed"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_power_against_published_sample_sizes(effect: float, needed: int) -> None:
    """Pairs that a two-sided t test at 5 % needs for 80 %: the numbers of every table, for Cohen's d."""
    assert statistics.power(effect, 1.0, needed) >= 0.8 > statistics.power(effect, 1.0, needed - 1)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_detectable_difference_is_found_in_four_of_five_experiments(count: int) -> None:
    differences = RNG.normal(0.1, 0.2, count)
    found = statistics.paired_difference(differences, np.zeros(count))
    spread, trials = differences.std(ddof=1), 40_000
    drawn = RNG.normal(found.detectable, spread, (trials, count))
    share = np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05)
    assert share == pytest.approx(0.8, abs=3 * np.sqrt(0.16 / trials))
    assert statistics.power(0.0, 1.0, count) == pytest.approx(0.05)
