"""Answers of any model in a file: one JSON object per line with `id`, `text` and, for several samples, `sample`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvr_jax.errors import UserError
from medvr_jax.evaluation.questions import QuestionSet
from medvr_jax.evaluation.row_file import Key

FIELDS = ("id", "text", "sample", "dataset")
_FIELD, _SHOWN = "evaluate.predictions_file", 5


def read_predictions(path: str | Path, questions: Sequence[QuestionSet]) -> tuple[list[dict[Key, str]], int, int]:
    """The answers to each set's questions, how many there are to each question, and how many lines are of others.

    A line is for the set that it names as `dataset`, else for the only set that has its id.

    Raises:
        UserError: naming the first few of the lines that are wrong, or of the questions without an answer.
    """
    found: list[dict[Key, str]] = [{} for _ in questions]
    lines: list[dict[Key, int]] = [{} for _ in questions]
    faults, others = [], 0
    places = [set(one.ids) for one in questions]
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = _record(line)
            sets = _sets_of(record, questions, places)
        except ValueError as error:
            faults.append(f"line {number}: {error}")
            continue
        others += not sets
        key = (str(record["id"]), record.get("sample", 0))
        for index in sets:
            if key in found[index]:
                faults.append(f"line {number}: id {key[0]!r}, sample {key[1]} was already on line {lines[index][key]}")
                continue
            found[index][key], lines[index][key] = record["text"], number
    if faults:
        raise UserError(f"{_FIELD}: {path}: {_first(faults, 'wrong lines')}")
    return found, _samples(path, questions, found), others


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{_FIELD}: {path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _record(line: str) -> dict[str, Any]:
    """A line's object; ValueError for what is wrong with it."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"found {type(record).__name__}, allowed is a JSON object")
    if unknown := [name for name in record if name not in FIELDS]:
        raise ValueError(f"unknown key {unknown[0]!r}, allowed are {', '.join(FIELDS)}")
    checks: Mapping[str, tuple[type | tuple[type, ...], str]] = {
        "id": ((str, int), "text or a whole number"),
        "text": (str, "text, empty for no answer"),
        "sample": (int, "a whole number, 0 or more"),
        "dataset": (str, "the name of a set"),
    }
    for name, (kinds, allowed) in checks.items():
        value = record.get(name, 0 if name == "sample" else "" if name == "dataset" else None)
        if not isinstance(value, kinds) or isinstance(value, bool) or (name == "sample" and value < 0):
            raise ValueError(f"{name}: found {'nothing' if name not in record else repr(value)}, allowed is {allowed}")
    return record


def _sets_of(record: Mapping[str, Any], questions: Sequence[QuestionSet], ids: Sequence[set[str]]) -> list[int]:
    """The set that a line is for, none where its question is not asked."""
    wanted, identity = record.get("dataset", ""), str(record["id"])
    names = [one.name for one in questions]
    if wanted:
        # Rows of predictions.jsonl name the set without its variant.
        named = [index for index, name in enumerate(names) if wanted in (name, name.partition("/")[0])]
        return [index for index in named if identity in ids[index]]
    holding = [index for index, known in enumerate(ids) if identity in known]
    if len(holding) > 1:
        sets = " and ".join(names[index] for index in holding)
        raise ValueError(f'id {identity!r} is in {sets}; say which one as "dataset"')
    return holding


def _samples(path: str | Path, questions: Sequence[QuestionSet], found: Sequence[Mapping[Key, str]]) -> int:
    """How many answers each question has: equally many, numbered from 0."""
    samples = 1 + max((sample for answers in found for _, sample in answers), default=0)
    missing = [
        f"{one.name}: id {identity!r}, sample {sample}"
        for one, answers in zip(questions, found, strict=True)
        for identity in one.ids
        for sample in range(samples)
        if (identity, sample) not in answers
    ]
    if missing:
        raise UserError(
            f"{_FIELD}: {path}: {_first(missing, 'answers are missing')};"
            " every question needs a line, with an empty text where there is no answer"
        )
    return samples


def _first(texts: Sequence[str], what: str) -> str:
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"{len(texts)} {what}: {'; '.join(texts[:_SHOWN])}{more}"
