"""From finished trajectories to rewards and advantages: texts on the host, boxes and sums on the device."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medvr_jax.datasets.example import Example
from medvr_jax.rewards import medvlm_r1
from medvr_jax.rewards.answers import extract_answer, is_correct
from medvr_jax.rewards.format import format_reward, is_well_formed
from medvr_jax.rewards.total import tool_reward_by_mode, total_reward
from medvr_jax.rollout.trajectories import Rollout, Trajectory
from medvr_jax.training.advantages import group_advantages


@dataclasses.dataclass(frozen=True)
class RewardSettings:
    """Static under jit; see `configs/base.py`, sections rewards and grpo."""

    scheme: str
    accuracy_weight: float
    format_weight: float
    tool_weight: float
    format_penalty: float
    tool: str
    eta: float
    raster: int
    high: float
    low: float
    maximum_popularity: float
    std_threshold: float
    normalise_by_std: bool


class Rewards(NamedTuple):
    """Rewards of a rollout: `[B, M]` float32 each, `correct`, `well_formed` and `votes` `[B, M]` bool, `has_spread [B]`
    bool, `agreement [B]` float32, `consensus [B, R, R]` bool.

    `accuracy` may be a part of 1 under a scheme that pays parts; `correct` is where it is whole. `tool` is R_tool as it
    enters the total, before its weight. `votes` says who made the group's `consensus`, `iou` is the overlap with it,
    and `agreement` the share of its right trajectories that looked at a region for whom that is enough.
    """

    accuracy: jax.Array
    format: jax.Array
    tool: jax.Array
    total: jax.Array
    iou: jax.Array
    advantages: jax.Array
    has_spread: jax.Array
    correct: jax.Array
    well_formed: jax.Array
    votes: jax.Array
    agreement: jax.Array
    consensus: jax.Array


def prediction(trajectory: Trajectory) -> str | None:
    """The answer in the last turn, None when there is none."""
    return extract_answer(trajectory.texts[-1]) if trajectory.turns else None


def _accuracy(trajectory: Trajectory, example: Example, scheme: str) -> float:
    """R_acc, at most 1."""
    reward = medvlm_r1.accuracy_reward if scheme == "medvlm_r1" else is_correct
    said = prediction(trajectory)
    return float(reward(said, answer=example.answer, answer_kind=example.answer_kind, options=example.options))


def _well_formed(trajectory: Trajectory) -> bool:
    return trajectory.ended == "answer" and is_well_formed(trajectory.texts)


def _accuracies(rollout: Rollout, scheme: str) -> np.ndarray:
    """R_acc `[B, M]` float32: 1 where the answer is right, else 0; a scheme may pay parts."""
    return np.array(
        [
            [_accuracy(trajectory, prompt.example, scheme) for trajectory in group]
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
    well_formed = np.array([[_well_formed(trajectory) for trajectory in group] for group in rollout.trajectories])
    looked = np.array([[trajectory.images > 0 for trajectory in group] for group in rollout.trajectories])
    boxes, valid = zoom_boxes(rollout, tool_turns)
    return combine(boxes, valid, looked, _accuracies(rollout, settings.scheme), well_formed, settings)


def reward_arrays(groups: int, slots: int, tool_turns: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The arrays that `reward_rollout` gives to `combine`, for B groups of M slots with Z zooms at most."""
    rows = (groups, slots)
    boxes = (*rows, max(tool_turns, 1), 4)
    kinds = ((boxes, np.float32), (boxes[:3], np.bool_), (rows, np.bool_), (rows, np.float32), (rows, np.bool_))
    return tuple(jax.ShapeDtypeStruct(shape, kind) for shape, kind in kinds)


@functools.partial(jax.jit, static_argnames="settings")
def combine(
    boxes: jax.Array,
    valid: jax.Array,
    looked: jax.Array,
    accuracy: jax.Array,
    well_formed: jax.Array,
    settings: RewardSettings,
) -> Rewards:
    """The arrays of a rollout, boxes `[B, M, Z, 4]` and valid `[B, M, Z]`, looked, accuracy and well_formed `[B, M]`,
    to rewards and advantages."""
    correct = accuracy >= 1.0
    format_ = (
        medvlm_r1.format_reward(well_formed)
        if settings.scheme == "medvlm_r1"
        else format_reward(well_formed, penalty=settings.format_penalty)
    )
    result = tool_reward_by_mode(
        settings.tool,
        boxes,
        valid,
        looked,
        correct,
        eta=settings.eta,
        high=settings.high,
        low=settings.low,
        resolution=settings.raster,
        maximum_popularity=settings.maximum_popularity,
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
    return Rewards(
        accuracy=accuracy,
        format=format_,
        tool=result.reward,
        total=total,
        iou=result.iou,
        advantages=advantages,
        has_spread=jnp.asarray(has_spread),
        correct=correct,
        well_formed=well_formed,
        votes=result.votes,
        agreement=result.agreement,
        consensus=result.consensus,
    )
