"""Trajectories on one self-contained page: see `groups_page`."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvr_jax.reports import charts
from medvr_jax.reports import groups as drawing
from medvr_jax.reports.text import escape

_HERE = Path(__file__).parent


def groups_page(
    title: str,
    lead: str,
    groups: Sequence[tuple[Sequence[Mapping[str, Any]], bytes | None]],
    *,
    raster: int,
    metrics: Sequence[Mapping[str, Any]] = (),
    notice: str = "",
) -> str:
    """A whole HTML page that shows groups of trajectories.

    Args:
        title: of the page.
        lead: a sentence under it.
        groups: for each group its trajectories' records (see `training/records.py`) and its image, encoded.
        raster: side of the masks that the consensus is computed on.
        metrics: rows of `metrics.jsonl`; their curves are drawn.
        notice: a line at the top.
    """
    style, script = (_HERE / "page.css").read_text("utf-8"), (_HERE / "page.js").read_text("utf-8")
    fingerprint = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{fingerprint}'"
    cards = "".join(
        drawing.group_card(drawing.picture_address(image), records, f"g{number}", raster)
        for number, (records, image) in enumerate(groups)
    )
    steps = (metrics[0]["step"], metrics[-1]["step"]) if metrics else (0, 1)
    curves = "".join(charts.chart(panel, metrics, steps) for panel in charts.PANELS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} – medvr_jax</title>
<style>{style}</style>
</head>
<body>
<header>
{f'<p class="notice" role="note">{escape(notice)}</p>' if notice else ""}
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
</header>
<main>
<div class="panels">{curves}</div>
{cards}
</main>
<script>{script}</script>
</body>
</html>
"""
