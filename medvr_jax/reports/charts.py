"""Curves as inline SVG: one panel per question that a reader asks of a run.

Colours, dashes and fonts come from `page.css`; the numbers under the pointer from `page.js`, which reads `data-points`.
Without either a panel still shows its lines, its axes and the last value of each series.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvr_jax.reports.text import escape, number

Row = Mapping[str, Any]
Point = tuple[float, float | None]  # step, value; None where the value was not finite

_WIDTH, _HEIGHT = 400, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 10, 10, 26
_MOST_POINTS = 400


@dataclass(frozen=True)
class Panel:
    """What one chart shows: keys of `metrics.jsonl` with their labels; low and high fix an end of the axis."""

    title: str
    note: str
    series: tuple[tuple[str, str], ...]
    low: float | None = None
    high: float | None = None


PANELS = (
    Panel(
        "Held-out questions",
        "Greedy, one trajectory each, never trained on.",
        (("eval/accuracy", "accuracy"), ("eval/hit_rate", "zoom hits the true place"), ("eval/mean_iou", "mean IoU")),
        0,
        1,
    ),
    Panel(
        "Rewards",
        "Mean over the rollout's trajectories; the total is weighted and gated.",
        (
            ("reward/total", "total"),
            ("reward/accuracy", "accuracy"),
            ("reward/tool", "tool"),
            ("reward/format", "format"),
        ),
    ),
    Panel(
        "Right answers",
        "Share of trajectories: all of them, the base ones, which are as the policy samples, and forks.",
        (("rollout/right_rate", "all"), ("base/right_rate", "base"), ("fork/right_rate", "forks")),
        0,
        1,
    ),
    Panel(
        "Consensus",
        "What most right trajectories looked at: their overlap with it, the shares that agree and that hit the true "
        "place, and the share of groups that agree on another.",
        (
            ("reward/consensus_iou", "mean IoU"),
            ("reward/purity", "agree"),
            ("audit/purity", "hit"),
            ("audit/consensus_elsewhere", "elsewhere"),
        ),
        0,
        1,
    ),
    Panel(
        "Use of the tool",
        "Share of trajectories that call it, and of calls that return an image.",
        (("rollout/tool_rate", "use the tool"), ("rollout/valid_call_rate", "valid calls")),
        0,
        1,
    ),
    Panel(
        "Forks",
        "Asked for by an uncertain box, and granted within the budget.",
        (("rollout/forks_asked", "asked"), ("rollout/forks_granted", "granted")),
        0,
    ),
    Panel(
        "Entropy",
        "Mean over sampled tokens, in nats.",
        (("train/entropy", "of the scorer"), ("rollout/entropy", "of the sampler")),
        0,
    ),
    Panel("Distance from the reference", "KL to the policy before training (k3).", (("train/kl", "KL"),), 0),
    Panel(
        "Length",
        "Sampled tokens of a trajectory.",
        (("rollout/sampled_tokens", "mean"), ("rollout/sampled_tokens_max", "longest")),
        0,
    ),
    Panel(
        "How trajectories end",
        "Share that answers, keeps to the form, or runs out of room.",
        (
            ("rollout/answered_rate", "answered"),
            ("rollout/format_rate", "well-formed"),
            ("rollout/truncated_rate", "truncated"),
        ),
        0,
        1,
    ),
    Panel(
        "Groups that teach nothing",
        "All their trajectories earned the same.",
        (("train/zero_spread_groups", "groups"),),
        0,
    ),
    Panel("Loss", "Its value says little; its jumps do.", (("train/loss", "loss"),)),
    Panel("Gradient", "Global norm before clipping.", (("train/grad_norm", "norm"),), 0),
    Panel(
        "Sampler against scorer",
        "Largest difference of a log-probability before the update; far below 0.001 is sound in float32.",
        (("train/sampler_drift", "drift"),),
        0,
    ),
)


def curves(rows: Sequence[Row]) -> str:
    """All panels that have data."""
    steps, after_first = (rows[0]["step"], rows[-1]["step"]), rows[1:]
    drawn = [chart(panel, rows, steps) for panel in PANELS]
    drawn.append(chart(time_panel(after_first), after_first, steps))
    return f'<div class="panels">{"".join(drawn)}</div>'


def points(rows: Sequence[Row], key: str) -> list[Point]:
    """The values of a key over the steps; rows without the key are left out."""
    found = [(row["step"], row[key]) for row in rows if key in row]
    return [(step, value if isinstance(value, int | float) else None) for step, value in found]


def thinned(line: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most `most` points, each the mean of as many neighbours."""
    size = -(-len(line) // most)
    if size <= 1:
        return list(line)
    result: list[Point] = []
    for start in range(0, len(line), size):
        part = line[start : start + size]
        known = [value for _, value in part if value is not None]
        result.append((part[len(part) // 2][0], math.fsum(known) / len(known) if known else None))
    return result


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between low and high, at most about `most`."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if span / (s * power) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def limits(values: Sequence[float], low: float | None, high: float | None) -> tuple[float, float]:
    """The axis: the fixed ends, else the data with a little air; never empty."""
    smallest, largest = min(values), max(values)
    air = 0.06 * (largest - smallest) or 0.1 * abs(largest) or 1.0
    bottom = min(low, smallest) if low is not None else smallest - air
    top = max(high, largest) if high is not None else largest + air
    return bottom, top if top > bottom else bottom + 1.0


def chart(panel: Panel, rows: Sequence[Row], steps: tuple[float, float]) -> str:
    """A panel as a <figure>, or nothing if no row has any of its keys. `steps` are the ends of the x axis."""
    lines = [(label, thinned(points(rows, key))) for key, label in panel.series]
    lines = [(label, line) for label, line in lines if any(value is not None for _, value in line)]
    if not lines:
        return ""
    bottom, top = limits([v for _, line in lines for _, v in line if v is not None], panel.low, panel.high)
    first, last = steps if steps[1] > steps[0] else (steps[0], steps[0] + 1)

    def x(step: float) -> float:
        return round(_LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT), 2)

    def y(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (value - bottom) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM), 2)

    parts = []
    for tick in ticks(bottom, top):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(tick)}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y(tick) + 4}" text-anchor="end">{number(tick)}</text>')
    for tick in ticks(first, last, 6):
        if tick == int(tick):
            parts.append(f'<text x="{x(tick)}" y="{_HEIGHT - 7}" text-anchor="middle">{int(tick):,}</text>')
    for index, (_, line) in enumerate(lines, start=1):
        parts.append(_line(index, [(x(step), None if value is None else y(value)) for step, value in line]))
    parts.append('<path class="cursor" d=""/>')
    data = {
        "x": [_LEFT, _WIDTH - _RIGHT, first, last],
        "y": [_TOP, _HEIGHT - _BOTTOM],
        "lines": [line for _, line in lines],
    }
    spoken = "; ".join(f"{label} from {number(_known(line)[0])} to {number(_known(line)[-1])}" for label, line in lines)
    return (
        f'<figure class="panel"><figcaption><h3>{escape(panel.title)}</h3><p>{escape(panel.note)}</p></figcaption>'
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(panel.title)}:'
        f' {escape(spoken)}" data-points="{escape(json.dumps(data))}">{"".join(parts)}</svg>{_legend(lines)}</figure>'
    )


