"""Workers: who does what, on which cores, and how the first process hears of what ends one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from medvr_jax.experiments.worker import Task, WorkerFailed, run_tasks, split_cores, take_task


def tasks(*arms: str, config: Any = None) -> list[Task]:
    return [Task(arm, seed, config or {}, "", Path("nowhere")) for seed, arm in enumerate(arms)]


def test_a_worker_keeps_its_arm_while_it_can() -> None:
    """Two workers in turn over three arms: the first begins with a, the second with b; c goes to whoever is free."""
    waiting, has, order = tasks("a", "a", "a", "b", "c", "c", "c"), {0: None, 1: None}, []
    for worker in (0, 1, 1, 0, 1, 0, 0, 0):
        task = take_task(waiting, has[worker], {has[1 - worker]})
        if task:
            has[worker] = task.arm
            order.append((worker, task.arm, task.seed))
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
