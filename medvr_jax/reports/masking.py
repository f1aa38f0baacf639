"""The masking test on the page: its figures, and some questions with what was blanked and the answers before and after.

Read are `evaluation/results.json` and `evaluation/masking_shown/`, which `--mode=evaluate` wrote
(`evaluation/masking.py`); where there is no such test, there is no section.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medvr_jax.datasets.example import LETTERS
from medvr_jax.evaluation.masking_text import MEANING
from medvr_jax.evaluation.masks import CONTROLS
from medvr_jax.reports.pictures import Picture, picture
from medvr_jax.reports.text import escape, percent

Figure = Mapping[str, Any]

_LEAD = (
    "Every question asked again with a part of its image blanked. A policy that looks changes its answer when what it"
    " looked at is gone, and keeps it when as much is gone elsewhere."
)


def section(workdir: Path) -> str:
    """The section as HTML; empty where WORKDIR/evaluation holds no masking test."""
    folder = workdir / "evaluation"
    figures = (_read(folder / "results.json") or {}).get("masking")
    if not figures:
        return ""
    drawn = figures["bootstrap"]
    note = f"In brackets the {percent(drawn['level'])} interval. Right and wrong are by the rule of the reward."
    parts = [f'<p class="lead">{escape(_LEAD)} {escape(note)}</p>', _masks(figures), _differences(figures)]
    shown = _read(folder / "masking_shown" / "shown.json") or []
    if shown:
        parts.append(
            f'<h3>Questions</h3><p class="lead">{len(shown)} of them, with answers that changed and others.</p>'
        )
    parts += [_question(entry, _picture(folder / "masking_shown", entry["image"])) for entry in shown]
    return "".join(parts)


def _read(file: Path) -> Any:
    """A JSON file; None where there is none that can be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _picture(folder: Path, name: str) -> Picture | None:
    """An image of the folder; None where there is none, or where the name leads out of it."""
    path = (folder / name).resolve()
    return picture(path.read_bytes()) if path.is_file() and path.is_relative_to(folder.resolve()) else None


def _scopes(figures: Figure) -> Iterator[tuple[str, Figure]]:
    """Of each set, and of all questions together where there are several."""
    yield from ((name or "own data", figure) for name, figure in figures["sets"].items())
    if len(figures["sets"]) > 1:
        yield "all", figures["overall"]


def _masks(figures: Figure) -> str:
    head = ("set", "blanked", "questions", "answers changed", "right before", "right then")
    rows = []
    for name, figure in _scopes(figures):
        for mask, found in figure["masks"].items():
            row = (name, f"{_words(mask)}: {MEANING[mask]}", f"{found['changed']['questions']:,}")
            rows.append(
                (*row, _interval(found["changed"]), percent(found["accuracy_before"]), _interval(found["accuracy"]))
            )
    return _table("Answers under masks", head, rows)


def _differences(figures: Figure) -> str:
    rows = []
    for name, figure in _scopes(figures):
        for mask, found in figure["differences"].items():
            words = f"{_words(mask)} than {_words(CONTROLS[mask])}"
            rows.append((name, words, f"{found['questions']:,}", _difference(found)))
    for name, found in figures["against"].items():
        words = f"lesion than random lesion, here than by {name}"
        rows.append(("both", words, f"{found['questions']:,}", _difference(found)))
    return _table("Differences", ("set", "changed more often", "questions", "difference in points"), rows)


def _question(entry: Figure, image: Picture | None) -> str:
    masks = [one for one in entry["masks"] if one["mask"] in MEANING]
    right = f"right: {entry['answer']}"
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, entry["options"], strict=False))
    rows = [("as it is", entry["prediction"], entry["correct"], None, "")]
    rows += [(_words(one["mask"]), one["prediction"], one["correct"], one["changed"], one["mask"]) for one in masks]
    body = "".join(_answer_row(*row) for row in rows)
    return (
        f'<article class="masked">{_drawing(masks, image)}<div><h4 dir="auto">{escape(entry["question"])}</h4>'
        f'<p class="quiet" dir="auto">{escape(options)}</p><p class="quiet">{escape(entry["id"])} · {escape(right)}</p>'
        f'<div class="scroll"><table><thead><tr><th scope="col">blanked</th><th scope="col">answer</th>'
        f'<th scope="col"></th><th scope="col">changed</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div></div></article>"
    )


def _answer_row(words: str, said: str | None, correct: bool, changed: bool | None, mask: str) -> str:
    sample = f'<svg class="sample" viewBox="0 0 26 16" aria-hidden="true">{_outline(mask, "M4 3H22V13H4Z")}</svg>'
    answer = "<i>none</i>" if said is None else f'<span dir="auto">{escape(said[:80])}</span>'
    verdict = '<span class="sign right">✓</span> right' if correct else '<span class="sign wrong">✗</span> wrong'
    told = "" if changed is None else '<span class="yes">yes</span>' if changed else "no"
    return (
        f'<tr><th scope="row">{sample if mask else ""}{escape(words)}</th><td class="said">{answer}</td>'
        f'<td class="said">{verdict}</td><td>{told}</td></tr>'
    )


def _drawing(masks: Sequence[Figure], image: Picture | None) -> str:
    """The image with the outlines of what was blanked, the controls dashed."""
    width, height = image.size if image else (100, 100)
    paths = "".join(_outline(one["mask"], _path(one["region"], width, height)) for one in masks)
    seen = f'<image width="{width}" height="{height}" href="{image.address}"/>' if image else ""
    label = escape(f"The image with what was blanked: {', '.join(_words(one['mask']) for one in masks)}")
    return (
        f'<svg class="canvas" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'<rect class="nothing" width="{width}" height="{height}"/>{seen}{paths}</svg>'
    )


def _outline(mask: str, path: str) -> str:
    return f'<path class="truth under" d="{path}"/><path class="blanked {mask}" d="{path}"/>'


def _path(boxes: Sequence[Sequence[float]], width: int, height: int) -> str:
    corners = ((x1 * width, y1 * height, x2 * width, y2 * height) for x1, y1, x2, y2 in boxes)
    return "".join(f"M{x1:.1f} {y1:.1f}H{x2:.1f}V{y2:.1f}H{x1:.1f}Z" for x1, y1, x2, y2 in corners)


def _words(mask: str) -> str:
    return mask.replace("_", " ")


def _interval(figure: Figure) -> str:
    return f"{percent(figure['mean'])} [{100 * figure['low']:.0f}, {100 * figure['high']:.0f}]"


def _difference(figure: Figure) -> str:
    text = f"{100 * figure['difference']:+.1f} [{100 * figure['low']:+.1f}, {100 * figure['high']:+.1f}]"
    return text.replace("-", "\u2212")


def _table(label: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    top = f'<th scope="col">{escape(head[0])}</th><th scope="col" class="said">{escape(head[1])}</th>'
    top += "".join(f'<th scope="col">{escape(text)}</th>' for text in head[2:])
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th><td class="said">{escape(row[1])}</td>'
        + "".join(f"<td>{escape(text)}</td>" for text in row[2:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )
