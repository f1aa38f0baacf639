"""The sampling loop: one jitted `while_loop`, token by token, with entropy tracking, fork decisions and forks inside.

It ends when no slot can go on without the host: every trajectory waits for a tool, or has ended, or is out of room.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medvr_jax.inputs.tokenizer import TokenTables
from medvr_jax.models.backbone import Backbone, PromptCache, ResponseInputs, SamplingWeights
from medvr_jax.rollout import evr, sampling
from medvr_jax.rollout.state import (
    ACTIVE,
    DECISION_FIELDS,
    DONE,
    EMPTY,
    FORK,
    FRESH,
    TURN_ENDED,
    ForkState,
    RolloutState,
)
from medvr_jax.rollout.turns import Serving

# Streams of random numbers, folded into each slot's key.
_TOKEN_STREAM, _FORK_STREAM = 0, 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VocabularyTables:
    """What the loop knows of the vocabulary, each `[V]` bool, made from the tokenizer on the host."""

    banned: jax.Array
    end_of_turn: jax.Array
    opens_call: jax.Array
    closes_call: jax.Array
    opens_list: jax.Array
    closes_list: jax.Array

    @classmethod
    def from_tokenizer(cls, tables: TokenTables) -> VocabularyTables:
        """The loop's share of the tokenizer's tables."""
        return cls(*(np.asarray(getattr(tables, field.name)) for field in dataclasses.fields(cls)))


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Static under jit: `temperature` (0 = greedy), `base_slots` started at once, EVR's settings (None = no forks)."""

    temperature: float
    base_slots: int
    evr: evr.EvrSettings | None


class Draw(NamedTuple):
    """One decode step's outcome for every slot, `[B, M]` each; only `active` rows count."""

    token: jax.Array
    log_probability: jax.Array
    entropy: jax.Array
    active: jax.Array


class Pause(NamedTuple):
    """Why the loop is left, `[]` bool each; neither, when nobody can go on without the host."""

    wants_room: jax.Array  # a row's cache is full
    early: jax.Array  # there is work for the host already, though rows could go on


class Asks(NamedTuple):
    """Fork decisions of one step, `[B, M]` each: `decided` rows closed a box or are looked at again, `eligible` are
    those that may be forked; `position` is the slot at which a fork would begin, `passes` the pass (0 = at closing).
    """

    decided: jax.Array
    eligible: jax.Array
    position: jax.Array
    passes: jax.Array
    h_base: jax.Array
    h_tool: jax.Array


def decode(
    backbone: Backbone,
    weights: SamplingWeights,
    prompt_cache: PromptCache,
    state: RolloutState,
    key: jax.Array,
    prompt_ids: jax.Array,
    tables: VocabularyTables,
    stop_at: jax.Array,
    share: jax.Array,
    settings: LoopSettings,
) -> tuple[RolloutState, Pause]:
    """Samples until no slot is active and every fork budget is settled, or a row's cache is full.

    Args:
        key: the step's random key.
        prompt_ids: `[B]` uint32, stable ids for the random keys.
        stop_at: `[]` int32, sampling also ends when an active row is that long.
        share: `[]` float32, and when at least this share of the rows that are not done have ended their turn.

    Returns:
        the state, and why the loop was left.
    """
    room = state.cache.values[0].shape[3]  # the token at slot `length` - 1 is fed next
    keys = sampling.slot_keys(key, prompt_ids, state.tokens.shape[1])
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
    token_keys, fork_keys = fold(keys, _TOKEN_STREAM), fold(keys, _FORK_STREAM)

    def any_active(state: RolloutState, length: int | jax.Array) -> jax.Array:
        """Whether an active row has at least that many tokens."""
        return jnp.any((state.status == ACTIVE) & (state.length >= length))

    def unfinished(state: RolloutState) -> jax.Array:
        busy = any_active(state, 0)
        if state.forks is not None:
            busy |= ~jnp.all(state.forks.settled)
        return busy & ~any_active(state, jnp.minimum(stop_at, room + 1))

    def few_left(state: RolloutState) -> jax.Array:
        return jnp.sum(state.status == TURN_ENDED) >= share * jnp.sum(state.status != DONE)

    def step(state: RolloutState) -> RolloutState:
        draw, state = feed_and_sample(
            backbone, weights, prompt_cache, state, token_keys, tables.banned, settings.temperature
        )
        if state.forks is not None:
            forks, asks = track_coordinates(state.forks, draw, state.length, tables, settings)
            state = state.replace(forks=forks)
        state = append(state, draw, tables.end_of_turn)
        if state.forks is not None:
            state = spend_fork_budget(state, asks, fork_keys, settings)
        return state.replace(steps=state.steps + 1)

    state = jax.lax.while_loop(lambda state: unfinished(state) & ~few_left(state), step, state)
    return state, Pause(any_active(state, room + 1), unfinished(state))


