"""How a group spends its fork budget, on hand-made states: order, limits, passes, fresh trajectories."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvr_jax.models.backbone import ResponseCache
from medvr_jax.rollout import loop, sampling
from medvr_jax.rollout.evr import EvrSettings
from medvr_jax.rollout.state import (
    ACTIVE,
    BASE,
    DECISION_FIELDS,
    EMPTY,
    FORK,
    FRESH,
    TURN_ENDED,
    RolloutState,
    initial_fork_state,
    initial_state,
)

M, T, BASES, START = 8, 16, 4, 6
CERTAIN = EvrSettings(p_base=1.0, gamma=0.0)
NEVER = EvrSettings(p_base=0.0, gamma=0.0)


def state_with(status: int, groups: int = 1) -> RolloutState:
    """Base trajectories of ten tokens each, all different, with a cache that tells rows apart."""
    rows = jnp.arange(groups * M, dtype=jnp.float32).reshape(groups, M)
    cache = ResponseCache(
        (rows[:, :, None, None, None] + jnp.zeros((1, 2, T)),), (rows[:, :, None, None, None] + jnp.zeros((1, T, 2)),)
    )
    state = initial_state(
        jnp.full(groups, 3), jnp.full(groups, 20), jnp.full(groups, 21), cache,
        slots=M, length=T, base_slots=BASES, forks=initial_fork_state(groups, M, 4, 64),
    )  # fmt: skip
    base = jnp.arange(M) < BASES
    written = (jnp.arange(T) > 0) & (jnp.arange(T) < 10) & base[:, None]
    return state.replace(
        status=jnp.broadcast_to(jnp.where(base, status, EMPTY), (groups, M)),
        length=jnp.broadcast_to(jnp.where(base, 10, 1), (groups, M)),
        next_position=jnp.broadcast_to(jnp.where(base, 30, 21), (groups, M)),
        tokens=jnp.where(written, 100 * jnp.arange(M)[:, None] + jnp.arange(T), state.tokens),
        sampled=jnp.broadcast_to(written, state.sampled.shape),
        entropy=jnp.where(written, 0.5, state.entropy),
        positions=jnp.where(written[..., None], 20 + jnp.arange(T)[:, None], state.positions),
    )


def asks_for(slots: list[int], groups: int = 1) -> loop.Asks:
    decided = jnp.zeros((groups, M), bool).at[:, jnp.array(slots, int)].set(True)
    number = jnp.zeros((groups, M), jnp.int32)
    entropy = jnp.where(decided, 1.0, 0.0)
    return loop.Asks(decided, decided, number + START, number, entropy * 0.2, entropy)


@functools.partial(jax.jit, static_argnums=2)
def spend(state: RolloutState, asks: loop.Asks, evr: EvrSettings) -> RolloutState:
    keys = sampling.slot_keys(jax.random.key(0), jnp.arange(state.status.shape[0], dtype=jnp.uint32), M)
    return loop.spend_fork_budget(state, asks, keys, loop.LoopSettings(1.0, BASES, evr))


def eligible(state: RolloutState, slots: list[int]) -> RolloutState:
    flags = jnp.zeros(state.status.shape, bool).at[:, jnp.array(slots, int)].set(True)
    forks = dataclasses.replace(
        state.forks,
        eligible=flags,
        eligible_start=jnp.where(flags, START, 0),
        eligible_h_tool=jnp.where(flags, 1.0, 0.0),
    )
    return state.replace(forks=forks)


def no_asks() -> loop.Asks:
    return asks_for([])


def test_askers_of_one_step_take_free_slots_in_order() -> None:
    state = spend(state_with(ACTIVE), asks_for([1, 3]), CERTAIN)
    np.testing.assert_array_equal(state.parent[0], [-1, -1, -1, -1, 1, 3, -1, -1])
    np.testing.assert_array_equal(state.origin[0], [BASE] * 4 + [FORK] * 2 + [-1] * 2)
    assert not bool(state.forks.settled[0])


def test_a_child_is_its_parent_up_to_the_first_coordinate() -> None:
    before = state_with(ACTIVE)
    state = spend(before, asks_for([2]), CERTAIN)
    np.testing.assert_array_equal(state.tokens[0, 4, :START], before.tokens[0, 2, :START])
    assert not state.tokens[0, 4, START:].any() and not state.sampled[0, 4, START:].any()
    assert int(state.length[0, 4]) == START == int(state.fork_position[0, 4])
    assert int(state.next_position[0, 4]) == 20 + START  # the position the parent's first coordinate has
    for leaf in jax.tree.leaves(state.cache):
        np.testing.assert_array_equal(leaf[0, 4], leaf[0, 2])
        np.testing.assert_array_equal(leaf[0, 5], np.full_like(leaf[0, 5], 5))
    np.testing.assert_array_equal(state.tokens[0, :4], before.tokens[0, :4])


def test_the_budget_is_never_exceeded() -> None:
    state = spend(state_with(ACTIVE), asks_for([0, 1, 2]), CERTAIN)
    state = spend(state, asks_for([0, 1, 2, 3]), CERTAIN)
    np.testing.assert_array_equal(state.parent[0, 4:], [0, 1, 2, 0])
    record = {name: np.asarray(state.forks.decisions)[0, :7, i] for i, name in enumerate(DECISION_FIELDS)}
    np.testing.assert_array_equal(record["granted"], [1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(record["child"], [4, 5, 6, 7, -1, -1, -1])
    assert int(state.forks.decision_count[0]) == 7


def test_repeated_spending_asks_the_eligible_until_no_slot_is_free() -> None:
    state = eligible(state_with(TURN_ENDED), [1, 2, 3])
    state = spend(state, no_asks(), CERTAIN)
    np.testing.assert_array_equal(state.parent[0, 4:], [1, 2, 3, -1])
    assert not bool(state.forks.settled[0])
    state = spend(state, no_asks(), CERTAIN)
    np.testing.assert_array_equal(state.parent[0, 4:], [1, 2, 3, 1])
    assert bool(state.forks.settled[0])
    assert not (np.asarray(state.origin) == FRESH).any()


def test_without_eligible_trajectories_the_rest_is_fresh() -> None:
    state = spend(state_with(TURN_ENDED), no_asks(), CERTAIN)
    np.testing.assert_array_equal(state.origin[0, 4:], [FRESH] * 4)
    np.testing.assert_array_equal(state.status[0, 4:], [ACTIVE] * 4)
    np.testing.assert_array_equal(state.length[0, 4:], [1] * 4)
    assert bool(state.forks.settled[0])


def test_one_pass_leaves_the_rest_fresh() -> None:
    one_pass = dataclasses.replace(CERTAIN, repeated=False)
    state = spend(eligible(state_with(ACTIVE), [1]), asks_for([1]), one_pass)
    state = spend(
        state.replace(status=jnp.where(state.status == ACTIVE, TURN_ENDED, state.status)), no_asks(), one_pass
    )
    np.testing.assert_array_equal(state.origin[0, 4:], [FORK, FRESH, FRESH, FRESH])


def test_passes_end_after_max_passes() -> None:
    state = eligible(state_with(TURN_ENDED), [0])
    for passes in range(NEVER.max_passes):
        assert not bool(state.forks.settled[0]), passes
        state = spend(state, no_asks(), NEVER)
    assert bool(state.forks.settled[0])
    np.testing.assert_array_equal(state.origin[0, 4:], [FRESH] * 4)
    record = np.asarray(state.forks.decisions)[0]
    np.testing.assert_array_equal(record[:8, DECISION_FIELDS.index("pass")], np.arange(1, 9))
    assert int(state.forks.decision_count[0]) == 8


@pytest.mark.parametrize("p_base", [0.2, 0.7])
def test_forks_happen_with_probability_p(p_base: float) -> None:
    groups = 2000
    evr = EvrSettings(p_base=p_base, gamma=0.1)
    state = spend(state_with(ACTIVE, groups), asks_for([0], groups), evr)
    expected = p_base + 0.1 * 0.8  # Delta H is 1.0 - 0.2
    share = float((np.asarray(state.origin) == FORK).any(1).mean())
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / groups)


def test_random_forks_happen_with_p_base() -> None:
    """Whatever gamma says of the entropies; as their boxes close, and again when all have ended their turn."""
    groups, evr = 2000, EvrSettings(p_base=0.4, gamma=2.0, gate="random")
    for state, asks in (
        (state_with(ACTIVE, groups), asks_for([0], groups)),
        (eligible(state_with(TURN_ENDED, groups), [0]), asks_for([], groups)),
    ):
        spent = spend(state, asks, evr)
        share = float((np.asarray(spent.origin) == FORK).any(1).mean())
        assert abs(share - 0.4) < 4 * np.sqrt(0.4 * 0.6 / groups)
        record = np.asarray(spent.forks.decisions)[:, 0, DECISION_FIELDS.index("probability")]
        np.testing.assert_array_equal(record, np.float32(0.4))


def test_groups_do_not_touch_each_other() -> None:
    asks = asks_for([1], 3)
    only_second = jnp.array([False, True, False])[:, None]
    asks = asks._replace(decided=asks.decided & only_second, eligible=asks.eligible & only_second)
    state = spend(state_with(ACTIVE, 3), asks, CERTAIN)
    np.testing.assert_array_equal((np.asarray(state.origin) == FORK).sum(1), [0, 1, 0])
    np.testing.assert_array_equal(state.forks.decision_count, [0, 1, 0])


def test_nobody_asks_when_no_slot_is_free() -> None:
    state = eligible(state_with(TURN_ENDED), [0, 1])
    state = state.replace(status=jnp.where(state.status == EMPTY, TURN_ENDED, state.status))
    state = spend(state, no_asks(), CERTAIN)
    assert bool(state.forks.settled[0]) and int(state.forks.decision_count[0]) == 0
