"""From rows to tables: `tables.json` with every figure, `tables.md` to read, the main table in the paper's layout.

The rules never meet in one table. Everything is a pure function of rows (rows.py), whoever wrote them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medvr_jax.errors import UserError
from medvr_jax.evaluation import figures, tables_text
from medvr_jax.evaluation.figures import Figure
from medvr_jax.evaluation.rows import Row, check_rows, grouped, question_of, rules_of, set_of
from medvr_jax.evaluation.statistics import Bootstrap


class Column(NamedTuple):
    """A set of the main table; ◇ marks what the paper calls out of distribution: it trained on OmniMedVQA."""

    name: str
    title: str


MAIN_TABLE = (
    (Column("omnimedvqa", "OmniMedVQA"), Column("pmc_vqa", "PMC-VQA◇"), Column("medxpertqa_mm", "MedXpertQA◇")),
    (Column("vqa_rad", "VQA-RAD"), Column("slake", "SLAKE"), Column("path_vqa", "PathVQA◇")),
)


def write_tables(
    folder: str | Path,
    rows: Sequence[Row],
    *,
    model: str = "policy",
    others: Mapping[str, Sequence[Row]] | None = None,
    without_tool: Sequence[Row] | None = None,
    judge: str = "",
    bootstrap: Bootstrap | None = None,
) -> dict[str, Any]:
    """Writes tables.json and tables.md, and returns what the former holds.

    Args:
        rows: the answers of the run that the tables are about; `model` is its name.
        others: answers of other models or runs by their names: more lines of the main table, compared in pairs.
        without_tool: the same policy's answers with the tool forbidden.
        judge: who judged the open questions, and when.
    """
    tables = make_tables(rows, model=model, others=others, without_tool=without_tool, judge=judge, bootstrap=bootstrap)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.json").write_text(json.dumps(tables, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "tables.md").write_text(tables_text.page(tables, MAIN_TABLE), encoding="utf-8")
    return tables


def make_tables(
    rows: Sequence[Row],
    *,
    model: str = "policy",
    others: Mapping[str, Sequence[Row]] | None = None,
    without_tool: Sequence[Row] | None = None,
    judge: str = "",
    bootstrap: Bootstrap | None = None,
) -> dict[str, Any]:
    """All figures of a run as one JSON object; what the rows say nothing about is left out."""
    runs = {model: rows} | dict(others or {})
    if len(runs) <= len(others or {}):
        raise UserError(f"tables: two runs are called {model!r}; each needs a name of its own")
    for name, run in {**runs, f"{model} without tool": without_tool or ()}.items():
        check_rows(run, name)
    if not rows:
        raise UserError(f"tables: {model} has no rows; at least one answer is needed")
    bootstrap = bootstrap or Bootstrap()
    sets = grouped(rows, set_of)
    return {
        "model": model,
        "answers": len(rows),
        "questions": len(grouped(rows, question_of)),
        "bootstrap": dataclasses.asdict(bootstrap),
        "judge": judge,
        "rules": {
            rule: {
                "main": {name: _main(run, rule, bootstrap) for name, run in runs.items() if rule in rules_of(run)},
                **_of_rule(sets, rule, bootstrap),
                **_comparisons(rows, others or {}, without_tool, rule, bootstrap),
            }
            for rule in rules_of(rows)
        },
        "tool_use": _known({name: figures.tool_use(group) for name, group in sets.items()}),
        "grounding": _known({name: figures.grounding(group, bootstrap) for name, group in sets.items()}),
    }


def _main(rows: Sequence[Row], rule: str, bootstrap: Bootstrap) -> Figure:
    """One line of the main table: the sets that are there, and the means of the groups that are complete."""
    sets = grouped(rows, set_of)
    line: Figure = {"sets": {}, "averages": []}
    for group in MAIN_TABLE:
        there = {column.name: sets[column.name] for column in group if column.name in sets}
        line["sets"] |= {name: figures.accuracy(found, rule, bootstrap) for name, found in there.items()}
        line["averages"].append(figures.average(there, rule, bootstrap) if len(there) == len(group) else None)
    return line


def _of_rule(sets: Mapping[str, Sequence[Row]], rule: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """What the answers to each set are worth under a rule."""
    several = {name: rows for name, rows in sets.items() if len(rows) > len(grouped(rows, question_of))}
    return {
        "sets": {
            name: figures.accuracy(rows, rule, bootstrap) | figures.closed_and_open(rows, rule, bootstrap)
            for name, rows in sets.items()
        },
        "breakdowns": {
            name: {key: figures.breakdown(rows, key, rule, bootstrap) for key in figures.BREAKDOWNS}
            for name, rows in sets.items()
        },
        "samples": {name: figures.samples(rows, rule) for name, rows in several.items()},
    }


def _comparisons(
    rows: Sequence[Row],
    others: Mapping[str, Sequence[Row]],
    without_tool: Sequence[Row] | None,
    rule: str,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """This run against others, and with its tool against without, set by set."""

    def against(other: Iterable[Row]) -> dict[str, Figure]:
        theirs = grouped(other, set_of)
        return _known(
            {
                name: figures.paired(group, theirs.get(name, ()), rule, bootstrap)
                for name, group in grouped(rows, set_of).items()
            }
        )

    return {
        "against": {name: against(other) for name, other in others.items() if rule in rules_of(other)},
        "without_tool": against(without_tool) if without_tool and rule in rules_of(without_tool) else {},
    }


def _known(found: Mapping[str, Figure | None]) -> dict[str, Figure]:
    return {name: figure for name, figure in found.items() if figure is not None}
