"""The state of a rollout: everything that the device carries from token to token, and the record of fork decisions."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from medvr_jax.models.backbone import ResponseCache

# Status of a slot.
EMPTY, ACTIVE, TURN_ENDED, DONE = 0, 1, 2, 3
# Where a trajectory came from; -1 while the slot is empty.
BASE, FORK, FRESH = 0, 1, 2

# One row of the decision record, all float32 (the integers among them stay far below 2**24).
DECISION_FIELDS = (
    "slot", "position", "pass", "h_base", "h_tool", "delta_h", "probability", "u", "eligible", "asked", "granted",
    "child",
)  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ForkState:
    """What EVR remembers of each slot, and what it decided.

    Attributes:
        base_sum: `[B, M]` float32, sum of the entropies that make up H_base.
        base_count: `[B, M]` int32, how many they are.
        in_call: `[B, M]` bool, inside a tool call.
        in_list: `[B, M]` bool, inside the coordinate list of that call.
        list_done: `[B, M]` bool, this call's first list has been closed.
        fork_start: `[B, M]` int32, response slot of the latest list's coordinate token at which a fork would begin.
        highest: `[B, M]` float32, entropy of that token where the most uncertain one is looked for, else -inf.
        window: `[B, M, w]` float32, ring of the last entropies inside the coordinates.
        window_count: `[B, M]` int32, entropies put into the ring since the list opened.
        eligible: `[B, M]` bool, base trajectories whose latest box may be forked.
        eligible_start: `[B, M]` int32, the slot at which a fork of that box begins.
        eligible_h_base, eligible_h_tool: `[B, M]` float32, the entropies of that box.
        passes: `[B]` int32, passes made over the eligible trajectories after the base set's first turn.
        settled: `[B]` bool, the fork budget is spent or given to fresh trajectories.
        decisions: `[B, Q, len(DECISION_FIELDS)]` float32, the record; rows past `decision_count` are empty.
        decision_count: `[B]` int32, decisions made (those past Q are counted but not kept).
    """

    base_sum: jax.Array
    base_count: jax.Array
    in_call: jax.Array
    in_list: jax.Array
    list_done: jax.Array
    fork_start: jax.Array
    highest: jax.Array
    window: jax.Array
    window_count: jax.Array
    eligible: jax.Array
    eligible_start: jax.Array
    eligible_h_base: jax.Array
    eligible_h_tool: jax.Array
    passes: jax.Array
    settled: jax.Array
    decisions: jax.Array
    decision_count: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolloutState:
    """Everything of a rollout in progress. T counts response slots; slot 0 holds the prompt's last token.

    Attributes:
        tokens: `[B, M, T]` int32, sampled and observed tokens; meaningful below `length`.
        sampled: `[B, M, T]` bool, the response mask: true where the policy sampled the token.
        log_probabilities: `[B, M, T]` float32 <= 0, of sampled tokens under the sampling distribution, else 0.
        entropy: `[B, M, T]` float32 >= 0 in nats, of the distribution that each sampled token came from, else 0.
        positions: `[B, M, T, 3]` int32, rope positions (time, height, width).
        feature_index: `[B, M, T]` int32, row of the trajectory's image features, -1 for text.
        length: `[B, M]` int32 in 1..T.
        next_position: `[B, M]` int32, rope position of the token that comes next.
        status: `[B, M]` int32, EMPTY, ACTIVE, TURN_ENDED (waits for the host) or DONE.
        origin: `[B, M]` int32, BASE, FORK, FRESH or -1.
        parent: `[B, M]` int32, the slot a fork was copied from, else -1.
        fork_position: `[B, M]` int32, first response slot in which a fork may differ from its parent, else -1.
        cache: keys and values of the response slots; every leaf starts with `[B, M]`.
        forks: EVR's part; None when there is no forking.
        steps: `[]` int32, decode steps made.
    """

    tokens: jax.Array
    sampled: jax.Array
    log_probabilities: jax.Array
    entropy: jax.Array
    positions: jax.Array
    feature_index: jax.Array
    length: jax.Array
    next_position: jax.Array
    status: jax.Array
    origin: jax.Array
    parent: jax.Array
    fork_position: jax.Array
    cache: ResponseCache
    forks: ForkState | None
    steps: jax.Array

    def replace(self, **changes: Any) -> RolloutState:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def initial_fork_state(groups: int, slots: int, window: int, records: int) -> ForkState:
    """EVR's state before the first token, for B groups of M slots, a ring of w entropies and Q decision records."""
    zeros = jnp.zeros((groups, slots), jnp.float32)
    counts = jnp.zeros((groups, slots), jnp.int32)
    flags = jnp.zeros((groups, slots), bool)
    return ForkState(
        base_sum=zeros, base_count=counts, in_call=flags, in_list=flags, list_done=flags,
        fork_start=counts, highest=jnp.full_like(zeros, -jnp.inf),
        window=jnp.zeros((groups, slots, window), jnp.float32), window_count=counts,
        eligible=flags, eligible_start=counts, eligible_h_base=zeros, eligible_h_tool=zeros,
        passes=jnp.zeros((groups,), jnp.int32), settled=jnp.zeros((groups,), bool),
        decisions=jnp.zeros((groups, records, len(DECISION_FIELDS)), jnp.float32),
        decision_count=jnp.zeros((groups,), jnp.int32),
    )  # fmt: skip


def initial_state(
    last_token: jax.Array,
    last_position: jax.Array,
    next_position: jax.Array,
    cache: ResponseCache,
    *,
    slots: int,
    length: int,
    base_slots: int,
    forks: ForkState | None,
) -> RolloutState:
    """A rollout before its first token.

    Args:
        last_token: `[B]` int32, the prompt's last token, which becomes slot 0 of every trajectory.
        last_position: `[B]` int32, its rope position (the same on all three axes: it is text).
        next_position: `[B]` int32, the rope position after it.
        cache: empty response cache.
        slots: M.
        length: T.
        base_slots: how many slots start at once; the others wait for forks.
        forks: EVR's state, None for no forking.
    """
    groups = last_token.shape[0]
    first = jnp.arange(length) == 0
    per_slot = (groups, slots)
    starts = jnp.broadcast_to(jnp.arange(slots) < base_slots, per_slot)
    none = jnp.full(per_slot, -1, jnp.int32)
    tokens = jnp.where(first, last_token[:, None, None], 0)
    positions = jnp.where(first, last_position[:, None, None], 0)
    return RolloutState(
        tokens=jnp.broadcast_to(tokens, (*per_slot, length)).astype(jnp.int32),
        sampled=jnp.zeros((*per_slot, length), bool),
        log_probabilities=jnp.zeros((*per_slot, length), jnp.float32),
        entropy=jnp.zeros((*per_slot, length), jnp.float32),
        positions=jnp.broadcast_to(positions[..., None], (*per_slot, length, 3)).astype(jnp.int32),
        feature_index=jnp.full((*per_slot, length), -1, jnp.int32),
        length=jnp.ones(per_slot, jnp.int32),
        next_position=jnp.broadcast_to(next_position[:, None], per_slot).astype(jnp.int32),
        status=jnp.where(starts, ACTIVE, EMPTY).astype(jnp.int32),
        origin=jnp.where(starts, BASE, -1).astype(jnp.int32),
        parent=none,
        fork_position=none,
        cache=cache,
        forks=forks,
        steps=jnp.zeros((), jnp.int32),
    )
