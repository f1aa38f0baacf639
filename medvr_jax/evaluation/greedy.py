"""Greedy evaluation of a policy with its tools: one trajectory per held-out question, no forks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from medvr_jax import distributed
from medvr_jax.datasets.example import Example
from medvr_jax.evaluation.answers import Answer, answer, make_batches
from medvr_jax.evaluation.grounding import any_hit, best_iou
from medvr_jax.inputs.chat import Encoder
from medvr_jax.rewards.answers import extract_answer, is_correct
from medvr_jax.rewards.format import is_well_formed
from medvr_jax.rollout.engine import RolloutEngine


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One answered question by the rules of the reward.

    Attributes:
        id, answer: the question's id and true answer.
        prediction: what the policy answered, None when it gave no answer.
        correct: whether that is right.
        well_formed: whether every turn kept the format.
        called: whether the policy called a tool.
        texts: its own text, turn by turn.
        observations: what came back after each turn ("crop", "image", an error text, or None).
        boxes: zoom boxes that were cut, normalised (x1, y1, x2, y2).
        box_entropy: of each of them, see `coordinates.py`.
        true_boxes: the true ones, empty where unknown.
        hit, iou: grounding of the zooms; None where no true box is known.
        ended: "answer", "turn_limit" or "truncated".
        sampled_tokens: tokens that the policy sampled.
    """

    id: str
    answer: str
    prediction: str | None
    correct: bool
    well_formed: bool
    called: bool
    texts: tuple[str, ...]
    observations: tuple[str | None, ...]
    boxes: tuple[tuple[float, ...], ...]
    box_entropy: tuple[float | None, ...]
    true_boxes: tuple[tuple[float, ...], ...]
    hit: bool | None
    iou: float | None
    ended: str
    sampled_tokens: int


def predict(
    engine: RolloutEngine,
    params: nnx.State,
    encoder: Encoder,
    examples: Sequence[Example],
    rows: distributed.Rows,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Answers all examples, a batch at a time.

    Args:
        rows: this process's share of a batch. Every process returns the predictions of all.
        progress: called with (done, total) after each batch.
    """
    predictions: dict[int, Prediction] = {}
    batches = make_batches(range(len(examples)), rows.total)
    done = 0
    key = jax.random.key(0)  # greedy sampling draws nothing from it
    for batch, found in zip(batches, answer(engine, params, encoder, examples, batches, rows, key), strict=True):
        predictions |= {one.index: make_prediction(one) for one in found}
        done += batch.counted
        if progress:
            progress(done, len(examples))
    return _of_all_processes(predictions)


def _of_all_processes(predictions: dict[int, Prediction]) -> list[Prediction]:
    """Every process's predictions in the order of their numbers."""
    parts = distributed.gather_json([[index, dataclasses.asdict(p)] for index, p in predictions.items()])
    found = {
        index: Prediction(**{name: _frozen(value) for name, value in p.items()}) for part in parts for index, p in part
    }
    return [found[index] for index in sorted(found)]


def _frozen(value: Any) -> Any:
    """Lists, which is what JSON makes of tuples, as tuples again."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def make_prediction(answered: Answer) -> Prediction:
    """What an answer comes to."""
    example, trajectory = answered.example, answered.trajectory
    said = extract_answer(trajectory.texts[-1])
    boxes = tuple(tuple(zoom.normalised) for zoom in trajectory.zooms)
    return Prediction(
        id=example.id,
        answer=example.answer,
        prediction=said,
        correct=is_correct(said, answer=example.answer, answer_kind=example.answer_kind, options=example.options),
        well_formed=trajectory.ended == "answer" and is_well_formed(trajectory.texts),
        called=any(turn.called for turn in trajectory.turns),
        texts=trajectory.texts,
        observations=tuple(turn.observation for turn in trajectory.turns),
        boxes=boxes,
        box_entropy=tuple(answered.box_entropy),
        true_boxes=tuple(tuple(box) for box in example.boxes),
        hit=any_hit(boxes, example.boxes) if example.boxes else None,
        iou=best_iou(boxes, example.boxes) if example.boxes else None,
        ended=trajectory.ended,
        sampled_tokens=answered.sampled_tokens,
    )


def summarise(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Means over the predictions; hit rate and mean IoU over those with a true box, a question without a zoom counting
    as a miss with IoU 0."""
    known = [p for p in predictions if p.hit is not None]
    summary: dict[str, Any] = {
        "examples": len(predictions),
        "accuracy": float(np.mean([p.correct for p in predictions])),
        "tool_rate": float(np.mean([p.called for p in predictions])),
        "format_rate": float(np.mean([p.well_formed for p in predictions])),
        "sampled_tokens": float(np.mean([p.sampled_tokens for p in predictions])),
    }
    if known:
        summary["hit_rate"] = float(np.mean([p.hit for p in known]))
        summary["mean_iou"] = float(np.mean([p.iou for p in known]))
    return summary
