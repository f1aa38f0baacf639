"""The arms of an experiment with their configurations, and the runs that belong to them. No jax in this file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

from ml_collections import FrozenConfigDict

from medvr_jax.configuration import completed, load_config, model_folder
from medvr_jax.errors import UserError
from medvr_jax.experiments.options import Grid, read_grid
from medvr_jax.experiments.run_files import Run, read_run, run_file
from medvr_jax.fields import leaves
from medvr_jax.models.fingerprint import folder_fingerprint
from medvr_jax.workdir import NOT_OF_RUNS, differences

# Two arms that differ in one of these are not compared: other questions, or another length.
_SAME_QUESTIONS = ("data.", "steps", "evaluate_every")
_OF_THE_PROCESS = ("mesh.host_devices", "programs.cache", "data.max_image_pixels")


@dataclasses.dataclass(frozen=True)
class Arm:
    """A row of the tables: its name, its variant's configuration, the seeds to be run, the model folder's
    fingerprint."""

    name: str
    config: FrozenConfigDict
    seeds: tuple[int, ...]
    model: str


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A grid and its arms, by name and in the recipe's order."""

    grid: Grid
    arms: Mapping[str, Arm]

    def comparable(self, first: str, second: str) -> bool:
        """Whether two arms see the same questions for the same number of steps."""
        return not _other_field(self.arms[first].config, self.arms[second].config, _SAME_QUESTIONS)


def read_experiment(config: FrozenConfigDict, spec: str, overrides: Iterable[tuple[str, str]]) -> Experiment:
    """The experiment of a checked recipe, the configuration of every arm checked too.

    Args:
        config: the recipe that `spec` names, overrides applied.
        spec: FILE or FILE:VARIANT; arms are variants of FILE.
        overrides: (field, text) of the command line, for every arm.
    """
    grid, file, overrides = read_grid(dict(leaves(config))), spec.partition(":")[0], list(overrides)
    if not grid.arms:
        raise UserError(
            f"experiment.arms: found (), but --mode=experiment runs the arms that the recipe names, and {file} names"
            " none; give e.g. --config.experiment.arms=zoom=zoom,evr=evr"
        )
    arms, fingerprint = {}, functools.cache(folder_fingerprint)
    for option in grid.arms:
        try:
            found = load_config(f"{file}:{option.variant}" if option.variant else file, overrides, mode="experiment")
        except UserError as error:
            raise UserError(f"experiment.arms: {option.name}: {error}") from error
        if found.trainer != "grpo":
            raise UserError(f"trainer: found {found.trainer!r} in arm {option.name}, --mode=experiment needs 'grpo'")
        other = _other_field(config, found, _OF_THE_PROCESS)
        if other:
            raise UserError(f"experiment.arms: {option.name} has another {other} than the recipe, allowed is the same")
        model = fingerprint(model_folder(found.model.path))
        arms[option.name] = Arm(option.name, found, option.seeds, model)
    experiment = Experiment(grid, arms)
    for first, second in grid.pairs:
        if not experiment.comparable(first, second):
            other = _other_field(arms[first].config, arms[second].config, _SAME_QUESTIONS)
            raise UserError(f"experiment.pairs: found '{first}-{second}', which differ in {other}; allowed is the same")
    return experiment


def _other_field(first: FrozenConfigDict, second: FrozenConfigDict, prefixes: tuple[str, ...]) -> str | None:
    """The first field with one of the prefixes in which two configurations differ."""
    values = dict(leaves(second))
    return next((name for name, x in leaves(first) if name.startswith(prefixes) and values.get(name) != x), None)


def finished_runs(folder: Path, experiment: Experiment) -> dict[str, dict[int, Run]]:
    """Of each arm the runs that are there, by seed; UserError for one that was made in another way."""
    found: dict[str, dict[int, Run]] = {}
    for arm in experiment.arms.values():
        files = {seed: run_file(folder, arm.name, seed) for seed in arm.seeds}
        found[arm.name] = {seed: _own_run(file, arm) for seed, file in files.items() if file.is_file()}
    return found


def _own_run(file: Path, arm: Arm) -> Run:
    run = read_run(file)
    for name, before, now in differences(completed(run.config)[0], arm.config):
        if name.startswith(NOT_OF_RUNS):
            continue
        raise UserError(
            f"--workdir: {file} was made with another configuration of arm {arm.name}: {name} was {before!r}, now"
            f" {now!r}; give another --workdir, or that value"
        )
    if run.model != arm.model:
        raise UserError(
            f"--workdir: {file} was made with other files in model.path = {arm.config.model.path!r}; give another"
            " --workdir, or the files as they were"
        )
    return run
