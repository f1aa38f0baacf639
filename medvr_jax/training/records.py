"""Rollouts as plain JSON objects, one per trajectory: what `rollouts/step_*.jsonl` and the viewer hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from medvr_jax.evaluation.grounding import ELSEWHERE, any_hit, mask_overlap
from medvr_jax.inputs.boxes import Size, scale_box
from medvr_jax.inputs.tokenizer import token_pieces
from medvr_jax.models.config import VisionConfig
from medvr_jax.reports.agreement import union
from medvr_jax.reports.pictures import tool_picture
from medvr_jax.rollout.tools import parse_tool_call
from medvr_jax.rollout.trajectories import Rollout, Trajectory
from medvr_jax.training.rewarding import Rewards, prediction
from medvr_jax.training.throughput import true_counts

PICTURED_GROUPS = 16  # of a step


def rollout_records(
    rollout: Rollout,
    rewards: Rewards | None,
    step: int,
    groups: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    pictured: int = PICTURED_GROUPS,
) -> list[dict[str, Any]]:
    """The trajectories of a rollout, group after group.

    Token arrays start behind the prompt's last token, and positions are indices into them: a fork shares
    `token_ids[:fork_position]` with its parent.

    rewards: None where nobody knows the right answers; what they say is None then.
    groups: for each group of the rollout its number in the step's batch; of those below `pictured` the images that
        tools made are kept, other than crops, which can be cut again.
    """
    if rewards is not None:
        rewards = Rewards(*(np.asarray(x) for x in jax.device_get(rewards)))
    return [
        {"step": step, "group": int(number)}
        | _record(rollout, b, m, tokenizer, int(number) < pictured)
        | (_NO_REWARDS if rewards is None else _rewards(rewards, b, m))
        for b, number in enumerate(groups)
        for m in range(len(rollout.trajectories[b]))
    ]


_NO_REWARDS = {"correct": None, "votes": None, "rewards": None, "advantage": None, "consensus_iou": None}


def _rewards(rewards: Rewards, b: int, m: int) -> dict[str, Any]:
    return {
        "correct": bool(rewards.correct[b, m]),
        "votes": bool(rewards.votes[b, m]),
        "rewards": {
            "accuracy": float(rewards.accuracy[b, m]),
            "format": float(rewards.format[b, m]),
            "tool": float(rewards.tool[b, m]),
            "total": float(rewards.total[b, m]),
        },
        "advantage": float(rewards.advantages[b, m]),
        "consensus_iou": float(rewards.iou[b, m]),
    }


def _record(rollout: Rollout, b: int, m: int, tokenizer: PreTrainedTokenizerBase, pictured: bool) -> dict[str, Any]:
    prompt, trajectory, host = rollout.prompts[b], rollout.trajectories[b][m], rollout.host
    example, tokens = prompt.example, slice(1, int(host.length[b, m]))
    token_ids = host.tokens[b, m, tokens].tolist()
    resized_size = prompt.images[0].resized_size if prompt.images else None
    return {
        "prompt_id": example.id,
        "slot": m,
        "origin": trajectory.origin,
        "parent": trajectory.parent,
        "fork_position": None if trajectory.fork_position is None else trajectory.fork_position - 1,
        "question": example.question,
        "options": list(example.options),
        "answer": example.answer,
        "prediction": prediction(trajectory),
        "turns": [
            {
                "text": turn.text,
                "call_box": list(turn.call_box) if turn.call_box else None,
                "observation": turn.observation,
            }
            | ({"picture": tool_picture(turn.draw())} if pictured and turn.draw else {})
            for turn in trajectory.turns
        ],
        "boxes": [list(zoom.normalised) for zoom in trajectory.zooms],
        "zooms": _zooms(trajectory, resized_size),
        "true_boxes": [list(box) for box in example.boxes],
        "resized_size": list(resized_size) if resized_size else None,
        "token_ids": token_ids,
        "pieces": token_pieces(tokenizer, token_ids),
        "sampled": host.sampled[b, m, tokens].tolist(),
        "entropy": _rounded(host.entropy[b, m, tokens]),
        "log_probabilities": _rounded(host.log_probabilities[b, m, tokens]),
        "decisions": [
            {name: value for name, value in decision.items() if name != "slot"} | {"position": decision["position"] - 1}
            for decision in rollout.decisions[b]
            if decision["slot"] == m
        ],
        "ended": trajectory.ended,
        "image": None,
    }


def _zooms(trajectory: Trajectory, resized_size: Size | None) -> list[dict[str, Any]]:
    """The regions that came back as crops, in all three spaces, with the turn and the tool that asked for each."""
    return [
        {
            "turn": number,
            "tool": parse_tool_call(turn.text).name,
            "normalised": list(turn.zoom.normalised),
            "original": list(turn.zoom.original),
            "resized": list(scale_box(turn.zoom.normalised, (1, 1), resized_size)) if resized_size else None,
        }
        for number, turn in enumerate(trajectory.turns)
        if turn.zoom is not None
    ]


def _rounded(values: np.ndarray) -> list[float]:
    """Five decimals are enough to read, and halve the file."""
    return [round(float(v), 5) for v in values]


def trajectory_facts(rollout: Rollout, rewards: Rewards) -> dict[str, np.ndarray]:
    """What the figures of a step are made of: `[B, M]` arrays; `entropy [B, M, T]`; `[B]` for what is of groups."""

    def each(fact: Callable[[Trajectory], Any]) -> np.ndarray:
        return np.array([[fact(trajectory) for trajectory in group] for group in rollout.trajectories])

    found: Rewards = jax.device_get(rewards)
    names = ("accuracy", "format", "tool", "total", "iou", "has_spread", "correct", "votes", "well_formed", "agreement")
    facts = {name: np.asarray(getattr(found, name)) for name in names} | {
        "called": each(lambda t: sum(turn.called for turn in t.turns)),
        "images": each(lambda t: t.images),
        "zoomed": each(lambda t: bool(t.zooms)),
        "ended": each(lambda t: t.ended),
        "origin": each(lambda t: t.origin),
        "asked": np.array([sum(decision["asked"] for decision in group) for group in rollout.decisions], np.int64),
        "sampled": rollout.host.sampled.sum(-1),
        "entropy": rollout.host.entropy,
    }
    return facts | _audit_facts(rollout, found.consensus)


def work_facts(rollout: Rollout, vision: VisionConfig) -> dict[str, np.ndarray]:
    """What there was to compute in each group: see `throughput.true_counts`."""
    return true_counts(
        rollout.prompt_batch.valid.sum(-1),
        rollout.host.length,
        rollout.host.sampled,
        np.array([[trajectory.fork_position or 0 for trajectory in group] for group in rollout.trajectories]),
        [[len(image.patches) for image in prompt.images] for prompt in rollout.prompts],
        [[len(crop.patches) for crop in group if crop is not None] for group in rollout.crops],
        vision,
    )


def rollout_metrics(facts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The step's figures under the names that `metrics.jsonl` uses: reward/*, rollout/*, base/*, fork/* and audit/*."""
    called, sampled, origin, ended = facts["called"], facts["sampled"], facts["origin"], facts["ended"]
    correct = facts["correct"]
    figures = {
        "reward/total": float(facts["total"].mean()),
        "reward/accuracy": float(facts["accuracy"].mean()),
        "reward/format": float(facts["format"].mean()),
        "reward/tool": float(facts["tool"].mean()),
        "reward/consensus_iou": float(facts["iou"][correct].mean()) if correct.any() else 0.0,
        "rollout/tool_rate": float((called > 0).mean()),
        "rollout/valid_call_rate": float(facts["images"].sum() / called.sum()) if called.any() else 0.0,
        "rollout/right_rate": float(correct.mean()),
        "rollout/format_rate": float(facts["well_formed"].mean()),
        "rollout/answered_rate": float((ended == "answer").mean()),
        "rollout/truncated_rate": float((ended == "truncated").mean()),
        "rollout/forks_asked": float(facts["asked"].sum()),
        "rollout/forks_granted": float((origin == "fork").sum()),
        "rollout/fresh": float((origin == "fresh").sum()),
        "rollout/sampled_tokens": float(sampled.mean()),
        "rollout/sampled_tokens_max": float(sampled.max()),
        "rollout/entropy": float(facts["entropy"].sum() / max(sampled.sum(), 1)),
    }
    if correct.any():
        figures["reward/vote_rate"] = float(facts["votes"][correct].mean())
    return figures | _by_origin(facts, "base") | _by_origin(facts, "fork") | _purity(facts) | _audits(facts)


