"""`report/index.html`: a run on one page that needs nothing else, made only of what the run wrote.

Read are `metrics.jsonl`, `rollouts/step_*.jsonl` and `rollouts/images/`. Every text from a policy or a data set is
escaped, and the page's own policy forbids any script but the one it carries and any address but data.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvr_jax.errors import UserError
from medvr_jax.reports import charts, groups, summary
from medvr_jax.reports.metrics import FILE_NAME, read_json_lines, read_metrics, replace_file
from medvr_jax.reports.rollouts import rollout_steps
from medvr_jax.reports.text import escape, number, percent

_HERE = Path(__file__).parent
_TABLE_ROWS = 60

_KEY = (
    ('<path class="box right" d="M5 3H21V13H5Z"/>', "zoom of a right trajectory"),
    ('<path class="box wrong" d="M5 3H21V13H5Z"/>', "zoom of a wrong one"),
    (
        '<g class="votes" fill-opacity=".4"><path d="M4 3H17V13H4Z"/><path d="M9 3H22V13H9Z"/></g>',
        "looked at by right trajectories, the more the brighter",
    ),
    ('<path class="agreed" d="M5 3H21V13H5Z"/>', "consensus: more than half of them"),
    (
        '<path class="truth under" d="M5 3H21V13H5Z"/><path class="truth" d="M5 3H21V13H5Z"/>',
        "the true place (never used in training)",
    ),
)


def write_report(workdir: str | Path, groups_shown: int = 12, raster: int = 64) -> Path:
    """Writes `report/index.html` and `report/summary.md` of a run; returns the page's path.

    raster: side of the masks that the run's rewards were computed on.
    """
    workdir = Path(workdir)
    if not (workdir / FILE_NAME).is_file():
        raise UserError(
            f"--workdir: {workdir} has no {FILE_NAME}, so there is nothing to report; give a trained run's folder"
        )
    rows = read_metrics(workdir / FILE_NAME)
    if not rows:
        raise UserError(f"--workdir: {workdir / FILE_NAME} holds no row, so there is nothing to report yet")
    page = workdir / "report" / "index.html"
    replace_file(page, render(workdir, rows, groups_shown, raster))
    fields = summary.read_fields(workdir)
    replace_file(page.with_name("summary.md"), summary.render(workdir.resolve().name, rows, fields, str(workdir)))
    return page


def render(workdir: Path, rows: Sequence[dict[str, Any]], groups_shown: int, raster: int) -> str:
    """The whole page as HTML."""
    name = workdir.resolve().name
    style, script = (_HERE / "page.css").read_text("utf-8"), (_HERE / "page.js").read_text("utf-8")
    cards, slots = chosen_groups(workdir, groups_shown, raster)
    # Pointing at a trajectory brings out its boxes.
    style += ".group:has(.t:is(:hover,:focus-within)) .box{opacity:.12}"
    style += "".join(
        f".group:has(.t{m}:is(:hover,:focus-within)) .b{m}{{opacity:1;stroke-width:3.5}}" for m in range(slots)
    )
    fingerprint = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{fingerprint}'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)} – medvr_jax</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{escape(name)}</h1>
<p class="lead">{escape(summary.sentence(rows))}</p>
<nav aria-label="Sections"><a href="#curves">Curves</a><a href="#groups">Groups</a><a href="#figures">Figures</a></nav>
{tiles(rows)}
</header>
<main>
<h2 id="curves">Curves</h2>
<p class="lead">Over the updates. Point at a chart to read its values.</p>
<div class="panels">{curves(rows)}</div>
<h2 id="groups">Groups</h2>
{cards}
<h2 id="figures">Figures</h2>
{table(rows)}
<footer>Made by medvr_jax from metrics.jsonl and rollouts/ of this run.</footer>
</main>
<script>{script}</script>
</body>
</html>
"""


