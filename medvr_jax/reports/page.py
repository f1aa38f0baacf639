"""`report/index.html`: a run on one page that needs nothing else, made only of what the run wrote.

Read are `metrics.jsonl`, `rollouts/step_*.jsonl`, `rollouts/images/` and, where there is one, the masking test of
`evaluation/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvr_jax.errors import UserError
from medvr_jax.reports import charts, masking, summary, viewer
from medvr_jax.reports.metrics import FILE_NAME, json_lines, read_metrics, replace_file
from medvr_jax.reports.rollouts import rollout_steps
from medvr_jax.reports.text import escape, number, percent

_TABLE_ROWS = 60


def write_report(workdir: str | Path, groups_shown: int = 256, raster: int = 64) -> Path:
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
    curves = f'{tiles(rows)}<p class="lead">Over the updates. Point at a chart to read its values.</p>'
    return viewer.whole_page(
        workdir.resolve().name,
        summary.sentence(rows),
        chosen_groups(workdir, groups_shown),
        raster=raster,
        overview=curves + charts.curves(rows),
        figures=table(rows),
        masking=masking.section(workdir),
    )


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


def chosen_groups(workdir: Path, count: int) -> list[tuple[list[dict[str, Any]], bytes | None]]:
    """At most `count` recorded groups with their images, evenly many of each recorded step.

    Of more steps than that an even choice is taken, the first and the last among them; of each step the first groups
    whose image was kept, then others.
    """
    steps = evenly(list(rollout_steps(workdir).values()), count)
    chosen = []
    for place, path in enumerate(steps):
        share = count // len(steps) + (len(steps) - 1 - place < count % len(steps))  # the last steps get what is left
        for group in first_groups(path, share):
            chosen.append((group, read_picture(workdir, group[0].get("image"))))
    return chosen


def first_groups(path: Path, count: int) -> list[list[dict[str, Any]]]:
    """The first `count` groups of a step's file whose image was kept, or where there are fewer, others beside them.

    Of a long file no more is read than that: groups with an image come first.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    for record in json_lines(path):
        if record["group"] not in found and sum(bool(group[0].get("image")) for group in found.values()) >= count:
            break
        found.setdefault(record["group"], []).append(record)
    ordered = sorted(found.items(), key=lambda item: (not item[1][0].get("image"), item[0]))
    return [group for _, group in sorted(ordered[:count])]


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, in order, the last and then the first among them."""
    if count < 1 or len(items) <= count:
        return list(items) if count > 0 else []
    if count == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def read_picture(workdir: Path, relative: str | None) -> bytes | None:
    """An image of the run; None where there is none, or where the path leads out of the run's folder."""
    path = (workdir / relative).resolve() if relative else None
    if path is None or not path.is_file() or not path.is_relative_to((workdir / "rollouts").resolve()):
        return None
    return path.read_bytes()


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
        f'<p class="lead">{len(chosen)} of {len(rows)} steps, all keys of metrics.jsonl.</p>'
        f'<div class="figures" tabindex="0" role="region" aria-label="Figures of the steps">'
        f"<table>{head}<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    return number(value) if value is None or isinstance(value, int | float) else escape(value)
