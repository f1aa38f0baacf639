"""Tables of figures in Markdown, and what stands in their cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medvr_jax.evaluation.figures import Figure

NONE = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose first column is text."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def interval(figure: Figure | None) -> str:
    """A mean as percentage with the ends of its interval."""
    if figure is None:
        return NONE
    return f"{100 * figure['mean']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def difference(figure: Figure | None) -> str:
    """A difference of percentages with the ends of its interval, all with their signs."""
    if figure is None:
        return NONE
    return f"{100 * figure['difference']:+.1f} [{100 * figure['low']:+.1f}, {100 * figure['high']:+.1f}]"


def percent(share: float | None) -> str:
    """A share as percentage."""
    return NONE if share is None else f"{100 * share:.1f}"


def correlation(value: float | None) -> str:
    """A correlation with its sign."""
    return NONE if value is None else f"{value:+.3f}"


def set_name(name: str) -> str:
    """A set's name; own questions have none."""
    return cell(name) if name else "own data"


def cell(text: str) -> str:
    """Text that breaks no table."""
    return " ".join(str(text).split()).replace("|", "\\|") or "(not given)"
