"""The sampling distribution, its entropy and its random numbers, against float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvr_jax.rollout import sampling

SIZES = (37, 48, 640)  # in blocks of 1, 16 and 128 ids


def reference(logits: np.ndarray, banned: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities [..., V] in float64."""
    scaled = np.where(banned, -np.inf, logits.astype(np.float64) / temperature)
    weights = np.exp(scaled - scaled.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.fixture(params=SIZES)
def case(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    V = request.param
    rng = np.random.default_rng(0)
    banned = np.zeros(V, bool)
    banned[[0, 5, V - 1, V - 2]] = True
    return rng.normal(size=(3, 4, V)).astype(np.float32) * 3, banned


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_log_probability_and_entropy(case: tuple[np.ndarray, np.ndarray], temperature: float) -> None:
    logits, banned = case
    uniform = np.random.default_rng(1).random((3, 4)).astype(np.float32)
    tokens, log_probability, entropy = sampling.sample(logits, banned, temperature, uniform)
    p = reference(logits, banned, temperature)
    chosen = np.take_along_axis(p, np.asarray(tokens)[..., None], -1)[..., 0]
    np.testing.assert_allclose(log_probability, np.log(chosen), atol=1e-5)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = -np.where(p > 0, p * np.log(p), 0).sum(-1)
    np.testing.assert_allclose(entropy, expected, atol=1e-5)


def test_draws_follow_the_distribution(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, banned = case
    logits = logits[0, 0]
    count = 200_000
    uniform = jax.random.uniform(jax.random.key(3), (count,))
    V = len(logits)
    drawn = np.zeros(V, np.int64)
    draw = jax.jit(lambda uniform: sampling.sample(jnp.broadcast_to(logits, (len(uniform), V)), banned, 1.0, uniform))
    for part in jnp.split(uniform, 10):
        drawn += np.bincount(np.asarray(draw(part)[0]), minlength=V)
    p = reference(logits, banned, 1.0)
    assert drawn[banned].sum() == 0
    # Pearson's statistic has mean (bins - 1) and variance 2 (bins - 1).
    bins = (p * count > 5).sum()
    chi2 = (((drawn - p * count) ** 2)[p * count > 5] / (p * count)[p * count > 5]).sum()
    assert chi2 < bins + 5 * np.sqrt(2 * bins)


@pytest.mark.parametrize("value", [0.0, np.nextafter(np.float32(1), np.float32(0))])
@pytest.mark.parametrize("V", SIZES)
def test_extreme_uniforms_never_pick_a_banned_id(value: float, V: int) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(500, V)).astype(np.float32) * 8
    banned = rng.random(V) < 0.5
    banned[[0, V - 1]] = True
    tokens, log_probability, _ = sampling.sample(logits, banned, 1.0, np.full(500, value, np.float32))
    assert not banned[np.asarray(tokens)].any()
    assert np.isfinite(log_probability).all()


def test_greedy_takes_the_largest_allowed(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, banned = case
    tokens, _, _ = sampling.sample(logits, banned, 0.0, np.zeros((3, 4), np.float32))
    np.testing.assert_array_equal(tokens, np.where(banned, -np.inf, logits).argmax(-1))


def test_keys_depend_on_prompt_and_slot_alone() -> None:
    key = jax.random.key(7)
    ids = np.array([11, 22, 33], np.uint32)
    counters = np.full((3, 4), 5, np.int32)
    all_three = np.asarray(sampling.slot_uniforms(sampling.slot_keys(key, ids, 4), counters))
    one = np.asarray(sampling.slot_uniforms(sampling.slot_keys(key, ids[2:], 4), counters[:1]))
    np.testing.assert_array_equal(all_three[2], one[0])
    assert len(np.unique(all_three)) == 12
    later = np.asarray(sampling.slot_uniforms(sampling.slot_keys(key, ids, 4), counters + 1))
    assert not np.any(later == all_three)
