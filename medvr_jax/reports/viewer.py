"""Trajectories on one self-contained page that opens from the disk and asks nobody for anything.

The page holds its style, its script and its data. Texts from models and data are JSON that the script shows as text,
never as markup; the page's own policy allows no other script or style than these, and no address but data.
Without scripts a page still shows its title, curves and figures.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medvr_jax.reports import charts, packing
from medvr_jax.reports.agreement import agreement
from medvr_jax.reports.pictures import picture
from medvr_jax.reports.text import escape

Records = Sequence[Mapping[str, Any]]

_WEB = Path(__file__).parent / "web"
_STYLES = ("base.css", "overview.css", "trajectories.css", "reading.css", "masking.css")
_SCRIPTS = (
    "elements.js", "theme.js", "curves.js", "data.js", "list.js", "picture.js", "tree.js", "tokens.js", "reading.js",
    "group.js", "keys.js", "start.js",
)  # fmt: skip

_PLACE = """<div id="viewer"><p class="empty">Trajectories are shown by this page's own script, and scripts are switched
off here. Everything else is on this page.</p></div>"""


def groups_page(
    title: str,
    lead: str,
    groups: Sequence[tuple[Records, bytes | None]],
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
        raster: side R of the masks that the consensus is computed on.
        metrics: rows of `metrics.jsonl`; their curves are drawn.
        notice: a line at the top.
    """
    overview = charts.curves(metrics) if metrics else ""
    return whole_page(title, lead, groups, raster=raster, overview=overview, notice=notice)


def whole_page(
    title: str,
    lead: str,
    groups: Sequence[tuple[Records, bytes | None]],
    *,
    raster: int,
    overview: str = "",
    figures: str = "",
    masking: str = "",
    notice: str = "",
) -> str:
    """As `groups_page`, with the overview, the table of figures and the masking test as HTML; parts that are empty have
    no tab."""
    style = "\n".join((_WEB / name).read_text("utf-8") for name in _STYLES)
    script = '"use strict";\n(() => {\n' + "\n".join((_WEB / name).read_text("utf-8") for name in _SCRIPTS) + "\n})();"
    head = (_WEB / "head.js").read_text("utf-8")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_fingerprint(style)}; script-src {_fingerprint(head)}"
        f" {_fingerprint(script)}; base-uri 'none'; form-action 'none'"
    )
    sections = [
        ("overview", "Overview", overview),
        ("trajectories", "Trajectories", _PLACE if groups else ""),
        ("figures", "Figures", figures),
        ("masking", "Masking", masking),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{label}</a>' for name, label, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-label="{label}"><h2 class="hidden">{label}</h2>{content}</section>'
        for name, label, content in sections
    )
    return f"""<!doctype html>
<html lang="en" data-sections="{" ".join(name for name, _, _ in sections)}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} – medvr_jax</title>
<style>{style}</style>
<script>{head}</script>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
{f'<p class="notice" role="note">{escape(notice)}</p>' if notice else ""}
<header id="top">
<div class="titles"><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></div>
<nav aria-label="Sections">{links if len(sections) > 1 else ""}</nav>
</header>
<main id="main" tabindex="-1">
{body}
</main>
<footer>Made by medvr_jax.</footer>
{"".join(_data(name, value) for name, value in _trajectory_data(groups, raster))}
<script>{script}</script>
</body>
</html>
"""


def _fingerprint(text: str) -> str:
    """How a page's policy names a script or style that may stand in it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _trajectory_data(groups: Sequence[tuple[Records, bytes | None]], raster: int) -> Iterator[tuple[str, Any]]:
    """The pieces of data that the script reads, with their names: the groups', the vocabulary, the index."""
    groups = [(sorted(records, key=lambda record: record["slot"]), image) for records, image in groups]
    vocabulary, entries = packing.Vocabulary(), []
    for number, (records, image) in enumerate(groups):
        found = agreement(records, raster)
        entries.append(packing.index_entry(records, found))
        yield f"group-{number}", packing.group_piece(records, picture(image), found, vocabulary)
    if groups:
        yield "vocabulary", vocabulary.packed()
        yield "index", {"raster": raster, "groups": entries}


def _data(name: str, value: Any) -> str:
    return f'<script type="application/json" id="{name}">{packing.script_json(value)}</script>'