def tiles(rows: Sequence[dict[str, Any]]) -> str:
    """The figures that one looks for first."""
    shown = []
    shares = (
        ("Accuracy", "eval/accuracy", "held out, greedy"),
        ("Zooms that hit", "eval/hit_rate", "held out, greedy"),
        ("Tool use", "rollout/tool_rate", "of trajectories"),
    )
    for label, key, note in shares:
        found = summary.known(rows, key)
        if found:
            shown.append((label, f'<span class="from">{percent(found[0])} →</span> {percent(found[-1])}', note))
    rewards = summary.known(rows, "reward/total")
    if rewards:
        shown.append(
            ("Reward", f'<span class="from">{number(rewards[0], 2)} →</span> {number(rewards[-1], 2)}', "mean total")
        )
    facts = summary.facts(rows)
    if facts.seconds_per_step is not None:
        shown.append(("Time per step", f"{number(facts.seconds_per_step)} s", "median, with the rollout"))
    if facts.forks_granted:
        shown.append(("Forks", f"{number(facts.forks_granted)}", f"granted of {number(facts.forks_asked)} asked"))
    if facts.compilations is not None:
        shown.append(("Compilations", number(facts.compilations), summary.when_compiled(facts)))
    items = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{value}{f'<small>{escape(note)}</small>' if note else ''}</dd></div>"
        for label, value, note in shown
    )
    return f'<dl class="tiles">{items}</dl>' if items else ""


def curves(rows: Sequence[dict[str, Any]]) -> str:
    """All panels that have data."""
    steps = (rows[0]["step"], rows[-1]["step"])
    after_first = rows[1:]
    drawn = [charts.chart(panel, rows, steps) for panel in charts.PANELS]
    return "".join([*drawn, charts.chart(charts.time_panel(after_first), after_first, steps)])


def chosen_groups(workdir: Path, count: int, raster: int) -> tuple[str, int]:
    """A third of the groups from the first recorded step, the rest from the last; and the number of slots."""
    steps = list(rollout_steps(workdir).items())
    if not steps or count < 1:
        return "<p>No rollout was recorded.</p>", 0
    wanted = [(steps[0], count)] if len(steps) == 1 else [(steps[-1], count - count // 3), (steps[0], count // 3)]
    parts, slots = [], 0
    for (step, path), many in wanted:
        if not many:
            continue
        found: dict[int, list[dict[str, Any]]] = {}
        for record in read_json_lines(path):
            found.setdefault(record["group"], []).append(record)
        # Groups whose image was kept go first.
        chosen = sorted(found.items(), key=lambda item: (item[1][0].get("image") is None, item[0]))[:many]
        slots = max([slots, *(record["slot"] + 1 for _, group in chosen for record in group)])
        title = "before the first update" if step == 0 else f"after {step:,} update{'s' if step > 1 else ''}"
        parts.append(f"<h3>Step {step:,}, {title}</h3>")
        parts += [groups.group_card(workdir, group, f"s{step}g{number_}", raster) for number_, group in chosen]
    key = "".join(f'<li><svg viewBox="0 0 26 16" aria-hidden="true">{drawn}</svg>{text}</li>' for drawn, text in _KEY)
    return f'<ul class="key">{key}</ul>' + "".join(parts), slots


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as a table; of a long run the first, the last, and an even choice between."""
    keys = sorted({key for row in rows for key in row if key != "step"}, key=lambda k: (k.split("/")[0], k))
    stride = max(1, -(-len(rows) // _TABLE_ROWS))
    chosen = [row for i, row in enumerate(rows) if i % stride == 0 or i == len(rows) - 1]
    head = "".join(f'<th scope="col">{escape(key)}</th>' for key in keys)
    body = "".join(
        f'<tr><th scope="row">{row["step"]:,}</th>'
        + "".join(f"<td>{_cell(row.get(key, ''))}</td>" for key in keys)
        + "</tr>"
        for row in chosen
    )
    head = f'<thead><tr><th scope="col">step</th>{head}</tr></thead>'
    return (
        f'<details class="more"><summary>{len(chosen)} of {len(rows)} steps, all keys of metrics.jsonl</summary>'
        f'<div class="figures" tabindex="0"><table>{head}<tbody>{body}</tbody></table></div></details>'
    )


def _cell(value: Any) -> str:
    return number(value) if value is None or isinstance(value, int | float) else escape(value)