def feed_and_sample(
    backbone: Backbone,
    weights: SamplingWeights,
    prompt_cache: PromptCache,
    state: RolloutState,
    keys: jax.Array,
    banned: jax.Array,
    temperature: float,
) -> tuple[Draw, RolloutState]:
    """Feeds the last known token of every row and draws the next. Feeding a token again rewrites its cache slot."""
    last = state.length - 1
    token, positions = last_token(state)
    groups, slots = last.shape
    new = ResponseInputs(
        tokens=token,
        positions=positions,
        feature_index=jnp.full((groups, slots, 1), -1, jnp.int32),
        features=jnp.zeros((groups, 0, backbone.config.text.hidden_size), jnp.float32),
    )
    hidden, cache = backbone.extend(prompt_cache, state.cache, new, last, jnp.ones_like(last), weights)
    uniform = sampling.slot_uniforms(keys, state.length)
    with jax.named_scope("head"):
        logits = backbone.logits(hidden[:, :, 0], weights)
    drawn = sampling.sample(logits, banned, temperature, uniform)
    return Draw(*drawn, active=state.status == ACTIVE), state.replace(cache=cache)


def last_token(state: RolloutState) -> tuple[jax.Array, jax.Array]:
    """The last known token of every row `[B, M, 1]` and its rope position `[B, M, 1, 3]`."""
    last = (state.length - 1)[..., None]
    token = jnp.take_along_axis(state.tokens, last, axis=2)
    return token, jnp.take_along_axis(state.positions, last[..., None], axis=2)


@jax.named_scope("append")
def append(state: RolloutState, draw: Draw, end_of_turn: jax.Array) -> RolloutState:
    """Writes the drawn tokens of active rows and moves each row to its new status."""
    length = state.tokens.shape[2]
    here = (jnp.arange(length) == state.length[..., None]) & draw.active[..., None]
    grown = state.length + draw.active
    ended = draw.active & end_of_turn[draw.token]
    full = draw.active & ~ended & (grown >= length)
    return state.replace(
        tokens=jnp.where(here, draw.token[..., None], state.tokens),
        sampled=state.sampled | here,
        log_probabilities=jnp.where(here, draw.log_probability[..., None], state.log_probabilities),
        entropy=jnp.where(here, draw.entropy[..., None], state.entropy),
        positions=jnp.where(here[..., None], state.next_position[..., None, None], state.positions),
        feature_index=jnp.where(here, -1, state.feature_index),
        length=grown,
        next_position=state.next_position + draw.active,
        status=jnp.where(ended, TURN_ENDED, jnp.where(full, DONE, state.status)),
    )


