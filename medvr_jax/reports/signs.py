"""Signs in a run's figures that something is wrong, each as one sentence that names the figure and its limit."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medvr_jax.reports.text import number, percent

Row = Mapping[str, Any]
Fields = Mapping[str, Any]  # dotted name -> value

_SOUND_DRIFT = {"float32": 1e-3, "bfloat16": 0.5}  # of a log-probability
_LITTLE_USE = 0.1
_MANY_GROUPS = 0.5
_MANY_TRUNCATED = 0.1
_FEW_WELL_FORMED = 0.9
_LEFT_OF_ENTROPY = 0.1
_HIGHER_REWARD, _LOWER_ACCURACY = 0.05, 0.02


def known(rows: Sequence[Row], key: str) -> list[float]:
    """The finite values of a key, in order."""
    return [row[key] for row in rows if isinstance(row.get(key), int | float)]


def quarters(rows: Sequence[Row], key: str) -> tuple[float, float] | None:
    """Means of a key over its first and its last quarter; None with fewer than two values."""
    values = known(rows, key)
    size = max(len(values) // 4, 1)
    return (statistics.fmean(values[:size]), statistics.fmean(values[-size:])) if len(values) > 1 else None


def signs(rows: Sequence[Row], fields: Fields) -> list[str]:
    """What there is to worry about; "last" and "first" are quarters of the steps.

    Args:
        rows: of metrics.jsonl.
        fields: of the run's configuration; empty where it is not known.
    """
    found = (sign(rows, fields) for sign in _SIGNS)
    return [text for text in found if text]


def _unused_tool(rows: Sequence[Row], fields: Fields) -> str:
    use = quarters(rows, "rollout/tool_rate")
    if not use or not fields.get("rollout.tools") or use[1] >= _LITTLE_USE:
        return ""
    how = "collapsed" if use[0] >= 2 * _LITTLE_USE else "never began"
    return (
        f"The use of the tool {how}: {percent(use[0])} of the first trajectories, {percent(use[1])} of the last "
        f"(`rollout/tool_rate`; below {percent(_LITTLE_USE)} is told)."
    )


def _equal_groups(rows: Sequence[Row], fields: Fields) -> str:
    groups, equal = fields.get("data.prompts_per_step"), quarters(rows, "train/zero_spread_groups")
    if not groups or not equal or equal[1] / groups <= _MANY_GROUPS:
        return ""
    return (
        f"Of the last groups {percent(equal[1] / groups)} taught nothing, as all their trajectories earned the same "
        f"(`train/zero_spread_groups`; above {percent(_MANY_GROUPS)} is told): the questions are too easy or too hard, "
        "see `data.filter_file`."
    )


def _truncated(rows: Sequence[Row], fields: Fields) -> str:
    share = quarters(rows, "rollout/truncated_rate")
    if not share or share[1] <= _MANY_TRUNCATED:
        return ""
    return (
        f"Of the last trajectories {percent(share[1])} were cut off before an answer (`rollout/truncated_rate`; above "
        f"{percent(_MANY_TRUNCATED)} is told): see `rollout.response_length`."
    )


def _malformed(rows: Sequence[Row], fields: Fields) -> str:
    share = quarters(rows, "rollout/format_rate")
    if not share or share[1] >= _FEW_WELL_FORMED:
        return ""
    return (
        f"Of the last trajectories {percent(share[1])} were well formed (`rollout/format_rate`; below "
        f"{percent(_FEW_WELL_FORMED)} is told)."
    )


def _hacked_reward(rows: Sequence[Row], fields: Fields) -> str:
    reward = quarters(rows, "reward/total")
    accuracy = quarters(rows, "eval/accuracy") or quarters(rows, "base/right_rate")
    if not reward or not accuracy:
        return ""
    if reward[1] - reward[0] < _HIGHER_REWARD or accuracy[0] - accuracy[1] < _LOWER_ACCURACY:
        return ""
    return (
        f"The reward rose from {number(reward[0])} to {number(reward[1])} while the accuracy fell from "
        f"{number(accuracy[0])} to {number(accuracy[1])}: the policy may have found a way to earn without answering; "
        "read its last rollouts."
    )


def _drift(rows: Sequence[Row], fields: Fields) -> str:
    drift, limit = known(rows, "train/sampler_drift"), _SOUND_DRIFT.get(fields.get("model.compute_dtype", ""))
    if not drift or limit is None or max(drift) <= limit:
        return ""
    return (
        f"Sampler and scorer differ by up to {number(max(drift))} in a log-probability (`train/sampler_drift`; above "
        f"{number(limit)} is told in {fields['model.compute_dtype']})."
    )


def _lost_entropy(rows: Sequence[Row], fields: Fields) -> str:
    entropy = quarters(rows, "train/entropy")
    if not entropy or entropy[1] >= _LEFT_OF_ENTROPY * entropy[0]:
        return ""
    return (
        f"The entropy fell from {number(entropy[0])} to {number(entropy[1])} nats (`train/entropy`; below "
        f"{percent(_LEFT_OF_ENTROPY)} of the first is told): the policy hardly explores any more."
    )


def _not_finite(rows: Sequence[Row], fields: Fields) -> str:
    names = sorted({name for row in rows for name, value in row.items() if value is None})
    return f"Not finite at some step: {', '.join(f'`{name}`' for name in names)}." if names else ""


_SIGNS: tuple[Callable[[Sequence[Row], Fields], str], ...] = (
    _unused_tool,
    _equal_groups,
    _truncated,
    _malformed,
    _hacked_reward,
    _drift,
    _lost_entropy,
    _not_finite,
)
