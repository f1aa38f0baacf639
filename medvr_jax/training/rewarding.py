"""From finished trajectories to rewards and advantages: texts on the host, boxes and sums on the device."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medvr_jax.rewards.answers import extract_answer, is_correct
from medvr_jax.rewards.format import format_reward
from medvr_jax.rewards.total import tool_reward_by_mode, total_reward
from medvr_jax.rollout.trajectories import Rollout, Trajectory
from medvr_jax.training.advantages import group_advantages


@dataclasses.dataclass(frozen=True)
class RewardSettings:
    """Static under jit; see `configs/base.py`, sections rewards and grpo."""

    accuracy_weight: float
    format_weight: float
    tool_weight: float
    format_penalty: float
    tool: str
    eta: float
    raster: int
    high: float
    low: float
    minimum_correct: int
    std_threshold: float
    normalise_by_std: bool


class Rewards(NamedTuple):
    """Rewards of a rollout: `[B, M]` float32 each, `has_spread [B]` bool.

    `tool` is R_tool as it enters the total, before its weight; `iou` the overlap with the group's consensus.
    """

    accuracy: jax.Array
    format: jax.Array
    tool: jax.Array
    total: jax.Array
    iou: jax.Array
    advantages: jax.Array
    has_spread: jax.Array


def prediction(trajectory: Trajectory) -> str | None:
    """The answer in the last turn, None when there is none."""
    return extract_answer(trajectory.texts[-1]) if trajectory.turns else None


def accuracy_of(rollout: Rollout) -> np.ndarray:
    """R_acc `[B, M]` float32: 1 where the answer is right, else 0."""
    return np.array(
        [
            [
                is_correct(
                    prediction(trajectory),
                    answer=prompt.example.answer,
                    answer_kind=prompt.example.answer_kind,
                    options=prompt.example.options,
                )
                for trajectory in group
            ]
            for prompt, group in zip(rollout.prompts, rollout.trajectories, strict=True)
        ],
        np.float32,
    )


def zoom_boxes(rollout: Rollout, tool_turns: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised zoom boxes `[B, M, Z, 4]` float32 and which of them exist `[B, M, Z]`; Z is at least 1."""
    groups, slots = len(rollout.trajectories), len(rollout.trajectories[0])
    boxes = np.zeros((groups, slots, max(tool_turns, 1), 4), np.float32)
    valid = np.zeros(boxes.shape[:3], bool)
    for b, group in enumerate(rollout.trajectories):
        for m, trajectory in enumerate(group):
            for z, zoom in enumerate(trajectory.zooms):
                boxes[b, m, z], valid[b, m, z] = zoom.normalised, True
    return boxes, valid


def reward_rollout(rollout: Rollout, tool_turns: int, settings: RewardSettings) -> Rewards:
    """All rewards of a rollout, and the advantages of its groups."""
    formats = [
        [
            settings.format_penalty
            if trajectory.ended != "answer"
            else format_reward(trajectory.texts, penalty=settings.format_penalty)
            for trajectory in group
        ]
        for group in rollout.trajectories
    ]
    boxes, valid = zoom_boxes(rollout, tool_turns)
    return _combine(boxes, valid, accuracy_of(rollout), np.array(formats, np.float32), settings)


@functools.partial(jax.jit, static_argnames="settings")
def _combine(
    boxes: jax.Array, valid: jax.Array, accuracy: jax.Array, format_: jax.Array, settings: RewardSettings
) -> Rewards:
    result = tool_reward_by_mode(
        settings.tool,
        boxes,
        valid,
        accuracy > 0,
        eta=settings.eta,
        high=settings.high,
        low=settings.low,
        resolution=settings.raster,
        minimum_correct=settings.minimum_correct,
    )
    total = total_reward(
        accuracy,
        format_,
        result.reward,
        accuracy_weight=settings.accuracy_weight,
        format_weight=settings.format_weight,
        tool_weight=settings.tool_weight,
        tool_mode=settings.tool,
    )
    advantages, has_spread = group_advantages(
        total, std_threshold=settings.std_threshold, normalise_by_std=settings.normalise_by_std
    )
    return Rewards(accuracy, format_, result.reward, total, result.iou, advantages, jnp.asarray(has_spread))
