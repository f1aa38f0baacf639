"""What an evaluation leaves beside the sets' own files: all rows, their means, and the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medvr_jax.errors import UserError
from medvr_jax.evaluation.judge import judge_open
from medvr_jax.evaluation.options import predictions_of
from medvr_jax.evaluation.questions import QuestionSet
from medvr_jax.evaluation.scoring import RULES
from medvr_jax.evaluation.tables import write_tables
from medvr_jax.workdir import write_atomically

Row = dict[str, Any]
_SECTIONS = ("masking", "consensus")  # what an evaluation may have been asked for beside the answers
_MEANS = {  # of the rows of our own policy, by the rules of the reward
    "accuracy": ("correct", "accuracy by the reward's rule"),
    "hit_rate": ("hit", "zoom hits the true box"),
    "mean_iou": ("iou", "mean IoU with the true box"),
    "tool_rate": ("called", "answers that used the tool"),
    "format_rate": ("well_formed", "well-formed trajectories"),
    "sampled_tokens": ("sampled_tokens", "sampled tokens per answer"),
}


class Section(NamedTuple):
    """A part of the results with a file of its own: its name, its figures, and the same as Markdown without a title."""

    name: str
    figures: Mapping[str, Any]
    text: str


def write_results(
    folder: Path,
    questions: Sequence[QuestionSet],
    rows: Sequence[Sequence[Row]],
    provenance: Mapping[str, Any],
    evaluate: Any,
    without_tool: Path | None = None,
    sections: Sequence[Section | None] = (),
) -> Path:
    """Writes predictions.jsonl, results.json, table.md and the tables of `tables.py`; returns table.md.

    Args:
        rows: of each set, in order.
        provenance: whose answers they are and how they came about; `policy` is the name.
        without_tool: folder of the same evaluation with the tool forbidden, if there is to be one.
        sections: further figures, each also in a Markdown file of its own.
    """
    provenance = dict(provenance)
    if evaluate.judge_endpoint:
        rows, provenance["judge"] = judge_open(evaluate, folder, questions, rows)
    everything = [row for found in rows for row in found]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in everything]
    write_atomically(folder / "predictions.jsonl", "".join(lines))

    results = provenance | summarise(everything)
    results["sets"] = {one.name: _scores(found) for one, found in zip(questions, rows, strict=True)}
    sections = [section for section in sections if section]
    results |= {section.name: section.figures for section in sections}
    _write_sections(folder, provenance["policy"], sections)
    write_atomically(folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / "table.md", _table(results) + "".join(_as_text(section, "##") for section in sections))
    others = {name: read_rows(file) for name, file in other_runs(evaluate.compare_with, provenance["policy"]).items()}
    without = _without_tool(without_tool, results) if without_tool else None
    write_tables(
        folder,
        everything,
        model=provenance["policy"],
        others=others,
        without_tool=without,
        judge=_judge(provenance.get("judge")),
    )
    return folder / "table.md"


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over the rows; of hit rate and IoU over those with a true box, where an answer without a zoom is a miss
    with IoU 0."""
    found: dict[str, Any] = {"examples": len({(row["dataset"], row["id"]) for row in rows}), "answers": len(rows)}
    for name, (key, _) in _MEANS.items():
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            found[name] = float(np.mean(values))
    return found | {"scores": {rule: _mean(rows, rule) for rule in RULES}}


def read_rows(file: Path) -> list[Row]:
    """The rows of another evaluation."""
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise UserError(f"evaluate.compare_with: {file} cannot be read: {error}") from error


def other_runs(folders: Sequence[str], own: str) -> dict[str, Path]:
    """predictions.jsonl of other evaluations by their policies' names, with the folder where names are not enough."""
    files = [predictions_of(folder) for folder in folders]
    names = [_policy(file.with_name("results.json")) for file in files]
    clear = [name and [own, *names].count(name) == 1 for name in names]
    titles = (
        name if enough else f"{name} ({folder})" if name else folder
        for name, enough, folder in zip(names, clear, folders, strict=True)
    )
    return dict(zip(titles, files, strict=True))


def _policy(file: Path) -> str:
    """Whose answers an evaluation holds; empty where it does not say."""
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("policy", "")
    except (OSError, ValueError, AttributeError):
        return ""


def _mean(rows: Sequence[Row], rule: str) -> float:
    return float(np.mean([row["scores"][rule]["correct"] for row in rows]))


def _scores(rows: Sequence[Row]) -> dict[str, Any]:
    return {"questions": len({row["id"] for row in rows})} | {rule: _mean(rows, rule) for rule in RULES}


def _judge(told: Mapping[str, Any] | None) -> str:
    """Name and dates of a judge; empty without one."""
    return f"{told['model']}, {', '.join(told['dates'])}" if told else ""


def _without_tool(folder: Path, results: Mapping[str, Any]) -> list[Row] | None:
    """The answers with the tool forbidden, if they are there and of the same weights."""
    file = folder / "results.json"
    if not file.is_file():
        return None
    other = json.loads(file.read_text(encoding="utf-8"))
    if other.get("weights") != results["weights"]:
        return None
    return read_rows(file.with_name("predictions.jsonl"))


def _write_sections(folder: Path, policy: str, sections: Sequence[Section]) -> None:
    """The sections' own files; those of an earlier evaluation that had more do not stay."""
    for name in _SECTIONS:
        (folder / f"{name}.md").unlink(missing_ok=True)
    for section in sections:
        write_atomically(folder / f"{section.name}.md", _as_text(section, "#", f", {policy}").lstrip())


def _as_text(section: Section, mark: str, more: str = "") -> str:
    return f"\n{mark} {section.name.capitalize()}{more}\n\n{section.text}\n"


def _table(results: Mapping[str, Any]) -> str:
    head = f"{results['policy']}: {results['data']} data, {results['decoding']} decoding.\n"
    figures = {title: results[name] for name, (_, title) in _MEANS.items() if name in results}
    figures |= {f"accuracy by the rule `{rule}`": value for rule, value in results["scores"].items()}
    lines = [f"| questions | {results['examples']} |", f"| answers | {results['answers']} |"]
    lines += [f"| {title} | {value:.3f} |" for title, value in figures.items()]
    return "\n".join([head, "| figure | value |", "|---|---|", *lines]) + "\n"
