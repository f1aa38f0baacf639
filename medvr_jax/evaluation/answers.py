"""The policy answers questions, batch by batch: what training's evaluations and `--mode=evaluate` have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import nnx

from medvr_jax import distributed
from medvr_jax.datasets.example import Example
from medvr_jax.evaluation.coordinates import box_entropies
from medvr_jax.inputs.chat import Encoder, Prompt, encode_prompts
from medvr_jax.inputs.prefetch import Prefetcher
from medvr_jax.rollout.engine import RolloutEngine
from medvr_jax.rollout.trajectories import Trajectory


@dataclasses.dataclass(frozen=True)
class Batch:
    """B questions: `indices [B]`; those from number `counted` on only fill the batch up."""

    indices: np.ndarray
    counted: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """One trajectory of a question.

    Attributes:
        index, sample: which question, and which of its trajectories.
        example: the question.
        trajectory: what happened.
        sampled_tokens: tokens that the policy sampled.
        box_entropy: of each zoom, see `coordinates.py`.
    """

    index: int
    sample: int
    example: Example
    trajectory: Trajectory
    sampled_tokens: int
    box_entropy: list[float | None]


def make_batches(order: Sequence[int], size: int) -> list[Batch]:
    """Batches of `size` in this order; the last one is filled up with its own questions."""
    chunks = [np.asarray(order[start : start + size]) for start in range(0, len(order), size)]
    return [Batch(np.resize(chunk, size), len(chunk)) for chunk in chunks]


def answer(
    engine: RolloutEngine,
    params: nnx.State,
    encoder: Encoder,
    examples: Sequence[Example],
    batches: Sequence[Batch],
    rows: distributed.Rows,
    key: jax.Array,
) -> Iterator[list[Answer]]:
    """Of each batch, the answers that are this process's to tell; question after question, sample after sample.

    Args:
        rows: this process's share of a batch.
        key: random key; a trajectory's draws depend on it, the question's id and the sample's number alone.
    """

    def prepare(number: int) -> list[Prompt]:
        return encode_prompts([examples[index] for index in batches[number].indices[rows.here].tolist()], encoder)

    with Prefetcher(prepare, len(batches)) as prepared:
        for number, batch in enumerate(batches):
            with distributed.together():
                prompts = prepared.take(number)
            rollout = engine.run(params, prompts, key)
            host, found = rollout.host, []
            for b, (row, mine) in enumerate(zip(rows.here.tolist(), rows.mine.tolist(), strict=True)):
                if not mine or row >= batch.counted:
                    continue
                for m, trajectory in enumerate(rollout.trajectories[b]):
                    zoomed = [turn.zoom is not None for turn in trajectory.turns]
                    arrays = (host.tokens[b, m], host.sampled[b, m], host.entropy[b, m])
                    found.append(
                        Answer(
                            index=int(batch.indices[row]),
                            sample=m,
                            example=prompts[b].example,
                            trajectory=trajectory,
                            sampled_tokens=int(host.sampled[b, m].sum()),
                            box_entropy=box_entropies(*arrays, zoomed, engine.tables),
                        )
                    )
            yield found
