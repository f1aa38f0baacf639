"""One arm of an experiment in this process: compiled once, trained from the start with every seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from medvr_jax import assembly, programs
from medvr_jax.evaluation.greedy import Prediction
from medvr_jax.evaluation.grounding import best_iou
from medvr_jax.experiments.run_files import Run, kept
from medvr_jax.reports.metrics import plain
from medvr_jax.training.loop import evaluate, step_metrics
from medvr_jax.training.trainer import Trainer

Note = Callable[[str], None]


class ArmTrainer:
    """Holds the programs of an arm. What a run computes depends on the arm and the seed alone, not on the runs before
    it: prompts are padded to the sizes that suit the recipe's own seed."""

    def __init__(self, parts: assembly.Parts, note: Note) -> None:
        """Compiles everything, or reads it from the disk."""
        self._trainer = Trainer(parts)
        programs.warm_up(self._trainer.programs(), lambda done, total, _: note(f"compiling {done}/{total}"))
        self._start = self._trainer.snapshot()

    def run(self, arm: str, seed: int, model: str, note: Note) -> Run:
        """Trains with this seed; `arm` and `model` (the model folder's fingerprint) are what the run is labelled
        with."""
        began, trainer = time.perf_counter(), self._trainer
        trainer.restart(self._start, seed)
        rows, predictions = train_rows(trainer, note)
        config, seconds = plain(trainer.config.to_dict()), time.perf_counter() - began
        return Run(arm, seed, config, model, seconds, rows, looks(predictions))

    def close(self) -> None:
        """Ends the thread that prepares prompts."""
        self._trainer.prompts.close()


def train_rows(trainer: Trainer, note: Note) -> tuple[list[dict[str, Any]], list[Prediction]]:
    """All steps of a run: its rows, which hold what a training run's would, and the last evaluation's answers."""
    config, rows = trainer.config, []
    for step in range(config.steps):
        row: dict[str, Any] = {"step": step}
        if step % config.evaluate_every == 0:
            row |= evaluate(trainer, note)[0]
        note(f"step {step} of {config.steps}")
        began = time.perf_counter()
        row |= step_metrics(trainer, trainer.step(step)) | {"time/step": time.perf_counter() - began}
        rows.append(kept(row))
    final, predictions = evaluate(trainer, note)
    return [*rows, kept({"step": config.steps} | final)], predictions


def looks(predictions: Sequence[Prediction]) -> list[tuple[float, float]]:
    """(entropy of the coordinates, IoU with the true box) of every zoom of which both are known."""
    return [
        (entropy, round(best_iou([box], answered.true_boxes), 4))
        for answered in predictions
        if answered.true_boxes
        for box, entropy in zip(answered.boxes, answered.box_entropy, strict=True)
        if entropy is not None
    ]
