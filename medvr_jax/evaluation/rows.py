"""Rows of predictions.jsonl, one per answer: what every table and figure is computed from.

A row is a JSON object: id, dataset, sample (0 … k-1), answer_kind, modality, question_type, language, answer, options,
response, prediction and scores {rule: {"correct": …}}; rows of our own policy also say how the answer came about
(called, texts, observations, boxes, …). An open question may carry the verdict of a judge, scores["judge"]; the judged
rules are the two rules with that verdict in the place of their own for open questions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medvr_jax.errors import UserError
from medvr_jax.evaluation.scoring import RULES

Row = Mapping[str, Any]
Question = tuple[str, str]

JUDGED = " + judge"
_NEEDED = ("id", "answer_kind", "scores")


def check_rows(rows: Sequence[Row], name: str = "predictions") -> None:
    """Refuses rows without what every table needs, and answers that stand there twice."""
    seen = set()
    for number, row in enumerate(rows, start=1):
        if missing := [key for key in _NEEDED if key not in row]:
            raise UserError(f"{name}, row {number}: has no {missing[0]}; needed are {', '.join(_NEEDED)}")
        if missing := [rule for rule in RULES if rule not in row["scores"]]:
            raise UserError(f"{name}, row {number}: scores has no {missing[0]}; needed are {', '.join(RULES)}")
        answer = (*question_of(row), row.get("sample", 0))
        if answer in seen:
            raise UserError(f"{name}, row {number}: id {row['id']!r} is there twice; each sample of a question once")
        seen.add(answer)


def question_of(row: Row) -> Question:
    """The set without its variant, and the id."""
    return set_of(row), str(row["id"])


def set_of(row: Row) -> str:
    """The short name of the row's set, without the variant behind a slash."""
    return row.get("dataset", "").partition("/")[0]


def is_open(row: Row) -> bool:
    """Everything but open questions is closed: choices, yes or no, and other short fixed answers."""
    return row["answer_kind"] == "open"


def rules_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """The rules that the rows were scored by; the judged ones only if every open question was judged."""
    judged = ["judge" in row["scores"] for row in rows if is_open(row)]
    return RULES + tuple(rule + JUDGED for rule in RULES if judged and all(judged))


def correct(row: Row, rule: str) -> float:
    """Whether the answer is right under a rule, 0 or 1."""
    scores = row["scores"]
    if rule.endswith(JUDGED):
        return float(scores["judge"]["correct"] if is_open(row) else scores[rule.removesuffix(JUDGED)]["correct"])
    return float(scores[rule]["correct"])


def grouped(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> dict[Any, list[Row]]:
    """Rows by what `key` says of them, in the order of their first appearance."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def by_question(rows: Iterable[Row], value: Callable[[Row], float]) -> dict[Question, float]:
    """The mean of a value over each question's samples."""
    groups = grouped(rows, question_of)
    return {question: sum(map(value, group)) / len(group) for question, group in groups.items()}


def question_means(rows: Iterable[Row], value: Callable[[Row], float]) -> np.ndarray:
    """The same as an array `[Q]` float64."""
    return np.array(list(by_question(rows, value).values()), np.float64)
