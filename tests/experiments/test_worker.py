"""Workers: who does what, on which cores, and how the first process hears of what ends one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from medvr_jax import assembly
from medvr_jax.configuration import load_config
from medvr_jax.errors import UserError
from medvr_jax.experiments import arm, run, run_files, worker
from medvr_jax.experiments.worker import Finished, Lost, Task, WorkerFailed, run_tasks, split_cores, take_task


def tasks(*arms: str, config: Any = None) -> list[Task]:
    return [Task(arm, seed, config or {}, "", Path("nowhere")) for seed, arm in enumerate(arms)]


def test_a_worker_keeps_its_arm_while_it_can() -> None:
    """Two workers in turn over three arms: the first begins with a, the second with b; c goes to whoever is free."""
    waiting, has, order = tasks("a", "a", "a", "b", "c", "c", "c"), {0: None, 1: None}, []
    for free in (0, 1, 1, 0, 1, 0, 0, 0):
        task = take_task(waiting, has[free], {has[1 - free]})
        if task:
            has[free] = task.arm
            order.append((free, task.arm, task.seed))
    assert order == [(0, "a", 0), (1, "b", 3), (1, "c", 4), (0, "a", 1), (1, "c", 5), (0, "a", 2), (0, "c", 6)]
    assert not waiting


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 1, 2, 4, 5})
    assert split_cores(2) == [(1, 2), (4, 5, 7)]
    assert split_cores(5) == [(1,), (2,), (4,), (5,), (7,)]
    assert split_cores(6) == [()] * 6  # they share
    monkeypatch.delattr(os, "sched_getaffinity")
    assert split_cores(2) == [(), ()]


def test_no_tasks_need_no_workers() -> None:
    assert list(run_tasks([], 2)) == []


class Deadly:
    """Ends the process that unpickles it, as the system's memory killer would."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (7,)


def test_a_worker_that_dies_ends_all() -> None:
    with pytest.raises(WorkerFailed, match="worker 0 died with exit status 7 in a seed 0"):
        list(run_tasks(tasks("a", config=Deadly()), 2))


def test_a_worker_that_raises_ends_all_with_its_traceback() -> None:
    with pytest.raises(WorkerFailed, match=r"worker 0 failed in a seed 0:\nTraceback(.|\n)*KeyError: 'mesh'"):
        list(run_tasks(tasks("a"), 1))


class Breaks:
    """An arm whose seed 1 comes to nothing."""

    def __init__(self, *_: object) -> None:
        self.seeds: list[int] = []

    def run(self, name: str, seed: int, *_: object) -> int:
        if seed == 1:
            raise UserError("optimizer.learning_rate: the update's loss is nan")
        return seed

    def close(self) -> None:
        """Nothing is open."""


class Told:
    """A connection: the tasks that come, and what is sent."""

    def __init__(self, found: list[Task]) -> None:
        self.coming, self.sent = [*found, None], []

    def recv(self) -> Task | None:
        return self.coming.pop(0)

    def send(self, message: Any) -> None:
        self.sent.append(message)


def test_a_run_that_breaks_is_lost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker keeps its arm, and goes on with the next seed."""
    written: list[int] = []
    monkeypatch.setattr(assembly, "assemble", lambda config: config)
    monkeypatch.setattr(arm, "ArmTrainer", Breaks)
    monkeypatch.setattr(run_files, "write_run", lambda _, found: written.append(found))
    told = Told(tasks("a", "a", "a", config=load_config("tests/experiments/brief_recipe.py").to_dict()))
    worker._take_tasks(told)
    assert [type(message) for message in told.sent] == [Finished, Lost, Finished] and written == [0, 2]
    assert told.sent[1].text == "optimizer.learning_rate: the update's loss is nan"


def test_lost_runs_are_told_at_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = "tests/experiments/brief_recipe.py"
    monkeypatch.setattr(run, "run_tasks", lambda found, _: (Lost(task, "it broke") for task in found))
    with pytest.raises(UserError, match="5 of 5 runs were lost, the first: slow seed 0: it broke"):
        run.run_experiment(load_config(recipe, mode="experiment"), recipe, [], str(tmp_path))
    assert (tmp_path / "table.md").is_file()