def append_observation(state: RolloutState, serving: Serving) -> RolloutState:
    """Writes the observations of a turn behind the rows they belong to; the cache holds them already.

    Args:
        serving: what the host prepared; `counts` tokens per row, none for rows that were not served.
    """
    slot = jnp.arange(state.tokens.shape[2])
    index = slot - state.length[..., None]  # [B, M, T], the observation token that a slot takes
    here = (index >= 0) & (index < serving.counts[..., None])
    index = jnp.clip(index, 0, serving.tokens.shape[2] - 1)

    def place(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(here, jnp.take_along_axis(new, index, axis=2), old)

    positions = jnp.take_along_axis(serving.positions, index[..., None], axis=2)
    return state.replace(
        tokens=place(serving.tokens, state.tokens),
        positions=jnp.where(here[..., None], positions, state.positions),
        feature_index=place(serving.feature_index, state.feature_index),
        length=state.length + serving.counts,
        next_position=serving.next_position,
        status=serving.status,
    )


@jax.named_scope("evr")
def track_coordinates(
    forks: ForkState, draw: Draw, slot: jax.Array, tables: VocabularyTables, settings: LoopSettings
) -> tuple[ForkState, Asks]:
    """Follows H_base and the coordinates of tool calls; says which base trajectories close a box with this token.

    The coordinates are the tokens between the one that opens a call's first list and the one that closes it. Only that
    list is looked at: a label may hold brackets too.

    Args:
        draw: this step's tokens.
        slot: `[B, M]` int32, the response slot that the drawn token takes.
    """
    assert settings.evr is not None
    token, active = draw.token, draw.active
    value = draw.entropy * settings.evr.entropy_scale

    in_base = active & (forks.base_count < settings.evr.base_tokens)
    base_sum = forks.base_sum + jnp.where(in_base, value, 0.0)
    base_count = forks.base_count + in_base

    closes = active & forks.in_list & tables.closes_list[token]
    coordinate = active & forks.in_list & ~closes
    window, window_count = evr.push(forks.window, forks.window_count, value, coordinate)
    fork_start, highest = forks.fork_start, forks.highest
    if settings.evr.position == "uncertain":
        higher = coordinate & (value > highest)
        fork_start, highest = jnp.where(higher, slot, fork_start), jnp.where(higher, value, highest)
    opens = (
        active & forks.in_call & ~forks.in_list & ~forks.list_done
        & tables.opens_list[token] & ~tables.closes_list[token]
    )  # fmt: skip
    call_opens = active & tables.opens_call[token]
    call_ends = active & (tables.closes_call[token] | tables.end_of_turn[token])

    is_base = jnp.arange(token.shape[1]) < settings.base_slots
    h_base = base_sum / jnp.maximum(base_count, 1)
    h_tool = evr.window_mean(window, window_count)
    decided = closes & is_base & (window_count > 0)
    eligible = decided & settings.evr.eligible(h_tool - h_base)
    asks = Asks(decided, eligible, fork_start, jnp.zeros_like(fork_start), h_base, h_tool)

    return dataclasses.replace(
        forks,
        base_sum=base_sum,
        base_count=base_count,
        in_call=(forks.in_call | call_opens) & ~call_ends,
        in_list=(forks.in_list | opens) & ~closes & ~call_ends,
        list_done=(forks.list_done | closes) & ~call_opens & ~call_ends,
        fork_start=jnp.where(opens, slot + 1, fork_start),
        highest=jnp.where(opens, -jnp.inf, highest),
        window=window,
        window_count=jnp.where(opens, 0, window_count),
        eligible=jnp.where(decided, eligible, forks.eligible),
        eligible_start=jnp.where(decided, fork_start, forks.eligible_start),
        eligible_h_base=jnp.where(decided, h_base, forks.eligible_h_base),
        eligible_h_tool=jnp.where(decided, h_tool, forks.eligible_h_tool),
    ), asks


@jax.named_scope("evr")
def spend_fork_budget(state: RolloutState, asks: Asks, keys: jax.Array, settings: LoopSettings) -> RolloutState:
    """Grants forks to those who ask now; settles the budget of groups whose base trajectories ended their first turn.

    With `repeated`, each step after that turn is one more pass over the eligible base trajectories, until no slot is
    free; slots that nobody eligible can claim become fresh trajectories.
    """
    forks = state.forks
    assert forks is not None and settings.evr is not None
    is_base = jnp.arange(state.status.shape[1]) < settings.base_slots
    waiting = ~forks.settled & ~jnp.any((state.status == ACTIVE) & is_base, axis=1)
    eligible = forks.eligible & is_base
    room = jnp.any(state.status == EMPTY, axis=1)
    again = eligible & (waiting & room)[:, None] & ~asks.decided & settings.evr.repeated
    asks = Asks(
        decided=asks.decided | again,
        eligible=asks.eligible | again,
        position=jnp.where(again, forks.eligible_start, asks.position),
        passes=jnp.where(again, forks.passes[:, None] + 1, asks.passes),
        h_base=jnp.where(again, forks.eligible_h_base, asks.h_base),
        h_tool=jnp.where(again, forks.eligible_h_tool, asks.h_tool),
    )
    state = jax.lax.cond(
        jnp.any(asks.decided), lambda s: _grant(s, asks, keys, settings.evr), lambda s: s, state
    )  # fmt: skip

    forks = state.forks
    free = state.status == EMPTY
    passes = forks.passes + waiting
    nobody = ~jnp.any(eligible, axis=1) | (not settings.evr.repeated) | (passes >= settings.evr.max_passes)
    fresh = free & (waiting & nobody)[:, None]
    return state.replace(
        status=jnp.where(fresh, ACTIVE, state.status),
        origin=jnp.where(fresh, FRESH, state.origin),
        forks=dataclasses.replace(
            forks, passes=passes, settled=forks.settled | (waiting & (nobody | ~jnp.any(free, axis=1)))
        ),
    )


def _grant(state: RolloutState, asks: Asks, keys: jax.Array, settings: evr.EvrSettings) -> RolloutState:
    """Draws u for each eligible row: it asks for a fork where u < P, and gets a free slot. Writes the record."""
    delta_h = asks.h_tool - asks.h_base
    probability = settings.probability(delta_h)
    uniform = sampling.slot_uniforms(keys, asks.position, asks.passes)
    asked = asks.eligible & (uniform < probability)
    assignment = evr.assign_slots(asked, state.status == EMPTY)
    state = fork(state, assignment, asks.position)
    slot = jnp.broadcast_to(jnp.arange(delta_h.shape[1]), delta_h.shape)
    columns = {
        "slot": slot, "position": asks.position, "pass": asks.passes, "h_base": asks.h_base, "h_tool": asks.h_tool,
        "delta_h": delta_h, "probability": probability, "u": uniform, "eligible": asks.eligible, "asked": asked,
        "granted": assignment.granted, "child": assignment.child,
    }  # fmt: skip
    rows = jnp.stack([columns[name].astype(jnp.float32) for name in DECISION_FIELDS], axis=-1)
    return state.replace(forks=_record(state.forks, rows, asks.decided))


def fork(state: RolloutState, assignment: evr.Assignment, position: jax.Array) -> RolloutState:
    """Copies each granted trajectory into its slot and sets the copy back to `position [B, M]` (per parent), from where
    it samples anew. Tokens and cache before that slot are the parent's; what lies behind is forgotten."""
    source, is_child = assignment.source, assignment.is_child

    def copy(leaf: jax.Array) -> jax.Array:
        index = source.reshape(source.shape + (1,) * (leaf.ndim - 2))
        return jnp.take_along_axis(leaf, index, axis=1)

    start = jnp.where(is_child, copy(position), state.length)
    kept = ~is_child[..., None] | (jnp.arange(state.tokens.shape[2]) < start[..., None])
    positions = copy(state.positions)
    at_start = jnp.take_along_axis(positions[..., 0], jnp.minimum(start, positions.shape[2] - 1)[..., None], axis=2)
    return state.replace(
        tokens=jnp.where(kept, copy(state.tokens), 0),
        sampled=kept & copy(state.sampled),
        log_probabilities=jnp.where(kept, copy(state.log_probabilities), 0.0),
        entropy=jnp.where(kept, copy(state.entropy), 0.0),
        positions=jnp.where(kept[..., None], positions, 0),
        feature_index=jnp.where(kept, copy(state.feature_index), -1),
        length=start,
        next_position=jnp.where(is_child, at_start[..., 0], state.next_position),
        status=jnp.where(is_child, ACTIVE, state.status),
        origin=jnp.where(is_child, FORK, state.origin),
        parent=jnp.where(is_child, source, state.parent),
        fork_position=jnp.where(is_child, start, state.fork_position),
        cache=jax.tree.map(copy, state.cache),
    )


def _record(forks: ForkState, rows: jax.Array, decided: jax.Array) -> ForkState:
    """Appends the decided `rows [B, M, fields]` to each group's record; rows past its end are counted only."""
    rank = jnp.cumsum(decided, axis=1) - 1
    records = forks.decisions.shape[1]
    place = jnp.where(decided, forks.decision_count[:, None] + rank, records)
    decisions = jax.vmap(lambda record, index, row: record.at[index].set(row, mode="drop"))(
        forks.decisions, place, rows
    )
    return dataclasses.replace(
        forks, decisions=decisions, decision_count=forks.decision_count + jnp.sum(decided, axis=1)
    )
