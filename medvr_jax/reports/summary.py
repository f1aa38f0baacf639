"""A run in a few lines: `report/summary.md`, and the facts that the page repeats."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medvr_jax.reports.progress import duration
from medvr_jax.reports.text import number

Row = Mapping[str, Any]

_LINES = (
    ("held-out accuracy", "eval/accuracy"),
    ("zoom hits the true place", "eval/hit_rate"),
    ("mean IoU with the true box", "eval/mean_iou"),
    ("reward", "reward/total"),
    ("right answers of the rollouts", "rollout/right_rate"),
    ("use of the tool", "rollout/tool_rate"),
    ("valid calls", "rollout/valid_call_rate"),
    ("entropy", "train/entropy"),
    ("KL to the reference", "train/kl"),
    ("gradient norm", "train/grad_norm"),
    ("sampler drift", "train/sampler_drift"),
)


class Facts(NamedTuple):
    """What a whole run amounts to; None where the run did not record it."""

    steps: int
    seconds: float
    seconds_per_step: float | None
    forks_asked: float
    forks_granted: float
    compilations: int | None
    last_compilation: int | None
    resumed: tuple[int, ...]  # the steps with which a new process went on


def known(rows: Sequence[Row], key: str) -> list[float]:
    """The finite values of a key, in order."""
    return [row[key] for row in rows if isinstance(row.get(key), int | float)]


def facts(rows: Sequence[Row]) -> Facts:
    """Totals and medians over all rows."""
    times = known(rows, "time/step")
    growth = _compilation_growth(rows)
    return Facts(
        steps=len(times) or len(rows),
        seconds=sum(times) + sum(known(rows, "time/evaluate")),
        seconds_per_step=statistics.median(times) if times else None,
        forks_asked=sum(known(rows, "rollout/forks_asked")),
        forks_granted=sum(known(rows, "rollout/forks_granted")),
        compilations=sum(growth.values()) if growth else None,
        last_compilation=max((step for step, more in growth.items() if more), default=None),
        resumed=tuple(row["step"] for row in rows if row.get("resumed")),
    )


def _compilation_growth(rows: Sequence[Row]) -> dict[int, int]:
    """Step -> compilations since the row before. Rows count those of their process, which begins at 0 on resume."""
    growth, before = {}, 0
    for row in rows:
        count = row.get("compilations")
        if isinstance(count, int):
            # A falling count is a resumed run's too, whose rows did not say so yet.
            growth[row["step"]] = count - (0 if row.get("resumed") or count < before else before)
            before = count
    return growth


def when_compiled(total: Facts) -> str:
    """When XLA compiled last, and which steps are no sign of a shape that is not static."""
    text = f"the last by step {number(total.last_compilation)}"
    if total.resumed:
        text += f"; resumed, and so compiled anew, with step {', '.join(map(number, total.resumed))}"
    return text


def sentence(rows: Sequence[Row]) -> str:
    """The run in one sentence."""
    total = facts(rows)
    text = f"{total.steps:,} update{'' if total.steps == 1 else 's'}"
    return text + (f" in {duration(total.seconds)}." if total.seconds else ".")


def render(name: str, rows: Sequence[Row]) -> str:
    """The summary as Markdown."""
    lines = [f"# {name}", "", sentence(rows), "", "| figure | first | best | last |", "|---|---:|---:|---:|"]
    for label, key in _LINES:
        values = known(rows, key)
        if values:
            best = number(max(values)) if key.startswith(("eval/", "reward/")) else ""
            lines.append(f"| {label} (`{key}`) | {number(values[0])} | {best} | {number(values[-1])} |")
    total = facts(rows)
    lines.append("")
    if total.seconds_per_step is not None:
        lines.append(f"- Median time of a step: {number(total.seconds_per_step)} s.")
    if total.forks_asked:
        lines.append(f"- Forks: {number(total.forks_granted)} granted of {number(total.forks_asked)} asked.")
    if total.compilations is not None:
        lines.append(f"- Compilations: {total.compilations}, {when_compiled(total)}.")
    return "\n".join(lines).rstrip() + "\n"
