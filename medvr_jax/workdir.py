"""The folder of a run: it belongs to one configuration, which it holds as config.json. No jax in this file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from medvr_jax import configuration
from medvr_jax.errors import UserError
from medvr_jax.evaluation.options import answered_elsewhere

# Runs that agree in these have checkpoints of the same shape and meaning.
CHECKPOINT_FIELDS = ("trainer", "model.", "optimizer.", "grpo.kl_weight")
EXPORT_FIELDS = ("model.export_dtype",)  # an export of a finished run may choose them anew
# They change nothing that a run computes.
FREE_FIELDS = (
    "programs.cache", "report.profile_steps", "report.tensorboard", "report.wandb", "evaluate.", "experiment.",
    "data.max_image_pixels",
)  # fmt: skip
# Likewise the rows of a run of an experiment, which keeps nothing else; and each has a seed of its own.
NOT_OF_RUNS = (
    "seed", "programs.", "report.", "evaluate.", "experiment.", "data.max_image_pixels", "checkpoint_every",
    "keep_checkpoints", "export_at_end", "model.export_dtype",
)  # fmt: skip
RUNS = "runs"  # below the folder of an experiment


def saved_config(
    workdir: str | os.PathLike, overrides: Iterable[tuple[str, str]] = (), *, files: bool = True, mode: str = "train"
) -> FrozenConfigDict:
    """The configuration that a workdir was started with, overrides applied, checked as `validate` does.

    Fields that are newer than the run have their defaults, and are told.
    """
    saved, newer = _read_saved(Path(workdir))
    _tell_newer(Path(workdir), newer)
    changed = configuration.override(ConfigDict(saved, type_safe=False), overrides)
    return configuration.validate(changed, files=files, mode=mode)


def prepare_workdir(workdir: str | os.PathLike, config: FrozenConfigDict, mode: str, write: bool = True) -> None:
    """Makes the workdir of a training run and saves config.json there, or checks that both fit each other.

    A run goes on only with the same configuration; `steps` may grow, and fields that are newer than the run have their
    defaults. Other modes need an existing run, and only what shapes a checkpoint must be the same; an evaluation that
    reads no checkpoint, and a search for leaks, take any folder, and make it. An experiment has a folder of its own.
    With `write` false (another process does it) config.json is only looked at.
    """
    folder = Path(workdir)
    if mode == "experiment":
        _prepare_experiment(folder, config)
        return
    without_run = answered_elsewhere(config.evaluate) or not has_checkpoints(folder)
    if mode == "leaks" or (mode == "evaluate" and without_run):
        _check_writable(folder)
        if write and not (folder / "config.json").is_file():
            write_atomically(folder / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        return
    if mode == "ask" and not has_checkpoints(folder):  # the model folder is asked; the answer may go anywhere
        _check_writable(folder)
        return
    if mode != "train":
        _refuse_other(folder, _read_saved(folder)[0], config, CHECKPOINT_FIELDS)
        _check_writable(folder)
        return
    _check_writable(folder)
    if _has_runs(folder):
        raise UserError(f"--workdir: {folder} holds an experiment; give another one for a training run")
    if _has_results(folder):
        saved, newer = _read_saved(folder)
        _tell_newer(folder, newer)
        _refuse_other(folder, saved, config, ())
        if saved["steps"] == config.steps and not newer:
            return
    if write:
        write_atomically(folder / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def _prepare_experiment(folder: Path, config: FrozenConfigDict) -> None:
    """The folder of an experiment holds the recipe, whose runs are in the folder RUNS. It may go on with more arms and
    seeds; what its runs were made with stays."""
    refuse_run(folder)
    _check_writable(folder)
    if _has_runs(folder):
        for name, before, now in differences(_read_saved(folder)[0], config):
            if not name.startswith(NOT_OF_RUNS):
                raise UserError(
                    f"--workdir: {folder} belongs to another config: {name} was {before!r}, now {now!r}; give another"
                    " --workdir, or that value"
                )
    write_atomically(folder / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def refuse_run(folder: Path) -> None:
    """UserError where a training run has left something: an experiment needs a folder of its own."""
    if _has_results(folder):
        raise UserError(f"--workdir: {folder} holds a training run; give another one for an experiment")


def _has_runs(folder: Path) -> bool:
    """Whether an experiment has left finished runs."""
    return any((folder / RUNS).glob("*/*.jsonl"))


def _has_results(folder: Path) -> bool:
    """Whether a run got far enough to leave anything; if it failed at the door, another may have the folder."""
    metrics = folder / "metrics.jsonl"
    return (metrics.is_file() and metrics.stat().st_size > 0) or has_checkpoints(folder) or (folder / "export").exists()


def has_checkpoints(folder: str | os.PathLike) -> bool:
    """Whether a run has left one, whole or not."""
    checkpoints = Path(folder) / "checkpoints"
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def _read_saved(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What config.json holds, with the defaults of fields that are newer than it; and the names of these."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"--workdir: {folder} holds no config.json; give the folder of a run or, to train, a new one")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--workdir: {file} cannot be read: {error}") from error
    if not isinstance(saved, dict):
        raise UserError(f"--workdir: {file} is not a JSON object")
    return configuration.completed(saved)


def _tell_newer(folder: Path, newer: list[str]) -> None:
    if newer:
        print(f"{folder / 'config.json'} is older than {', '.join(newer)}: taken as their defaults")


def differences(saved: Mapping[str, Any], config: FrozenConfigDict) -> Iterator[tuple[str, Any, Any]]:
    """(field, before, now) of the fields in which a configuration differs from one that was saved as JSON."""
    old = dict(configuration.leaves(saved))
    new = dict(configuration.leaves(json.loads(json.dumps(config.to_dict()))))
    for name in dict.fromkeys([*new, *old]):
        before, now = old.get(name, "nothing"), new.get(name, "nothing")
        if before != now:
            yield name, before, now


def _refuse_other(folder: Path, saved: dict[str, Any], config: FrozenConfigDict, prefixes: tuple[str, ...]) -> None:
    """UserError at the first field, among those with one of the prefixes if any are given, that differs."""
    for name, before, now in differences(saved, config):
        if name.startswith(FREE_FIELDS) or (prefixes and (name in EXPORT_FIELDS or not name.startswith(prefixes))):
            continue
        schedule = config.optimizer.schedule
        may_grow = name == "steps" and schedule == "constant"
        if may_grow and now > before:
            continue
        rule = "it may only grow" if may_grow else "give another --workdir, or that value"
        if name == "steps" and not may_grow:
            rule = f"the shape of optimizer.schedule = {schedule!r} depends on it; {rule}"
        raise UserError(f"--workdir: {folder} belongs to another config: {name} was {before!r}, now {now!r}; {rule}")


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--workdir: {folder} cannot be written to: {error.strerror or error}") from error


def write_atomically(file: Path, content: str | bytes) -> None:
    """The file with this content, on disk when this returns, or as it was before."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    with beside.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, file)
