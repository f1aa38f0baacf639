"""Figures of the rows of one run, as JSON objects: accuracy, breakdowns, samples, use of the tool, grounding.

Every mean is over questions; a question that was answered k times counts once, with the mean of its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from medvr_jax.evaluation.grounding import any_hit, best_iou
from medvr_jax.evaluation.grounding import iou as box_iou
from medvr_jax.evaluation.rows import Row, by_question, correct, grouped, is_open, question_means, question_of
from medvr_jax.evaluation.scoring.strict import comparable
from medvr_jax.evaluation.statistics import Bootstrap, pass_at_k, pearson, sign_test, spearman
from medvr_jax.rewards.answers import chosen_letter, yes_or_no

Figure = dict[str, Any]
BREAKDOWNS = ("modality", "question_type", "language", "answer_kind")
OPEN_MEASURES = ("exact", "recall", "f1")


def estimate(rows: Sequence[Row], value: Callable[[Row], float], bootstrap: Bootstrap) -> Figure:
    """questions, and a value's mean with the ends of its interval."""
    values = question_means(rows, value)
    low, high = bootstrap.interval(bootstrap.means(values))
    return {"questions": len(values), "mean": float(values.mean()), "low": low, "high": high}


def accuracy(rows: Sequence[Row], rule: str, bootstrap: Bootstrap) -> Figure:
    """Share of right answers under a rule."""
    return estimate(rows, partial(correct, rule=rule), bootstrap)


def average(sets: Mapping[str, Sequence[Row]], rule: str, bootstrap: Bootstrap) -> Figure:
    """The mean of the sets' accuracies, each set counting the same; every set is drawn from by itself."""
    values = {name: question_means(rows, partial(correct, rule=rule)) for name, rows in sets.items()}
    means = np.mean([bootstrap.means(values[name], name) for name in sets], axis=0)
    low, high = bootstrap.interval(means)
    return {"sets": list(sets), "mean": float(np.mean([v.mean() for v in values.values()])), "low": low, "high": high}


def breakdown(rows: Sequence[Row], key: str, rule: str, bootstrap: Bootstrap) -> dict[str, Figure]:
    """Accuracy by the values of one of a row's fields, the most frequent first."""
    groups = grouped(rows, lambda row: row.get(key) or "")
    order = sorted(groups, key=lambda name: (-len(groups[name]), name))
    return {name: accuracy(groups[name], rule, bootstrap) for name in order}


def closed_and_open(rows: Sequence[Row], rule: str, bootstrap: Bootstrap) -> dict[str, Figure]:
    """Accuracy of the closed and of the open questions apart, and the open measures; what is not there is left out."""
    groups = grouped(rows, lambda row: "open" if is_open(row) else "closed")
    names = [name for name in ("closed", "open") if name in groups]
    figures = {name: accuracy(groups[name], rule, bootstrap) for name in names}
    if "open" in groups and all(rule in row["scores"] for row in groups["open"]):
        for measure in OPEN_MEASURES:
            means = question_means(groups["open"], lambda row, name=measure: row["scores"][rule][name])
            figures["open"][measure] = float(means.mean())
    return figures


def samples(rows: Sequence[Row], rule: str) -> Figure:
    """What k answers to each question are worth: their accuracy, pass@1, 2, 4 … k, and the majority's accuracy."""
    questions = list(grouped(rows, question_of).values())
    most = min(map(len, questions))
    right = [sum(correct(row, rule) > 0 for row in group) for group in questions]
    counts = sorted({2**power for power in range(most.bit_length())} | {most})
    return {
        "questions": len(questions),
        "samples": most,
        "accuracy": float(question_means(rows, partial(correct, rule=rule)).mean()),
        "majority": float(np.mean([majority(group, rule) for group in questions])),
        "pass_at": {
            str(k): float(np.mean([pass_at_k(len(g), r, k) for g, r in zip(questions, right, strict=True)]))
            for k in counts
        },
    }


def majority(rows: Sequence[Row], rule: str) -> float:
    """Whether the most frequent answer of one question's samples is right; between equals the lot would decide, so that
    each counts with its share, and so does each wording of an answer. Samples without an answer do not vote."""
    votes = grouped((row for row in rows if row.get("prediction")), said)
    most = max(map(len, votes.values()), default=0)
    leading = [row for group in votes.values() if len(group) == most for row in group]
    return float(np.mean([correct(row, rule) for row in leading])) if leading else 0.0


