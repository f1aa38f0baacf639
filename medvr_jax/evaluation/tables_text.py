"""The figures of tables.py as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from medvr_jax.evaluation.figures import BREAKDOWNS, OPEN_MEASURES, Figure
from medvr_jax.evaluation.markdown import cell, correlation, difference, interval, percent, set_name, table

_RULES = {
    "medevalkit": "As the published numbers were scored, guesses included; to stand beside them.",
    "strict": "Only what an answer says without doubt.",
}
_JUDGED = "Open questions by the verdict of the judge ({judge}), the others by the rule."


def page(tables: dict[str, Any], main_table: Sequence[Sequence[tuple[str, str]]]) -> str:
    """All tables of a run; `main_table` are the columns (name, title) of the main table, group by group."""
    drawn, judged = tables["bootstrap"], _JUDGED.format(judge=cell(tables["judge"]))
    parts = [
        f"# {tables['model']}",
        f"{tables['answers']} answers to {tables['questions']} questions. Accuracies are percentages; in brackets the "
        f"{100 * drawn['level']:g} % interval, drawn by question ({drawn['repeats']} times, seed {drawn['seed']}).",
    ]
    for rule, found in tables["rules"].items():
        parts += [f"## Rule `{rule}`", _RULES.get(rule, judged), *_of_rule(found, main_table)]
    if tables["tool_use"]:
        parts += ["## The tool", _tool_use(tables["tool_use"])]
    if tables["grounding"]:
        parts += [
            "## Grounding",
            "Zooms against the true boxes: the best zoom of an answer, and its last. No zoom counts as IoU 0.",
            _grounding(tables["grounding"]),
        ]
    return "\n\n".join(parts) + "\n"


def _of_rule(found: dict[str, Any], main_table: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    parts = []
    if any(line["sets"] for line in found["main"].values()):
        parts += [_main(found["main"], main_table), "◇ out of distribution in the paper, which trained on OmniMedVQA."]
    parts += ["### Sets, closed and open questions apart", _sets(found["sets"])]
    if rows := list(_breakdown_rows(found["breakdowns"])):
        parts += ["### Breakdowns", table(("set", "by", "value", "questions", "accuracy"), rows)]
    if found["samples"]:
        parts += ["### Several samples", _samples(found["samples"])]
    for name, against in found["against"].items():
        parts += [f"### Against {cell(name)}", _paired(against, "this run", cell(name))]
    if found["without_tool"]:
        parts += ["### With the tool, and with the tool forbidden", _paired(found["without_tool"], "with", "without")]
    return parts


def _main(lines: dict[str, Figure], main_table: Sequence[Sequence[tuple[str, str]]]) -> str:
    head = ["model"]
    for group in main_table:
        head += [*(title for _, title in group), "avg"]
    rows = []
    for model, line in lines.items():
        row = [cell(model)]
        for group, average in zip(main_table, line["averages"], strict=True):
            row += [*(interval(line["sets"].get(name)) for name, _ in group), interval(average)]
        rows.append(row)
    return table(head, rows)


def _sets(sets: dict[str, Figure]) -> str:
    head = ("set", "questions", "accuracy", "closed", "open", *(f"open: {name}" for name in OPEN_MEASURES))
    rows = []
    for name, figure in sets.items():
        measured = figure.get("open", {})
        row = [set_name(name), figure["questions"], interval(figure), interval(figure.get("closed"))]
        row += [interval(figure.get("open")), *(percent(measured.get(measure)) for measure in OPEN_MEASURES)]
        rows.append(row)
    return table(head, rows)


def _breakdown_rows(breakdowns: dict[str, dict[str, dict[str, Figure]]]) -> Iterable[Sequence[object]]:
    for name, by_key in breakdowns.items():
        for key in BREAKDOWNS:
            if len(by_key[key]) > 1:  # one value says what the whole set says
                for value, figure in by_key[key].items():
                    yield set_name(name), key.replace("_", " "), cell(value), figure["questions"], interval(figure)


def _samples(sets: dict[str, Figure]) -> str:
    counts = sorted({int(k) for figure in sets.values() for k in figure["pass_at"]})
    head = ("set", "questions", "samples", "accuracy", "majority", *(f"pass@{k}" for k in counts))
    rows = [
        [
            *(set_name(name), figure["questions"], figure["samples"], percent(figure["accuracy"])),
            *(percent(figure["majority"]), *(percent(figure["pass_at"].get(str(k))) for k in counts)),
        ]
        for name, figure in sets.items()
    ]
    return table(head, rows)


def _paired(sets: dict[str, Figure], first: str, second: str) -> str:
    head = ("set", "questions of both", first, second, "difference", "better", "worse", "p")
    rows = [
        [
            *(set_name(name), figure["questions"], percent(figure["first"]), percent(figure["second"])),
            difference(figure),
            *(figure["wins"], figure["losses"], f"{figure['p_value']:.2g}"),
        ]
        for name, figure in sets.items()
    ]
    return table(head, rows)


def _tool_use(sets: dict[str, Figure]) -> str:
    head = ("set", "answers", "used the tool", "valid calls", "images per answer", "turns", "well formed", "tokens")
    rows = [
        [
            *(set_name(name), figure["answers"], percent(figure["tool_rate"]), percent(figure["valid_call_rate"])),
            *(f"{figure['images_per_answer']:.2f}", f"{figure['turns_per_answer']:.2f}"),
            *(percent(figure["well_formed_rate"]), f"{figure['sampled_tokens']:.0f}"),
        ]
        for name, figure in sets.items()
    ]
    return table(head, rows)


def _grounding(sets: dict[str, Figure]) -> str:
    head = ("set", "questions", "mIoU", "mIoU, last zoom", "hits", "zoomed", "entropy and IoU: Pearson", "Spearman")
    rows = []
    for name, figure in sets.items():
        entropy = figure["entropy"] or {}
        row = [set_name(name), figure["mean_iou"]["questions"], interval(figure["mean_iou"])]
        row += [interval(figure["last_iou"]), interval(figure["hit_rate"]), percent(figure["zoomed"])]
        rows.append(row + [correlation(entropy.get("pearson")), correlation(entropy.get("spearman"))])
    return table(head, rows)
