"""Advantages against float64 NumPy and TRL's formula."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from medvr_jax.training.advantages import group_advantages


def test_equals_numpy() -> None:
    rewards = np.random.default_rng(0).normal(size=(50, 16))
    found, spread = group_advantages(jnp.asarray(rewards))
    expected = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert bool(spread.all())


def test_equals_trl() -> None:
    torch = pytest.importorskip("torch")
    utils = pytest.importorskip("trl.trainer.utils")
    rewards = np.random.default_rng(1).choice([-0.2, 0.0, 1.0, 1.5, 2.0], (40, 8)).astype(np.float32)
    grouped = torch.tensor(rewards)
    expected = (grouped - grouped.mean(1, keepdim=True)) / (utils.nanstd(grouped, dim=1)[:, None] + 1e-4)
    np.testing.assert_allclose(group_advantages(jnp.asarray(rewards))[0], expected.numpy(), atol=1e-5)


def test_no_spread_is_zero_even_with_rounding() -> None:
    rewards = jnp.full((3, 16), 0.1, jnp.float32) + jnp.arange(3)[:, None] * 0.7
    found, spread = group_advantages(rewards, std_threshold=0.0, epsilon=0.0)
    assert not bool(spread.any()) and not np.asarray(found).any()


def test_threshold_on_the_deviation() -> None:
    rewards = jnp.array([[0.0, 1e-5, 0.0, 1e-5], [0.0, 1.0, 0.0, 1.0]])
    found, spread = group_advantages(rewards, std_threshold=1e-3)
    np.testing.assert_array_equal(spread, [False, True])
    assert not np.asarray(found[0]).any() and np.asarray(found[1]).all()
    _, spread = group_advantages(rewards, std_threshold=1e-7)
    assert bool(spread.all())


def test_without_division_by_the_deviation() -> None:
    found, _ = group_advantages(jnp.array([[0.0, 1.0, 2.0, 3.0]]), normalise_by_std=False)
    np.testing.assert_allclose(found[0], [-1.5, -0.5, 0.5, 1.5])


def test_advantages_of_a_group_sum_to_zero() -> None:
    rewards = jnp.asarray(np.random.default_rng(2).normal(size=(20, 6)), jnp.float32)
    np.testing.assert_allclose(group_advantages(rewards)[0].sum(1), 0, atol=1e-5)
