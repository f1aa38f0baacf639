"""Figures of the masking test from its rows: how often answers change, against controls, and against another policy.

A policy that looks changes its answer when what it looked at is gone, and keeps it when as much is gone elsewhere.
Right and wrong are by the rule of the reward. Pure functions of rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from medvr_jax.evaluation.figures import Figure, estimate
from medvr_jax.evaluation.masks import CONTROLS, LESION, MASKS
from medvr_jax.evaluation.rows import Question, Row, by_question, grouped, question_of, set_of
from medvr_jax.evaluation.statistics import Bootstrap


def masking_figures(
    plain: Sequence[Row],
    masked: Sequence[Row],
    others: Mapping[str, Sequence[Row]] | None = None,
    bootstrap: Bootstrap | None = None,
) -> Figure:
    """All figures as one JSON object, of each set and of all questions together.

    Args:
        plain: one plain answer to each question.
        masked: the answers to the masked ones.
        others: the like of other policies by their names; compared where both have the same questions.
    """
    bootstrap = bootstrap or Bootstrap()
    sets, masked_sets = grouped(plain, set_of), grouped(masked, set_of)
    return {
        "bootstrap": dataclasses.asdict(bootstrap),
        "overall": _figures(plain, masked, bootstrap),
        "sets": {name: _figures(rows, masked_sets.get(name, []), bootstrap) for name, rows in sets.items()},
        "against": {
            name: figure for name, rows in (others or {}).items() if (figure := _against(masked, rows, bootstrap))
        },
    }


def _figures(plain: Sequence[Row], masked: Sequence[Row], bootstrap: Bootstrap) -> Figure:
    by_mask = grouped(masked, lambda row: row["mask"])
    changes = {mask: _changes(rows) for mask, rows in by_mask.items()}
    return {
        "questions": len(grouped(plain, question_of)),
        "accuracy": float(np.mean([row["correct"] for row in plain])),
        "masks": {mask: _of_mask(by_mask[mask], bootstrap) for mask in MASKS if mask in by_mask},
        "differences": {
            mask: _difference(_paired(changes[mask], changes[control]), bootstrap)
            for mask, control in CONTROLS.items()
            if mask in changes
        },
    }


def _of_mask(rows: Sequence[Row], bootstrap: Bootstrap) -> Figure:
    """Share of changed answers, and accuracies of these questions without and with the mask.

    `overlapping`: questions whose control had to overlap what it is the control of.
    """
    return {
        "changed": estimate(rows, lambda row: float(row["changed"]), bootstrap),
        "accuracy_before": float(np.mean([row["correct_before"] for row in rows])),
        "accuracy": estimate(rows, lambda row: float(row["correct"]), bootstrap),
        "overlapping": sum(row["overlaps"] for row in rows),
    }


def _changes(rows: Sequence[Row]) -> dict[Question, float]:
    return by_question(rows, lambda row: float(row["changed"]))


def _paired(one: Mapping[Question, float], two: Mapping[Question, float]) -> dict[Question, float]:
    """Differences one - two on the questions of both."""
    return {question: one[question] - two[question] for question in one if question in two}


def _difference(differences: Mapping[Question, float], bootstrap: Bootstrap) -> Figure:
    values = np.array(list(differences.values()))
    low, high = bootstrap.interval(bootstrap.means(values))
    return {"questions": len(values), "difference": float(values.mean()), "low": low, "high": high}


def _against(first: Sequence[Row], second: Sequence[Row], bootstrap: Bootstrap) -> Figure | None:
    """How much more the first policy's answers depend on the lesion than the second's: the differences of (lesion -
    random_lesion), question by question; None where they share no question with a true box."""
    effects = [_effect(rows) for rows in (first, second)]
    differences = _paired(*effects)
    if not differences:
        return None
    means = [float(np.mean([effect[question] for question in differences])) for effect in effects]
    sets: dict[str, dict[Question, float]] = {}
    for question, value in differences.items():
        sets.setdefault(question[0], {})[question] = value
    return {
        **_difference(differences, bootstrap),
        "first": means[0],
        "second": means[1],
        "sets": {name: _difference(found, bootstrap) for name, found in sets.items()},
    }


def _effect(rows: Sequence[Row]) -> dict[Question, float]:
    by_mask = grouped(rows, lambda row: row["mask"])
    return _paired(*(_changes(by_mask.get(mask, [])) for mask in (LESION, CONTROLS[LESION])))
