"""A small log-log chart as SVG: measured points and the fitted line of each series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from medvr_jax.reports.text import escape, number

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 300, 220, 44, 34, 34
COLOURS = ("#1f5fa8", "#b4501e", "#3c7a3c", "#7a3c7a")
Series = Mapping[str, Sequence[tuple[float, float]]]  # label -> (size, seconds)


def panel(title: str, series: Series, exponents: Mapping[str, float]) -> str:
    """One chart as an <svg> of WIDTH x HEIGHT; labels carry the fitted exponents."""
    points = [point for line in series.values() for point in line]
    low_x, high_x = min(p[0] for p in points), max(p[0] for p in points)
    low_y, high_y = min(p[1] for p in points), max(p[1] for p in points)

    def x(value: float) -> float:
        return round(LEFT + _share(value, low_x, high_x) * (WIDTH - LEFT - 12), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - _share(value, low_y, high_y) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        f' font-family="sans-serif" font-size="10" role="img" aria-label="{escape(title)}">',
        f'<text x="{LEFT}" y="12" font-size="12" font-weight="bold">{escape(title)}</text>',
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - 12}" fill="none" stroke="#888"/>',
    ]
    for value in sorted({p[0] for p in points}):
        parts.append(f'<text x="{x(value)}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{_short(value)}</text>')
    for value in sorted({low_y, high_y}):
        parts.append(f'<text x="{LEFT - 4}" y="{y(value) + 3}" text-anchor="end">{number(value)} s</text>')
    for index, (label, line) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = "L".join(f"{x(a)} {y(b)}" for a, b in sorted(line))
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x(a)}" cy="{y(b)}" r="2.5" fill="{colour}"/>' for a, b in line]
        text = f"{label}: exponent {exponents[label]:.2f}"
        parts.append(f'<text x="{LEFT + 8}" y="{26 + 12 * index}" fill="{colour}">{escape(text)}</text>')
    return "".join([*parts, "</svg>"])


def sheet(panels: Sequence[str], columns: int = 3) -> str:
    """Several panels side by side in one SVG."""
    rows = -(-len(panels) // columns)
    placed = [
        one.replace("<svg ", f'<svg x="{WIDTH * (i % columns)}" y="{HEIGHT * (i // columns)}" ', 1)
        for i, one in enumerate(panels)
    ]
    width, height = WIDTH * min(columns, len(panels)), HEIGHT * rows
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(placed)}</svg>\n'
    )


def _share(value: float, low: float, high: float) -> float:
    return 0.5 if high <= low else math.log(value / low) / math.log(high / low)


def _short(value: float) -> str:
    return f"{value / 1e6:.3g}M" if value >= 1e6 else f"{value:g}"
