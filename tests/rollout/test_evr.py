"""EVR's pieces against plain Python: windows, fork probability, and who gets which slot."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from medvr_jax import assembly
from medvr_jax.models.config import BackboneConfig
from medvr_jax.rollout import evr
from tests.inputs.tiny import TINY
from tests.tiny_run import small_config


@pytest.mark.parametrize("width", [1, 3, 20])
def test_window_mean_is_the_mean_of_the_last_values(width: int) -> None:
    rng = np.random.default_rng(width)
    window, count = np.zeros((2, 5, width), np.float32), np.zeros((2, 5), np.int32)
    expected = [[deque(maxlen=width) for _ in range(5)] for _ in range(2)]
    for _ in range(3 * width + 1):
        values, where = rng.random((2, 5)).astype(np.float32), rng.random((2, 5)) < 0.6
        window, count = evr.push(window, count, values, where)
        for b, m in np.argwhere(where):
            expected[b][m].append(float(values[b, m]))
    means = np.array([[np.mean(d) if d else 0.0 for d in row] for row in expected])
    np.testing.assert_allclose(evr.window_mean(window, count), means, atol=1e-6)


def test_fork_probability_is_clipped() -> None:
    delta = np.array([-5.0, -0.5, 0.0, 0.4, 3.0])
    np.testing.assert_allclose(evr.fork_probability(delta, 0.5, 0.5), [0, 0.25, 0.5, 0.7, 1.0], atol=1e-7)


def test_the_kth_asker_gets_the_kth_free_slot() -> None:
    rng = np.random.default_rng(0)
    wants, free = rng.random((200, 9)) < 0.4, rng.random((200, 9)) < 0.4
    got = evr.assign_slots(wants, free)
    for b in range(200):
        askers, slots = np.flatnonzero(wants[b]).tolist(), np.flatnonzero(free[b]).tolist()
        pairs = dict(zip(slots, askers, strict=False))  # the shorter list decides
        for slot in range(9):
            assert bool(got.is_child[b, slot]) == (slot in pairs)
            assert int(got.source[b, slot]) == pairs.get(slot, slot)
        children = {asker: slot for slot, asker in pairs.items()}
        for asker in range(9):
            assert bool(got.granted[b, asker]) == (asker in children)
            assert int(got.child[b, asker]) == children.get(asker, -1)


def test_the_gate_random_knows_no_entropy() -> None:
    delta = np.array([[-5.0, -0.5, 0.0, 0.4, 3.0]])
    gated = evr.EvrSettings(p_base=0.3, gamma=0.5, threshold=0.1)
    np.testing.assert_array_equal(gated.eligible(delta), [[False, False, False, True, True]])
    np.testing.assert_allclose(gated.probability(delta), [[0, 0.05, 0.3, 0.5, 1.0]], atol=1e-7)
    control = evr.EvrSettings(p_base=0.3, gamma=0.5, threshold=0.1, gate="random")
    assert control.eligible(delta).shape == delta.shape and control.eligible(delta).all()
    np.testing.assert_allclose(control.probability(delta), np.full((1, 5), 0.3), atol=1e-7)


def test_gate_and_position_of_a_configuration_reach_the_loop() -> None:
    backbone = BackboneConfig.from_folder(TINY)
    found = assembly.training_rollout(small_config(evr__gate="random", evr__position="uncertain"), backbone).evr
    assert (found.gate, found.position) == ("random", "uncertain")
    plain = assembly.training_rollout(small_config(), backbone).evr
    assert (plain.gate, plain.position) == ("entropy", "first")  # the paper's, as ever
