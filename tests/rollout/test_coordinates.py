"""Which boxes are decided, and where a fork of each would begin: made-up streams of tokens, against their grammar."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvr_jax.rollout import loop
from medvr_jax.rollout.evr import EvrSettings
from medvr_jax.rollout.state import ForkState, initial_fork_state

B, M, BASES, STEPS, WINDOW = 6, 5, 3, 90, 3
V, WORD, CALL, OPEN, CLOSE, CALL_END, END = 7, 1, 2, 3, 4, 5, 6
IDS = jnp.arange(V)
TABLES = loop.VocabularyTables(IDS < 0, IDS == END, IDS == CALL, IDS == CALL_END, IDS == OPEN, IDS == CLOSE)
SETTINGS = EvrSettings(threshold=0.0123, base_tokens=6, window=WINDOW)


class Stream(NamedTuple):
    """One row: its tokens, their entropies, and where each box that closes begins and closes."""

    tokens: list[int]
    entropy: np.ndarray
    boxes: list[tuple[int, int]]


def make_stream(rng: np.random.Generator) -> Stream:
    """Words and lists outside calls, calls with one or two lists, and calls that end before their list does."""
    tokens: list[int] = []
    boxes: list[tuple[int, int]] = []
    while len(tokens) < STEPS:
        tokens += [WORD] * int(rng.integers(0, 4))
        kind = rng.choice(["call", "call", "two lists", "cut off", "no call", "empty"])
        if kind == "no call":
            tokens += [OPEN, WORD, CLOSE]
            continue
        tokens += [CALL, *[WORD] * int(rng.integers(0, 2)), OPEN]
        count = 0 if kind == "empty" else int(rng.integers(1, 7))
        first = len(tokens)
        tokens += [WORD] * count
        if kind == "cut off":
            tokens += [END]
            continue
        if count:
            boxes.append((first, len(tokens)))
        tokens += [CLOSE, *([OPEN, WORD, WORD, CLOSE] if kind == "two lists" else []), CALL_END]
    # Few different values: the highest is often there twice.
    return Stream(tokens, rng.integers(0, 5, len(tokens)) / 4, boxes)


@functools.partial(jax.jit, static_argnums=3)
def track(forks: ForkState, draw: loop.Draw, slot: jax.Array, evr: EvrSettings) -> tuple[ForkState, loop.Asks]:
    return loop.track_coordinates(forks, draw, slot, TABLES, loop.LoopSettings(1.0, BASES, evr))


@pytest.mark.parametrize("gate", ["entropy", "random"])
@pytest.mark.parametrize("position", ["first", "uncertain"])
def test_boxes_are_decided_as_the_grammar_says(gate: str, position: str) -> None:
    rng = np.random.default_rng(0)
    streams = [[make_stream(rng) for _ in range(M)] for _ in range(B)]
    evr = dataclasses.replace(SETTINGS, gate=gate, position=position)
    forks, done, found = initial_fork_state(B, M, WINDOW, 1), np.zeros((B, M), int), []
    for _ in range(STEPS):
        active = rng.random((B, M)) < 0.9
        token, entropy = (
            np.array([[getattr(s, name)[i] for s, i in zip(*x, strict=True)] for x in zip(streams, done, strict=True)])
            for name in ("tokens", "entropy")
        )
        draw = loop.Draw(*map(jnp.asarray, (token, entropy, entropy.astype(np.float32), active)))
        forks, asks = track(forks, draw, jnp.asarray(done + 1, jnp.int32), evr)  # slot 0 is the prompt's last token
        for b, m in np.argwhere(asks.decided):
            values = (asks.position, asks.h_base, asks.h_tool, asks.eligible)
            found.append((b, m, done[b, m], *(float(x[b, m]) for x in values)))
            kept = (forks.eligible_start, forks.eligible_h_base, forks.eligible_h_tool, forks.eligible)
            assert found[-1][3:] == tuple(float(x[b, m]) for x in kept)
        done += active
    expected = []
    for b, row in enumerate(streams):
        for m, (_, entropy, boxes) in enumerate(row[:BASES]):
            for first, close in boxes:
                if close < done[b, m]:
                    start = first + int(np.argmax(entropy[first:close])) if position == "uncertain" else first
                    h_base, h_tool = entropy[: min(6, close + 1)].mean(), entropy[first:close][-WINDOW:].mean()
                    eligible = gate == "random" or h_tool - h_base > evr.threshold
                    expected.append((b, m, close, start + 1, h_base, h_tool, eligible))
    assert len(expected) > 80
    assert {x[-1] for x in expected} == ({True} if gate == "random" else {True, False})
    np.testing.assert_allclose(sorted(found), np.array(sorted(expected), float), atol=1e-6)
