"""One answered question as `predictions.jsonl` holds it and the tables read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from medvr_jax.datasets.example import Example
from medvr_jax.evaluation.scoring import extract_answer, score
from medvr_jax.rewards.format import strip_end_of_turn


def make_row(
    name: str, example: Example, sample: int, response: str, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Plain JSON.

    Args:
        name: of the set that was asked.
        sample: number of the answer to this question, from 0.
        response: the model's last text.
        more: further keys, which only some models have.
    """
    response = strip_end_of_turn(response).encode(errors="replace").decode()  # half a character cannot be written
    return {
        "id": example.id,
        "dataset": example.dataset or name,
        "sample": sample,
        "answer_kind": example.answer_kind,
        "modality": example.modality,
        "question_type": example.question_type,
        "language": example.language,
        "answer": example.answer,
        "options": list(example.options),
        "response": response,
        "prediction": extract_answer(response),
        "scores": score(response, example),
        **(more or {}),
    }


def of_policy(prediction: Any) -> dict[str, Any]:
    """What our own policy's rows hold on top: the trajectory, its boxes, and the verdict of the training rules."""
    fields = dataclasses.asdict(prediction)
    for name in ("id", "answer", "prediction"):
        del fields[name]
    return fields
