"""Which questions are worth training on: those that a scoring pass says are neither too easy nor too hard.

A scoring pass is a predictions file: one JSON line per answer, several samples of a question, with the scores of each
(`--mode=evaluate` writes it). A question that the starting policy always or never gets right teaches nothing: all its
trajectories earn the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import Fault, Faults
from medvr_jax.datasets.jsonl import json_lines
from medvr_jax.errors import UserError

Name = tuple[str, str]  # short name of the set, id


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is left of training questions.

    Attributes:
        file: the scoring pass; empty = no filter.
        rule: the scoring rule whose `correct` counts.
        minimum, maximum: a question stays if its share of right answers is more than `minimum` and less than `maximum`.
        count: questions at most, a fixed choice among those that stay; 0 = all.
    """

    file: str = ""
    rule: str = "strict"
    minimum: float = 0.0
    maximum: float = 1.0
    count: int = 0

    @property
    def asks(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.file or self.count)


def names_of(examples: Sequence[Example], dataset: str) -> list[Name]:
    """(set, id) of all examples. Sets that know their ids as `ids` are not read for it."""
    ids = getattr(examples, "ids", None)
    if ids is not None:
        return [(dataset, str(identity)) for identity in ids]
    return [(dataset, example.id) for example in examples]


def name_of_set(dataset: str) -> str:
    """A set's name as rows have it: without its variant, and empty for the user's own questions."""
    name = dataset.partition("/")[0]
    return "" if name == "jsonl" else name


def select(names: Sequence[Name], selection: Selection, faults: Faults) -> np.ndarray:
    """Indices `[n]` int64, ascending, of the questions that stay. Those without a score are faults, and do not stay."""
    kept = np.arange(len(names))
    if selection.file:
        shares = right_shares(selection.file, selection.rule)
        for name in names:
            if name not in shares:
                faults.add(Fault(f"{name[0] or 'question'} {name[1]}", "not_scored", f"no answer in {selection.file}"))
        found = np.array([shares.get(name, np.nan) for name in names])
        kept = np.flatnonzero((found > selection.minimum) & (found < selection.maximum))
        never, always = int((found <= selection.minimum).sum()), int((found >= selection.maximum).sum())
        print(f"{selection.file}: {len(kept)} of {len(names)} questions stay; {never} too hard, {always} too easy")
    if selection.count and len(kept) > selection.count:
        # By a hash of the name: the same ones whatever their order, and nearly the same when there are a few more.
        draw = [hashlib.blake2s("\0".join(names[i]).encode()).digest() for i in kept]
        kept = np.sort(kept[sorted(range(len(kept)), key=draw.__getitem__)[: selection.count]])
    return kept


def right_shares(path: str | Path, rule: str) -> dict[Name, float]:
    """(set, id) -> the share of its samples that are right by this rule."""
    right: dict[Name, list[float]] = {}
    for number, row in json_lines(path):
        where = f"data.filter_file: {path}:{number}"
        if isinstance(row, Fault):
            raise UserError(f"{where}: {row.message}")
        name, correct = _scored(row, rule, where)
        right.setdefault(name, []).append(correct)
    if not right:
        raise UserError(f"data.filter_file: {path} holds no row")
    return {name: sum(correct) / len(correct) for name, correct in right.items()}


def _scored(row: dict[str, Any], rule: str, where: str) -> tuple[Name, float]:
    identity, dataset, scores = row.get("id"), row.get("dataset", ""), row.get("scores")
    if not isinstance(identity, (str, int)) or not isinstance(dataset, str):
        raise UserError(f"{where}: id: found {identity!r}; allowed: text, with dataset beside it")
    found = scores.get(rule) if isinstance(scores, dict) else None
    correct = found.get("correct") if isinstance(found, dict) else None
    if not isinstance(correct, (int, float)) or not 0 <= correct <= 1:
        raise UserError(f"{where}: scores: found no {rule}.correct from 0 to 1; is this a file of --mode=evaluate?")
    return (name_of_set(dataset), str(identity)), float(correct)
