"""Plots as small SVG files that stand alone: lines that differ in colour and dash, bands, error bars, their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from medvr_jax.reports.charts import limits, ticks
from medvr_jax.reports.text import escape, number

_WIDTH, _PLOT_HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 40, 44
_ROW = 20  # of the names below the plot
_NAMES, _LETTER = 30, 7.0  # letters of an arm's name that are shown, and pixels of one
_DASHES = ("", "8 4", "2 4", "10 4 2 4", "5 3")
# Fonts and colours of a light and of a dark page, as those of reports/page.css.
_STYLE = """
:root { --ink: #22262b; --quiet: #5d6670; --grid: #e2dfd8; --axis: #8a929a;
  --c0: #1f66b0; --c1: #b4530f; --c2: #12805f; --c3: #7a4fa3; --c4: #6b6f00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --quiet: #a0a9b2; --grid: #31373d; --axis: #7c858e;
  --c0: #6cb0f2; --c1: #f0a060; --c2: #5cc9a3; --c3: #bf9be6; --c4: #cfd05a; } }
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: var(--quiet); }
.title { font-size: 15px; font-weight: 600; fill: var(--ink); }
.name { fill: var(--ink); }
.grid { stroke: var(--grid); }
.zero { stroke: var(--axis); }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
"""
_BANDS = ".band { opacity: .16; }\n"
_MARKS = ".error { fill: none; stroke-width: 1.6; }\n"


@dataclasses.dataclass(frozen=True)
class Line:
    """A name and its points (x, y), in order of x.

    `errors` are half the heights of a band around the line or, with `marks`, of the bars on its points.
    """

    name: str
    points: Sequence[tuple[float, float]]
    errors: Sequence[float] = ()
    marks: bool = False

    @property
    def ends(self) -> list[tuple[float, float, float]]:
        """(x, low, high) of its band or bars; empty without errors."""
        return [(x, y - error, y + error) for (x, y), error in zip(self.points, self.errors, strict=False)]


@dataclasses.dataclass(frozen=True)
class Plot:
    """What one plot shows; `low` and `high` fix an end of the y axis."""

    title: str
    x_name: str
    y_name: str
    lines: Sequence[Line]
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class RowPlot:
    """One row for each (name, value, error), from above; an error may be None."""

    title: str
    x_name: str
    rows: Sequence[tuple[str, float, float | None]]


def draw(plot: Plot) -> str:
    """The plot as the text of an SVG file."""
    xs = [x for line in plot.lines for x, _ in line.points]
    left, right = min(xs), max(xs)
    if left == right:
        left, right = left - 0.5, right + 0.5
    ys = [y for line in plot.lines for _, y in line.points]
    ys += [y for line in plot.lines for _, *ends in line.ends for y in ends]
    bottom, top = limits(ys, plot.low, plot.high)
    height = _PLOT_HEIGHT + _ROW * len(plot.lines) + 12

    def x_of(x: float) -> float:
        return round(_LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y_of(y: float) -> float:
        return round(_PLOT_HEIGHT - _BOTTOM - (y - bottom) / (top - bottom) * (_PLOT_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [f'<text class="title" x="{_LEFT}" y="22">{escape(plot.title)}</text>']
    for y in ticks(bottom, top, 6):
        kind = "grid" if y else "zero"
        parts.append(f'<path class="{kind}" d="M{_LEFT} {y_of(y)}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y_of(y) + 4}" text-anchor="end">{number(y)}</text>')
    floor = _PLOT_HEIGHT - _BOTTOM
    for x in ticks(left, right, 8):
        parts.append(f'<path class="zero" d="M{x_of(x)} {floor}v4"/>')
        parts.append(f'<text x="{x_of(x)}" y="{floor + 18}" text-anchor="middle">{number(x)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{floor + 37}" text-anchor="middle">{escape(plot.x_name)}</text>')
    centre = (_TOP + floor) / 2
    parts.append(
        f'<text transform="translate(14 {centre}) rotate(-90)" text-anchor="middle">{escape(plot.y_name)}</text>'
    )
    for index, line in enumerate(plot.lines):  # below all lines
        if line.errors and not line.marks:
            low = [f"{x_of(x)} {y_of(y)}" for x, y, _ in line.ends]
            high = [f"{x_of(x)} {y_of(y)}" for x, _, y in line.ends]
            parts.append(f'<path class="band" style="fill: {_colour(index)}" d="M{"L".join(low + high[::-1])}Z"/>')
    for index, line in enumerate(plot.lines):
        style = f'style="stroke: {_colour(index)}" stroke-dasharray="{_DASHES[(index + index // 5) % 5]}"'
        path = "L".join(f"{x_of(x)} {y_of(y)}" for x, y in line.points)
        row = _PLOT_HEIGHT + _ROW * index + 8
        parts.append(f'<path class="line" {style} d="M{path}"/>')
        parts.append(f'<path class="line" {style} d="M{_LEFT} {row}h34"/>')
        parts.append(f'<text class="name" x="{_LEFT + 44}" y="{row + 4}">{escape(line.name)}</text>')
        if line.marks:
            for x, low, high in line.ends:
                bar = f"M{x_of(x)} {y_of(low)}V{y_of(high)}"
                parts.append(f'<path class="error" style="stroke: {_colour(index)}" d="{bar}"/>')
            for x, y in line.points:
                parts.append(f'<circle style="fill: {_colour(index)}" cx="{x_of(x)}" cy="{y_of(y)}" r="3.4"/>')
    style = _STYLE
    style += _BANDS if any(line.errors and not line.marks for line in plot.lines) else ""
    style += _MARKS if any(line.marks for line in plot.lines) else ""
    return _svg(plot.title, height, style, parts)


def draw_rows(plot: RowPlot) -> str:
    """The rows as the text of an SVG file: a dot for each value, with a bar for its error."""
    names = [name if len(name) <= _NAMES else f"{name[: _NAMES - 1]}…" for name, _, _ in plot.rows]
    begin = 16 + _LETTER * max(map(len, names))
    values = [value + sign * (error or 0.0) for _, value, error in plot.rows for sign in (-1, 1)]
    low, high = limits(values, None, None)
    floor = _TOP + 24 * len(plot.rows)

    def x_of(x: float) -> float:
        return round(begin + (x - low) / (high - low) * (_WIDTH - begin - _RIGHT), 1)

    parts = [f'<text class="title" x="16" y="22">{escape(plot.title)}</text>']
    for x in ticks(low, high, 6):
        parts.append(f'<path class="grid" d="M{x_of(x)} {_TOP}V{floor}"/>')
        parts.append(f'<text x="{x_of(x)}" y="{floor + 18}" text-anchor="middle">{number(x)}</text>')
    parts.append(
        f'<text x="{(begin + _WIDTH - _RIGHT) / 2}" y="{floor + 37}" text-anchor="middle">{escape(plot.x_name)}</text>'
    )
    for index, (name, (_, value, error)) in enumerate(zip(names, plot.rows, strict=True)):
        y = _TOP + 24 * index + 12
        parts.append(f'<text class="name" x="{begin - 8}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        if error:
            bar = f"M{x_of(value - error)} {y}H{x_of(value + error)}"
            parts.append(f'<path class="error" style="stroke: {_colour(0)}" d="{bar}"/>')
        parts.append(f'<circle style="fill: {_colour(0)}" cx="{x_of(value)}" cy="{y}" r="4"/>')
    return _svg(plot.title, floor + 46, _STYLE + _MARKS, parts)


def _colour(index: int) -> str:
    return f"var(--c{index % 5})"


def _svg(title: str, height: float, style: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" '
        f'aria-label="{escape(title)}"><style>{style}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )
