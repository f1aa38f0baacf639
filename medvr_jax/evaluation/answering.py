"""A policy made ready to be asked: its weights, the programs of its rollouts, and the batches of each set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from medvr_jax import assembly, distributed
from medvr_jax.datasets.example import Example
from medvr_jax.evaluation.answers import Batch, make_batches
from medvr_jax.evaluation.policy import PolicyWeights, load_weights
from medvr_jax.evaluation.questions import QuestionSet, looked_through
from medvr_jax.inputs.batches import check_room
from medvr_jax.inputs.survey import prompt_sizes, rooms
from medvr_jax.rollout.engine import RolloutEngine


@dataclasses.dataclass(frozen=True)
class Answering:
    """What answers, and the batches of each set: questions of like size together, the largest first."""

    parts: assembly.Parts
    params: nnx.State
    engine: RolloutEngine
    plans: list[list[Batch]]


def make_ready(config: Any, workdir: str | Path, questions: Sequence[QuestionSet], weights: PolicyWeights) -> Answering:
    """Loads the weights; UserError for a question that is too large."""
    parts = assembly.assemble(config, splits=())
    params = load_weights(parts, weights, workdir)
    with distributed.together():
        plans, sizes = _plan(parts, questions)
    engine = parts.engine(assembly.evaluation_rollout(config, parts.backbone, sizes))
    if not config.evaluate.tools:
        engine.forbid_calls()
    return Answering(parts, params, engine, plans)


def _plan(
    parts: assembly.Parts, questions: Sequence[QuestionSet]
) -> tuple[list[list[Batch]], tuple[tuple[int, int], ...]]:
    """The batches of each set, and the sizes to pad them to."""
    prompt, size = parts.config.prompt, parts.config.data.evaluation_batch
    plans, needed = [], []
    for one in questions:
        room = np.concatenate([_room(parts, examples) for examples in looked_through(one.examples)])
        batches = make_batches(np.lexsort((-room[:, 1], -room[:, 0])).tolist(), size)
        plans.append(batches)
        needed += [room[batch.indices].max(axis=0) for batch in batches]
    largest, unit = (prompt.bucket, prompt.patches), parts.encoder.merge_size**2
    return plans, prompt_sizes(np.array(needed), largest, count=prompt.sizes, merge_unit=unit)


def _room(parts: assembly.Parts, examples: Sequence[Example]) -> np.ndarray:
    """Tokens and patches `[n, 2]` that the examples need; UserError for one that is too large."""
    prompt, found = parts.config.prompt, rooms(examples, parts.encoder)
    for example, room in zip(examples, found, strict=True):
        limits = (prompt.bucket, prompt.images, prompt.patches)
        check_room(example.id, *room.tolist(), len(example.images), *limits)
    return found
