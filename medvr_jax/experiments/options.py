"""The section `experiment` of a configuration: its texts taken apart, and what contradicts itself. No jax here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from medvr_jax.errors import UserError

_NAME = r"[^\W_](?:[\w .+]*[\w+])?"  # letters of any script; it is a folder too
_ARM = re.compile(rf"({_NAME})=([^@]*)(?:@([1-9][0-9]*))?")
_PAIR = re.compile(rf"({_NAME})-({_NAME})")

CURVES, AREA, ENTROPY = "curves", "area", "entropy"
ACCURACY = "eval/accuracy"
KEPT = ("eval/", "base/", "fork/", "rollout/", "reward/", "audit/", "train/")  # keys of a row that a run's file holds
TITLES = {
    CURVES: "Held-out accuracy",
    AREA: "Area under the accuracy curve",
    ENTROPY: "Entropy of a zoom's coordinates and IoU of its box",
}


@dataclasses.dataclass(frozen=True)
class ArmOption:
    """`NAME=VARIANT@SEEDS`: the variant is "" for the recipe without one; seeds are the numbers to be run."""

    name: str
    variant: str
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class FigureOption:
    """`TITLE=KIND:NAME,NAME;NAME`: `kind` is CURVES, AREA, ENTROPY, a key of metrics.jsonl or a field; `series` are the
    arms, line by line."""

    title: str
    kind: str
    series: tuple[tuple[str, ...], ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of all lines."""
        return tuple(name for names in self.series for name in names)

    @property
    def metric(self) -> str | None:
        """The key of metrics.jsonl whose curves are drawn, if that is what the figure shows."""
        return ACCURACY if self.kind == CURVES else self.kind if "/" in self.kind else None

    @property
    def stem(self) -> str:
        """The name of its file."""
        return re.sub(r"[^a-z0-9]+", "_", self.title.lower()).strip("_") or re.sub(r"\W", "_", self.kind)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A checked section `experiment`; `pairs` are (first, second) arms whose difference is told."""

    arms: tuple[ArmOption, ...]
    baseline: str
    pairs: tuple[tuple[str, str], ...]
    figures: tuple[FigureOption, ...]
    workers: int


def check_experiment(c: Mapping[str, Any]) -> None:
    """UserError for what cannot be meant; `c` maps dotted names to values."""
    grid = read_grid(c)
    names = [arm.name for arm in grid.arms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"experiment.arms: found the name {name!r} {names.count(name)} times, allowed is once")
    if c["experiment.baseline"]:
        _refuse_unknown("baseline", (grid.baseline,), names)
    for number, pair in enumerate(grid.pairs):
        _refuse_unknown("pairs", pair, names)
        if pair[0] == pair[1] or pair in grid.pairs[:number]:
            raise UserError(
                f"experiment.pairs: found '{'-'.join(pair)}', allowed are two different arms, each pair once"
            )
    stems = [figure.stem for figure in grid.figures]
    for figure in grid.figures:
        _refuse_unknown("figures", figure.arms, names)
        _check_kind(figure, c)
        if stems.count(figure.stem) > 1:
            raise UserError(
                f"experiment.figures: found {stems.count(figure.stem)} figures with the title {figure.title!r}; give"
                " each its own, as TITLE=KIND:NAME,NAME"
            )


def read_grid(c: Mapping[str, Any]) -> Grid:
    """The section of `c`, which maps dotted names to values; UserError for a text that cannot be taken apart."""
    arms = tuple(_arm(text, c["seed"], c["experiment.seeds"]) for text in c["experiment.arms"])
    baseline = c["experiment.baseline"] or (arms[0].name if arms else "")
    pairs = tuple(_pair(text) for text in c["experiment.pairs"])
    figures = tuple(_figure(text) for text in c["experiment.figures"])
    return Grid(arms, baseline, pairs, figures, c["experiment.workers"])


def _arm(text: Any, first: int, count: int) -> ArmOption:
    found = _ARM.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise UserError(
            f"experiment.arms: found {text!r}, allowed are NAME=VARIANT and NAME=VARIANT@SEEDS, e.g."
            " 'calm=evr,gamma=0@5'; NAME has letters and digits, and between them spaces, '_', '.' and '+'"
        )
    name, variant, seeds = found.groups()
    return ArmOption(name, variant, tuple(range(first, first + int(seeds or count))))


def _pair(text: Any) -> tuple[str, str]:
    found = _PAIR.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise UserError(f"experiment.pairs: found {text!r}, allowed are NAME-NAME, e.g. 'evr-zoom'")
    return found[1], found[2]


def _figure(text: Any) -> FigureOption:
    title, equals, rest = text.rpartition("=") if isinstance(text, str) else ("", "", "")
    kind, _, names = rest.partition(":")
    series = tuple(tuple(name.strip() for name in line.split(",")) for line in names.split(";"))
    if not kind or not all(name for line in series for name in line) or (equals and not title.strip()):
        raise UserError(
            f"experiment.figures: found {text!r}, allowed are KIND:NAME,NAME and TITLE=KIND:NAME,NAME, e.g."
            " 'curves:zoom,evr'"
        )
    default = TITLES.get(kind) or (kind if "/" in kind else f"{TITLES[AREA]} against {kind}")
    return FigureOption(title.strip() or default, kind, series)


def _check_kind(figure: FigureOption, c: Mapping[str, Any]) -> None:
    """UserError unless the kind is one of the words, a key that runs keep, or a field that holds a number."""
    if figure.kind in TITLES or figure.kind.startswith(KEPT):
        return
    value = c.get(figure.kind)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            f"experiment.figures: found the kind {figure.kind!r}, allowed are {', '.join(TITLES)}, a key of"
            f" metrics.jsonl that begins with one of {', '.join(KEPT)}, e.g. eval/hit_rate, and a field that holds a"
            " number, e.g. evr.gamma"
        )


def _refuse_unknown(field: str, found: Sequence[str], names: Sequence[str]) -> None:
    for name in found:
        if name not in names:
            allowed = f"the names in experiment.arms: {', '.join(names)}" if names else "none without experiment.arms"
            raise UserError(f"experiment.{field}: found {name!r}, allowed are {allowed}")
