"""A trainer that is put back to the start makes the very rows of a fresh one, and compiles nothing for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from medvr_jax import assembly, programs
from medvr_jax.experiments.arm import ArmTrainer, train_rows
from medvr_jax.training.trainer import Trainer
from tests.tiny_run import small_config

SIZES = {"steps": 2, "evaluate_every": 1}


def without_times(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def test_a_restarted_trainer_equals_a_fresh_one() -> None:
    said: list[str] = []
    arm = ArmTrainer(assembly.assemble(small_config(**SIZES), jax.devices()[:1]), said.append)
    first = arm.run("full", 0, "model", said.append)
    compiled = programs.compilations().count
    second, again = (arm.run("full", seed, "model", said.append) for seed in (3, 0))
    assert programs.compilations().count == compiled, "another seed compiled something"
    arm.close()

    assert without_times(first.rows) == without_times(again.rows) and first.looks == again.looks
    assert without_times(first.rows[1:]) != without_times(second.rows[1:])
    fresh = Trainer(assembly.assemble(small_config(**SIZES, seed=3), jax.devices()[:1]))
    rows, _ = train_rows(fresh, said.append)
    fresh.prompts.close()
    assert without_times(rows) == without_times(second.rows)

    assert [row["step"] for row in second.rows] == [0, 1, 2]
    assert all("eval/accuracy" in row for row in second.rows) and "train/loss" not in second.rows[-1]
    assert {"reward/total", "rollout/forks_granted", "train/kl", "time/step"} <= second.rows[0].keys()
    assert (second.config["seed"], second.arm, second.seed, second.model) == (3, "full", 3, "model")
    # The first policy is the same for all seeds, and so is what it sees and answers.
    keys = [name for name in first.rows[0] if name.startswith("eval/")]
    assert keys and all(first.rows[0][name] == second.rows[0][name] for name in keys)
    assert first.looks and all(entropy >= 0 and 0 <= iou <= 1 for entropy, iou in first.looks)
    assert "compiling 1/" in said[0] and "step 1 of 2" in said


def test_all_arms_of_a_seed_see_the_same_questions() -> None:
    """In the same order; those of another seed are others, the held-out ones the same."""

    def seen(variant: str, seed: int) -> tuple[list[bytes], list[bytes]]:
        parts = assembly.with_seed(assembly.assemble(small_config(variant, data__prompts_per_step=8)), seed)
        trained = [parts.source.train(8 * step, 8) for step in range(3)]
        return [x.images[0] for batch in trained for x in batch], [x.images[0] for x in parts.source.test(4)]

    zoom, full, other = seen("zoom", 1), seen("full", 1), seen("zoom", 2)
    assert zoom == full
    assert not set(zoom[0]) & set(other[0]) and zoom[1] == other[1]
