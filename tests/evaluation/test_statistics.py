"""Intervals, tests and correlations against SciPy, closed forms and enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from medvr_jax.evaluation.statistics import Bootstrap, pass_at_k, pearson, ranks, sign_test, spearman


def test_the_mean_of_right_and_wrong_is_drawn_from_a_binomial() -> None:
    values = np.array([1.0] * 37 + [0.0] * 13)
    bootstrap = Bootstrap(repeats=20000)
    low, high = bootstrap.interval(bootstrap.means(values, "set"))
    law = stats.binom(50, 37 / 50)
    assert law.ppf(0.019) <= 50 * low <= law.ppf(0.031)  # 0.025 and five standard errors of 20000 draws
    assert law.ppf(0.969) <= 50 * high <= law.ppf(0.981)


def test_the_same_law_as_drawing_question_by_question() -> None:
    generator = np.random.default_rng(0)
    values = generator.choice([0.0, 0.25, 0.5, 0.5, 1.0], 60)
    by_hand = values[generator.integers(0, 60, (20000, 60))].mean(1)
    ours = Bootstrap(repeats=20000).means(values, "set")
    assert stats.ks_2samp(ours + generator.uniform(0, 1e-6, 20000), by_hand).pvalue > 1e-4
    assert ours.mean() == pytest.approx(values.mean(), abs=5 * values.std() / np.sqrt(60 * 20000))
    assert ours.std() == pytest.approx(values.std() / np.sqrt(60), rel=0.03)


def test_draws_depend_on_seed_and_label_alone() -> None:
    values = np.arange(30) % 2
    one = Bootstrap(seed=1).means(values, "a")
    assert np.array_equal(one, Bootstrap(seed=1).means(values, "a"))
    assert not np.array_equal(one, Bootstrap(seed=2).means(values, "a"))
    assert not np.array_equal(one, Bootstrap(seed=1).means(values, "b"))
    assert Bootstrap().interval(Bootstrap().means(np.ones(5), "a")) == (1.0, 1.0)


def test_the_level_is_that_of_the_interval() -> None:
    means = np.linspace(0, 1, 1001)
    assert Bootstrap(level=0.9).interval(means) == pytest.approx((0.05, 0.95))


@pytest.mark.parametrize(
    ("wins", "losses"), [(0, 0), (1, 0), (3, 3), (9, 2), (2, 9), (40, 61), (0, 2000), (4000, 4211)]
)
def test_sign_test_against_scipy(wins: int, losses: int) -> None:
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one() -> None:
    for number, right in itertools.product(range(1, 8), range(8)):
        if right <= number:
            answers = [1] * right + [0] * (number - right)
            for k in range(1, number + 1):
                subsets = list(itertools.combinations(answers, k))
                assert pass_at_k(number, right, k) == pytest.approx(np.mean([any(subset) for subset in subsets]))


def test_correlations_against_scipy() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        first = generator.integers(0, 8, 50) / 7  # ties
        second = -first + generator.normal(0, 1, 50)
        assert ranks(first) == pytest.approx(stats.rankdata(first))
        assert pearson(first, second) == pytest.approx(stats.pearsonr(first, second)[0])
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second)[0])


def test_no_correlation_without_variation() -> None:
    assert pearson(np.ones(3), np.arange(3.0)) is None
    assert spearman(np.arange(3.0), np.ones(3)) is None
    assert pearson(np.ones(1), np.ones(1)) is None