def _known(line: Sequence[Point]) -> list[float]:
    return [value for _, value in line if value is not None]


def _line(index: int, places: Sequence[tuple[float, float | None]]) -> str:
    """A polyline that breaks where a value is missing, with dots if they are few."""
    path, pen_down = [], False
    for x, y in places:
        if y is not None:
            path.append(f"{'L' if pen_down else 'M'}{x} {y}")
        pen_down = y is not None
    dots = ""
    if len(places) <= 24:
        dots = "".join(f'<circle cx="{x}" cy="{y}" r="2.6"/>' for x, y in places if y is not None)
    return f'<g class="series s{index}"><path d="{"".join(path)}"/>{dots}</g>'


def _legend(lines: Sequence[tuple[str, Sequence[Point]]]) -> str:
    items = []
    for index, (label, line) in enumerate(lines, start=1):
        sample = f'<svg class="sample" viewBox="0 0 22 8" aria-hidden="true"><g class="series s{index}">'
        sample += '<path d="M1 4H21"/></g></svg>'
        items.append(f"<li>{sample}{escape(label)} <b>{number(_known(line)[-1])}</b></li>")
    return f'<ul class="legend">{"".join(items)}<li class="at" aria-live="off"></li></ul>'


def time_panel(rows: Sequence[Row]) -> Panel:
    """Where the seconds of these rows went: the four largest of the time/* keys that make up a step."""
    keys = {
        key
        for row in rows
        for key in row
        if key.startswith("time/") and key not in ("time/step", "time/evaluate", "time/compile")
    }

    def spent(key: str) -> float:
        return sum(_known(points(rows, key)))

    largest = sorted(keys, key=lambda key: (-spent(key), key))[:4]
    return Panel(
        "Time",
        "Seconds of each step, its largest phases; without the first step, which also compiles.",
        tuple((key, key.removeprefix("time/").replace("_", " ")) for key in largest),
        0,
    )
