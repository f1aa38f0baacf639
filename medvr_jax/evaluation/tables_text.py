"""The figures of tables.py as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from medvr_jax.evaluation.figures import BREAKDOWNS, OPEN_MEASURES, Figure

_RULES = {
    "medevalkit": "As the published numbers were scored, guesses included; to stand beside them.",
    "strict": "Only what an answer says without doubt.",
}
_JUDGED = "Open questions by the verdict of the judge ({judge}), the others by the rule."
_NONE = "–"


def page(tables: dict[str, Any], main_table: Sequence[Sequence[tuple[str, str]]]) -> str:
    """All tables of a run; `main_table` are the columns (name, title) of the main table, group by group."""
    drawn, judged = tables["bootstrap"], _JUDGED.format(judge=_cell(tables["judge"]))
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
        parts += ["### Breakdowns", _table(("set", "by", "value", "questions", "accuracy"), rows)]
    if found["samples"]:
        parts += ["### Several samples", _samples(found["samples"])]
    for name, against in found["against"].items():
        parts += [f"### Against {_cell(name)}", _paired(against, "this run", _cell(name))]
    if found["without_tool"]:
        parts += ["### With the tool, and with the tool forbidden", _paired(found["without_tool"], "with", "without")]
    return parts


def _main(lines: dict[str, Figure], main_table: Sequence[Sequence[tuple[str, str]]]) -> str:
    head = ["model"]
    for group in main_table:
        head += [*(title for _, title in group), "avg"]
    rows = []
    for model, line in lines.items():
        row = [_cell(model)]
        for group, average in zip(main_table, line["averages"], strict=True):
            row += [*(_accuracy(line["sets"].get(name)) for name, _ in group), _accuracy(average)]
        rows.append(row)
    return _table(head, rows)


def _sets(sets: dict[str, Figure]) -> str:
    head = ("set", "questions", "accuracy", "closed", "open", *(f"open: {name}" for name in OPEN_MEASURES))
    rows = []
    for name, figure in sets.items():
        measured = figure.get("open", {})
        row = [_set(name), figure["questions"], _accuracy(figure), _accuracy(figure.get("closed"))]
        row += [_accuracy(figure.get("open")), *(_percent(measured.get(measure)) for measure in OPEN_MEASURES)]
        rows.append(row)
    return _table(head, rows)


def _breakdown_rows(breakdowns: dict[str, dict[str, dict[str, Figure]]]) -> Iterable[Sequence[object]]:
    for name, by_key in breakdowns.items():
        for key in BREAKDOWNS:
            if len(by_key[key]) > 1:  # one value says what the whole set says
                for value, figure in by_key[key].items():
                    yield _set(name), key.replace("_", " "), _cell(value), figure["questions"], _accuracy(figure)


def _samples(sets: dict[str, Figure]) -> str:
    counts = sorted({int(k) for figure in sets.values() for k in figure["pass_at"]})
    head = ("set", "questions", "samples", "accuracy", "majority", *(f"pass@{k}" for k in counts))
    rows = [
        [
            *(_set(name), figure["questions"], figure["samples"], _percent(figure["accuracy"])),
            *(_percent(figure["majority"]), *(_percent(figure["pass_at"].get(str(k))) for k in counts)),
        ]
        for name, figure in sets.items()
    ]
    return _table(head, rows)


def _paired(sets: dict[str, Figure], first: str, second: str) -> str:
    head = ("set", "questions of both", first, second, "difference", "better", "worse", "p")
    rows = [
        [
            *(_set(name), figure["questions"], _percent(figure["first"]), _percent(figure["second"])),
            f"{100 * figure['difference']:+.1f} [{100 * figure['low']:+.1f}, {100 * figure['high']:+.1f}]",
            *(figure["wins"], figure["losses"], f"{figure['p_value']:.2g}"),
        ]
        for name, figure in sets.items()
    ]
    return _table(head, rows)


def _tool_use(sets: dict[str, Figure]) -> str:
    head = ("set", "answers", "used the tool", "valid calls", "images per answer", "turns", "well formed", "tokens")
    rows = [
        [
            *(_set(name), figure["answers"], _percent(figure["tool_rate"]), _percent(figure["valid_call_rate"])),
            *(f"{figure['images_per_answer']:.2f}", f"{figure['turns_per_answer']:.2f}"),
            *(_percent(figure["well_formed_rate"]), f"{figure['sampled_tokens']:.0f}"),
        ]
        for name, figure in sets.items()
    ]
    return _table(head, rows)


def _grounding(sets: dict[str, Figure]) -> str:
    head = ("set", "questions", "mIoU", "mIoU, last zoom", "hits", "zoomed", "entropy and IoU: Pearson", "Spearman")
    rows = []
    for name, figure in sets.items():
        entropy = figure["entropy"] or {}
        row = [_set(name), figure["mean_iou"]["questions"], _accuracy(figure["mean_iou"])]
        row += [_accuracy(figure["last_iou"]), _accuracy(figure["hit_rate"]), _percent(figure["zoomed"])]
        rows.append(row + [_correlation(entropy.get("pearson")), _correlation(entropy.get("spearman"))])
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _accuracy(figure: Figure | None) -> str:
    if figure is None:
        return _NONE
    return f"{100 * figure['mean']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{100 * share:.1f}"


def _correlation(value: float | None) -> str:
    return _NONE if value is None else f"{value:+.3f}"


def _set(name: str) -> str:
    return _cell(name) if name else "own data"


def _cell(text: str) -> str:
    """Text that breaks no table."""
    return " ".join(str(text).split()).replace("|", "\\|") or "(not given)"