def _by_origin(facts: Mapping[str, np.ndarray], origin: str) -> dict[str, float]:
    """The figures of the trajectories of one origin as base/* or fork/*, none where there are none.

    Forks are drawn where the policy is uncertain: figures of all trajectories are not those of the policy.
    """
    chosen = facts["origin"] == origin
    if not chosen.any():
        return {}
    values = {
        "right_rate": facts["correct"],
        "format_rate": facts["well_formed"],
        "tool_rate": facts["called"] > 0,
        "reward_total": facts["total"],
        "reward_tool": facts["tool"],
        "sampled_tokens": facts["sampled"],
    }
    figures = {f"{origin}/{name}": float(value[chosen].mean()) for name, value in values.items()}
    audited = chosen & facts["known"][:, None]
    if audited.any():
        figures[f"{origin}/hit_rate"] = float(facts["hit"][audited].mean())
    looked = audited & facts["correct"] & facts["zoomed"]
    if looked.any():
        figures[f"{origin}/purity"] = float(facts["hit"][looked].mean())
    return figures


def _purity(facts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How pure the right trajectories that zoomed seem to be: one alone always agrees, so groups with two or more."""
    groups = (facts["correct"] & facts["zoomed"]).sum(1) >= 2
    return {"reward/purity": float(facts["agreement"][groups].mean())} if groups.any() else {}


def _audit_facts(rollout: Rollout, consensus: np.ndarray) -> dict[str, np.ndarray]:
    """Zooms and `consensus [B, R, R]` against the true boxes: `hit [B, M]`, the others `[B]`. Audits, never rewards."""
    true = [prompt.example.boxes for prompt in rollout.prompts]
    hit = [
        [any_hit([zoom.normalised for zoom in trajectory.zooms], boxes) for trajectory in group]
        for boxes, group in zip(true, rollout.trajectories, strict=True)
    ]
    masks = np.stack([union(boxes, consensus.shape[-1]) for boxes in true])
    iou, covered = mask_overlap(consensus, masks)
    return {
        "known": masks.any((1, 2)),
        "hit": np.array(hit),
        "agreed": consensus.any((1, 2)),
        "agreed_iou": iou,
        "agreed_cover": covered,
    }


def _audits(facts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """audit/*: of the groups whose true boxes are known."""
    known, figures = facts["known"], {}
    if known.any():
        figures["audit/hit_rate"] = float(facts["hit"][known].mean())
    looked = facts["correct"] & facts["zoomed"] & known[:, None]
    if looked.any():
        figures["audit/purity"] = float(facts["hit"][looked].mean())
    agreed = facts["agreed"] & known
    if agreed.any():
        figures["audit/consensus_iou"] = float(facts["agreed_iou"][agreed].mean())
        figures["audit/consensus_elsewhere"] = float((facts["agreed_cover"][agreed] < ELSEWHERE).mean())
    return figures
