"""The figures of the masking test as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medvr_jax.evaluation.figures import Figure
from medvr_jax.evaluation.markdown import cell, difference, interval, percent, set_name, table
from medvr_jax.evaluation.masks import CONTROLS, LESION, RANDOM, RANDOM_LESION, ZOOMED

MEANING = {
    ZOOMED: "what it zoomed into",
    RANDOM: "as much elsewhere",
    LESION: "the true boxes",
    RANDOM_LESION: "as much elsewhere",
}
_LEAD = (
    "Every question asked again, greedily, with a part of its image blanked. `zoomed` blanks what the policy zoomed"
    " into in its plain answer, `lesion` the true boxes; `random` and `random_lesion` as much somewhere else. A"
    " policy that looks changes its answer more often under `zoomed` and `lesion` than under their controls."
)


def masking_text(figures: Figure, policy: str) -> str:
    """The section without a title: what was done, and the tables."""
    drawn = figures["bootstrap"]
    scopes = list(_scopes(figures))
    parts = [
        f"{cell(policy)}. {_LEAD}",
        f"Percentages; accuracy by the rule of the reward; in brackets the {100 * drawn['level']:g} % interval, drawn"
        f" by question ({drawn['repeats']} times, seed {drawn['seed']}).",
    ]
    if not figures["overall"]["masks"]:
        return "\n\n".join([*parts, "Nothing could be masked: the policy never zoomed, and no true box is known."])
    head = ("set", "blanked", "questions", "answers changed", "right before", "right then", "controls that overlap")
    parts.append(table(head, [row for name, figure in scopes for row in _mask_rows(name, figure)]))
    head = ("set", "changed more often", "questions", "difference")
    parts.append(table(head, [row for name, figure in scopes for row in _difference_rows(name, figure)]))
    if figures["against"]:
        parts.append("How much more answers change under `lesion` than under its control, here and there:")
        head = ("against", "questions of both", "here", "there", "difference")
        parts.append(table(head, list(_against_rows(figures["against"]))))
    return "\n\n".join(parts)


def _scopes(figures: Figure) -> Iterator[tuple[str, Figure]]:
    """All questions together only where there is more than one set."""
    yield from ((set_name(name), figure) for name, figure in figures["sets"].items())
    if len(figures["sets"]) > 1:
        yield "all", figures["overall"]


def _mask_rows(name: str, figure: Figure) -> Iterator[Sequence[object]]:
    for mask, found in figure["masks"].items():
        row = [name, f"`{mask}`: {MEANING[mask]}", found["changed"]["questions"], interval(found["changed"])]
        yield [*row, percent(found["accuracy_before"]), interval(found["accuracy"]), found["overlapping"]]


def _difference_rows(name: str, figure: Figure) -> Iterator[Sequence[object]]:
    for mask, found in figure["differences"].items():
        yield name, f"`{mask}` than `{CONTROLS[mask]}`", found["questions"], difference(found)


def _against_rows(against: dict[str, Figure]) -> Iterator[Sequence[object]]:
    for name, figure in against.items():
        first, second = percent(figure["first"]), percent(figure["second"])
        yield cell(name), figure["questions"], first, second, difference(figure)
        if len(figure["sets"]) > 1:
            for one, found in figure["sets"].items():
                yield f"{cell(name)}, {set_name(one)}", found["questions"], "", "", difference(found)
