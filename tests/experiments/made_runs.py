"""Made-up runs of an experiment, and the experiment that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medvr_jax.configuration import load_config
from medvr_jax.experiments.grid import Experiment, read_experiment
from medvr_jax.experiments.run_files import Run

RECIPE = "configs/tiny_cpu.py"


def made_experiment(**experiment: object) -> Experiment:
    """The quick start's recipe with this section `experiment`; `arms` are texts as a recipe has them."""
    overrides = [(f"experiment.{name}", str(value)) for name, value in experiment.items()]
    return read_experiment(load_config(RECIPE, overrides, mode="experiment"), RECIPE, overrides)


def made_run(
    experiment: Experiment,
    arm: str,
    seed: int,
    accuracy: Sequence[float],
    looks: Sequence[tuple[float, float]] = (),
    **more: Sequence[float],
) -> Run:
    """A run that was evaluated every five steps and at the end; `more` are keys with `__` for `/` and their values in
    every row but the last."""
    steps = 5 * (len(accuracy) - 1)
    rows: list[dict[str, Any]] = []
    for step in range(steps + 1):
        row: dict[str, Any] = {"step": step}
        if step % 5 == 0:
            row |= {"eval/accuracy": accuracy[step // 5], "eval/hit_rate": accuracy[step // 5] / 2}
        if step < steps:
            row |= {name.replace("__", "/"): values[step] for name, values in more.items()}
        rows.append(row)
    return Run(arm, seed, experiment.arms[arm].config.to_dict(), experiment.arms[arm].model, 1.5, rows, list(looks))
