"""Rollouts as plain JSON objects, one per trajectory: what `rollouts/step_*.jsonl` and the viewer hold."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from medvr_jax.rollout.trajectories import Rollout
from medvr_jax.training.rewarding import Rewards, prediction


def rollout_records(rollout: Rollout, rewards: Rewards, step: int) -> list[dict[str, Any]]:
    """The trajectories of a rollout, group after group. Token arrays start behind the prompt's last token."""
    rewards = Rewards(*(np.asarray(x) for x in jax.device_get(rewards)))
    return [
        _record(rollout, rewards, step, b, m) for b, group in enumerate(rollout.trajectories) for m in range(len(group))
    ]


def _record(rollout: Rollout, rewards: Rewards, step: int, b: int, m: int) -> dict[str, Any]:
    example, trajectory, host = rollout.prompts[b].example, rollout.trajectories[b][m], rollout.host
    tokens = slice(1, int(host.length[b, m]))
    return {
        "step": step,
        "group": b,
        "prompt_id": example.id,
        "slot": m,
        "origin": trajectory.origin,
        "parent": trajectory.parent,
        "fork_position": trajectory.fork_position,
        "question": example.question,
        "options": list(example.options),
        "answer": example.answer,
        "prediction": prediction(trajectory),
        "correct": bool(rewards.accuracy[b, m] > 0),
        "turns": [
            {
                "text": turn.text,
                "call_box": list(turn.call_box) if turn.call_box else None,
                "observation": turn.observation,
            }
            for turn in trajectory.turns
        ],
        "boxes": [list(zoom.normalised) for zoom in trajectory.zooms],
        "true_boxes": [list(box) for box in example.boxes],
        "token_ids": host.tokens[b, m, tokens].tolist(),
        "sampled": host.sampled[b, m, tokens].tolist(),
        "entropy": _rounded(host.entropy[b, m, tokens]),
        "log_probabilities": _rounded(host.log_probabilities[b, m, tokens]),
        "rewards": {
            "accuracy": float(rewards.accuracy[b, m]),
            "format": float(rewards.format[b, m]),
            "tool": float(rewards.tool[b, m]),
            "total": float(rewards.total[b, m]),
        },
        "advantage": float(rewards.advantages[b, m]),
        "consensus_iou": float(rewards.iou[b, m]),
        "decisions": [
            {name: value for name, value in decision.items() if name != "slot"}
            for decision in rollout.decisions[b]
            if decision["slot"] == m
        ],
        "ended": trajectory.ended,
        "image": None,
    }


def _rounded(values: np.ndarray) -> list[float]:
    """Five decimals are enough to read, and halve the file."""
    return [round(float(v), 5) for v in values]


def rollout_metrics(rollout: Rollout, rewards: Rewards) -> dict[str, float]:
    """The step's figures under the names that `metrics.jsonl` uses: reward/* and rollout/*."""
    rewards = Rewards(*(np.asarray(x) for x in jax.device_get(rewards)))
    trajectories = [trajectory for group in rollout.trajectories for trajectory in group]
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    called = sum(turn.called for turn in turns)
    decisions = [decision for group in rollout.decisions for decision in group]
    sampled = rollout.host.sampled.sum(-1)
    correct = rewards.accuracy > 0
    origins = np.array([[trajectory.origin for trajectory in group] for group in rollout.trajectories])
    return {
        "reward/total": float(rewards.total.mean()),
        "reward/accuracy": float(rewards.accuracy.mean()),
        "reward/accuracy_base": float(rewards.accuracy[origins == "base"].mean()),
        "reward/format": float(rewards.format.mean()),
        "reward/tool": float(rewards.tool.mean()),
        "reward/consensus_iou": float(rewards.iou[correct].mean()) if correct.any() else 0.0,
        "rollout/tool_rate": float(np.mean([any(turn.called for turn in t.turns) for t in trajectories])),
        "rollout/valid_call_rate": sum(turn.zoom is not None for turn in turns) / called if called else 0.0,
        "rollout/format_rate": float((rewards.format >= 0).mean()),
        "rollout/answered_rate": float(np.mean([t.ended == "answer" for t in trajectories])),
        "rollout/truncated_rate": float(np.mean([t.ended == "truncated" for t in trajectories])),
        "rollout/forks_asked": float(sum(decision["asked"] for decision in decisions)),
        "rollout/forks_granted": float((origins == "fork").sum()),
        "rollout/fresh": float((origins == "fresh").sum()),
        "rollout/sampled_tokens": float(sampled.mean()),
        "rollout/sampled_tokens_max": float(sampled.max()),
        "rollout/entropy": float(rollout.host.entropy.sum() / max(sampled.sum(), 1)),
        "rollout/decode_steps": float(rollout.decode_steps),
    }