def said(row: Row) -> str | None:
    """What an answer amounts to, however it is put; None where there is none."""
    prediction, kind = row.get("prediction"), row["answer_kind"]
    if not prediction:
        return None
    meaning = None
    if kind == "choice":
        meaning = chosen_letter(prediction, row.get("options", ()))
    elif kind == "yes_no":
        meaning = yes_or_no(prediction)
    return meaning or comparable(prediction)


_IMAGES = ("crop", "image")  # observations that are none of text, see `rollout/trajectories.py`


def tool_use(rows: Sequence[Row]) -> Figure | None:
    """How the policy used its tool; None for rows that do not say."""
    rows = [row for row in rows if "called" in row]
    if not rows:
        return None
    calls = [_calls(row) for row in rows]
    images = [sum(observation in _IMAGES for observation in row["observations"]) for row in rows]
    return {
        "answers": len(rows),
        "tool_rate": float(np.mean([row["called"] for row in rows])),
        "calls": sum(calls),
        "valid_call_rate": sum(images) / sum(calls) if sum(calls) else None,
        "images_per_answer": float(np.mean(images)),
        "turns_per_answer": float(np.mean([len(row["texts"]) for row in rows])),
        "well_formed_rate": float(np.mean([row["well_formed"] for row in rows])),
        "sampled_tokens": float(np.mean([row["sampled_tokens"] for row in rows])),
        "ended": {name: len(group) / len(rows) for name, group in sorted(grouped(rows, lambda r: r["ended"]).items())},
    }


def _calls(row: Row) -> int:
    """Turns with a tool call, valid or not; in the last turn nothing comes back."""
    turns = zip(row["texts"], row["observations"], strict=True)
    return sum(observation is not None or "<tool_call>" in text for text, observation in turns)


def grounding(rows: Sequence[Row], bootstrap: Bootstrap) -> Figure | None:
    """Agreement of the zooms with the true boxes, where these are known; None where they never are.

    The best of an answer's zooms counts (`mean_iou`, `hit_rate`), and its last (`last_iou`), which nobody chose knowing
    the truth. An answer without a zoom counts as a miss with IoU 0. `entropy` correlates, over all zooms, the mean
    entropy of a zoom's coordinates with its IoU.
    """
    rows = [row for row in rows if row.get("true_boxes") and "boxes" in row]
    if not rows:
        return None

    def of(measure: Callable[..., float], zooms: slice) -> Figure:
        return estimate(rows, lambda row: measure(row["boxes"][zooms], row["true_boxes"]), bootstrap)

    return {
        "mean_iou": of(best_iou, slice(None)),
        "last_iou": of(best_iou, slice(-1, None)),
        "hit_rate": of(any_hit, slice(None)),
        "zoomed": float(np.mean([bool(row["boxes"]) for row in rows])),
        "entropy": entropy_and_iou(rows),
    }


def entropy_and_iou(rows: Sequence[Row]) -> Figure | None:
    """Pearson's and Spearman's correlation over the zooms whose entropy is recorded; None where none is."""
    pairs = [
        (entropy, max(box_iou(box, true) for true in row["true_boxes"]))
        for row in rows
        for box, entropy in zip(row["boxes"], row.get("box_entropy") or [None] * len(row["boxes"]), strict=True)
        if entropy is not None
    ]
    if not pairs:
        return None
    entropies, ious = np.array(pairs).T
    return {"zooms": len(pairs), "pearson": pearson(entropies, ious), "spearman": spearman(entropies, ious)}


def paired(first: Sequence[Row], second: Sequence[Row], rule: str, bootstrap: Bootstrap) -> Figure | None:
    """Two runs on the questions that both answered; None when they share none.

    Accuracies, the difference (first - second) with its interval, on how many questions either was better, and the
    p-value of the sign test; with one answer to each question that is McNemar's exact test.
    """
    one, two = (by_question(rows, partial(correct, rule=rule)) for rows in (first, second))
    shared = [question for question in one if question in two]
    if not shared:
        return None
    differences = np.array([one[question] - two[question] for question in shared])
    low, high = bootstrap.interval(bootstrap.means(differences))
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return {
        "questions": len(shared),
        "only_first": len(one) - len(shared),
        "only_second": len(two) - len(shared),
        "first": float(np.mean([one[question] for question in shared])),
        "second": float(np.mean([two[question] for question in shared])),
        "difference": float(differences.mean()),
        "low": low,
        "high": high,
        "wins": wins,
        "losses": losses,
        "p_value": sign_test(wins, losses),
    }
