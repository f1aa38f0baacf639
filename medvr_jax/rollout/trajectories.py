"""What a rollout leaves behind: the trajectories on the host, and the device arrays that an update needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

from medvr_jax.inputs.batches import PromptBatch
from medvr_jax.inputs.boxes import ZoomBox
from medvr_jax.inputs.chat import Prompt
from medvr_jax.inputs.images import PreparedImage
from medvr_jax.models.backbone import PromptInputs
from medvr_jax.rollout.state import BASE, DECISION_FIELDS, FORK, FRESH

ORIGINS = {BASE: "base", FORK: "fork", FRESH: "fresh"}
CROP, IMAGE = "crop", "image"  # observations that are a region of the image, and the whole of it in another form


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of the policy and what came back.

    Attributes:
        text: the policy's own text, special tokens included.
        called: the turn holds a tool call (valid or not).
        call_box: the box it named, in pixels of the resized image, when it named four numbers.
        zoom: the box that was cut, when a crop came back.
        observation: CROP, IMAGE, the error text that came back, or None when nothing did.
        draw: makes the image again that came back as IMAGE.
    """

    text: str
    called: bool = False
    call_box: tuple[float, ...] | None = None
    zoom: ZoomBox | None = None
    observation: str | None = None
    draw: Callable[[], Image.Image] | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One finished trajectory of a group.

    Attributes:
        turns: in order; a fork's first turn begins with its parent's text.
        ended: "answer" (the last turn called no tool), "turn_limit" (it did, but no turn was left) or "truncated".
        origin: "base", "fork" or "fresh"; parent and fork_position are None unless it is a fork.
    """

    turns: tuple[Turn, ...]
    ended: str
    origin: str
    parent: int | None
    fork_position: int | None

    @property
    def zooms(self) -> tuple[ZoomBox, ...]:
        """The regions that were returned as crops, in order."""
        return tuple(turn.zoom for turn in self.turns if turn.zoom is not None)

    @property
    def images(self) -> int:
        """How many images came back, whichever tools made them."""
        return sum(turn.observation in (CROP, IMAGE) for turn in self.turns)

    @property
    def texts(self) -> tuple[str, ...]:
        """The policy's own text of each turn."""
        return tuple(turn.text for turn in self.turns)


@dataclasses.dataclass(frozen=True)
class TokenArrays:
    """Host copies of the per-token arrays, `[B, M, T]` each, and `length [B, M]`; see `state.RolloutState`."""

    tokens: np.ndarray
    sampled: np.ndarray
    log_probabilities: np.ndarray
    entropy: np.ndarray
    length: np.ndarray


@dataclasses.dataclass(frozen=True)
class Calls:
    """What the devices were given in a rollout, all processes' groups together.

    Attributes:
        decode: per call of the loop (steps, rows, slots of the response caches).
        extend: per call (tokens, slots of the response caches).
        crops: per call (images, patches of each).
    """

    decode: tuple[tuple[int, int, int], ...] = ()
    extend: tuple[tuple[int, int], ...] = ()
    crops: tuple[tuple[int, int], ...] = ()

    def __add__(self, other: Calls) -> Calls:
        return Calls(self.decode + other.decode, self.extend + other.extend, self.crops + other.crops)

    @property
    def steps(self) -> int:
        """Of the sampling loop, all calls together."""
        return sum(steps for steps, _, _ in self.decode)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """B groups of M trajectories; of what is on the host, this process's groups (all, when it is the only one).

    Attributes:
        prompts: the prompts.
        trajectories: `[B][M]`.
        host: the per-token arrays on the host.
        decisions: per group, the record of fork decisions as dicts keyed by `state.DECISION_FIELDS`.
        prompt_inputs: device arrays for the scorer, image features included.
        prompt_batch: the prompts' host arrays, for a scorer that encodes the images itself.
        tokens, positions, feature_index: device arrays `[B, M, T]`, `[B, M, T, 3]`, `[B, M, T]`.
        crop_features: device array `[B, C, F, D]` of the groups' crops.
        crops: the crops themselves, `[B][...]`, None where a group has none in a place; feature_index // F counts them.
        seconds: wall-clock time by phase.
        calls: what the devices were given.
    """

    prompts: list[Prompt]
    trajectories: list[list[Trajectory]]
    host: TokenArrays
    decisions: list[list[dict[str, Any]]]
    prompt_inputs: PromptInputs
    prompt_batch: PromptBatch
    tokens: jax.Array
    positions: jax.Array
    feature_index: jax.Array
    crop_features: jax.Array
    crops: list[list[PreparedImage | None]]
    seconds: dict[str, float]
    calls: Calls


_WHOLE = frozenset({"slot", "position", "pass", "child"})
_FLAGS = frozenset({"eligible", "asked", "granted"})


def read_decisions(record: np.ndarray, count: int) -> list[dict[str, Any]]:
    """One group's record `[Q, fields]` as dicts with Python numbers."""
    rows = record[: min(count, len(record))].tolist()
    kinds = [int if name in _WHOLE else bool if name in _FLAGS else float for name in DECISION_FIELDS]
    return [{n: kind(v) for n, kind, v in zip(DECISION_FIELDS, kinds, row, strict=True)} for row in rows]
