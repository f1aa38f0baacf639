"""The processes that train the runs of an experiment, each on cores of its own. No jax before the cores are chosen."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from medvr_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """A run to be made.

    Attributes:
        arm, seed: which.
        config: of the arm, as nested dictionaries.
        model: fingerprint of the model folder.
        file: where the run goes.
    """

    arm: str
    seed: int
    config: dict[str, Any]
    model: str
    file: Path

    @property
    def name(self) -> str:
        """What lines on the terminal call it."""
        return f"{self.arm} seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Note:
    """What a worker is doing now."""

    text: str


@dataclasses.dataclass(frozen=True)
class Finished:
    """The run's file is there."""

    task: Task


@dataclasses.dataclass(frozen=True)
class Lost:
    """A run that came to nothing, as its policy broke or a question did not fit; others go on. The text is one line."""

    task: Task
    text: str


@dataclasses.dataclass(frozen=True)
class Failed:
    """What ended a worker; `wrong_input` where it is one line about the user's input, else a traceback."""

    text: str
    wrong_input: bool


class WorkerFailed(Exception):
    """A worker raised or died; the text says all there is to know."""


# --------------------------------------------------------------------------------------------------- in this process


def run_tasks(tasks: Sequence[Task], count: int) -> Iterator[Note | Finished | Lost]:
    """Hands the tasks to at most `count` workers, in this order but so that each keeps its arm while it can; tells what
    they say, as it comes. When the iterator is closed, or anything is raised, no worker is left.

    Raises:
        UserError: where a worker met wrong input before its first step.
        WorkerFailed: where it raised anything else, or died.
    """
    waiting, shares = list(tasks), split_cores(count)  # by their number, whatever is left to do: sums are the same
    with contextlib.ExitStack() as opened:
        team = [opened.enter_context(_Worker(number, cores)) for number, cores in enumerate(shares[: len(tasks)])]
        for worker in team:
            worker.give(take_task(waiting, None, {other.arm for other in team}))
        while busy := {worker.connection: worker for worker in team if worker.task}:
            for connection in multiprocessing.connection.wait(list(busy)):
                worker = busy[connection]
                message = worker.receive()
                if isinstance(message, Finished | Lost):
                    others = {other.arm for other in team if other is not worker and other.task}
                    worker.give(take_task(waiting, worker.arm, others))
                yield message


def take_task(waiting: list[Task], own: str | None, others: set[str | None]) -> Task | None:
    """Takes out the next task for a worker: of its own arm, else of one that no other works on, else any."""
    for fits in (lambda task: task.arm == own, lambda task: task.arm not in others, lambda task: True):
        for place, task in enumerate(waiting):
            if fits(task):
                return waiting.pop(place)
    return None


def split_cores(workers: int) -> list[tuple[int, ...]]:
    """This process's cores in `workers` parts of neighbours; empty parts where there are too few, or nothing tells."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < workers:
        return [()] * workers
    return [tuple(cores[i * len(cores) // workers : (i + 1) * len(cores) // workers]) for i in range(workers)]


class _Worker:
    """A worker and what it is doing; a context manager, behind which its process has ended."""

    def __init__(self, number: int, cores: tuple[int, ...]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of threads that jax may have begun would hang
        self.connection, there = context.Pipe()
        self._process = context.Process(target=work, args=(there, cores), name=f"worker {number}", daemon=True)
        self._process.start()
        there.close()  # so that its end is noticed here
        self.task: Task | None = None
        self.arm: str | None = None  # whose programs it has

    def give(self, task: Task | None) -> None:
        """The next task; None: there is none."""
        self.task = task
        if task:
            self.arm = task.arm
        with contextlib.suppress(OSError):  # it has died, which `receive` tells
            self.connection.send(task)

    def receive(self) -> Note | Finished | Lost:
        """What the worker says, which has said something or died."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise WorkerFailed(
                f"{self._process.name} died with exit status {self._process.exitcode} in {self.task.name}"
            ) from None
        if isinstance(message, Failed) and message.wrong_input:
            raise UserError(f"{self.task.name}: {message.text}")
        if isinstance(message, Failed):
            raise WorkerFailed(f"{self._process.name} failed in {self.task.name}:\n{message.text}")
        return message

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        self._process.join()
        self.connection.close()


# ---------------------------------------------------------------------------------------------------- in the others


def work(connection: Connection, cores: tuple[int, ...]) -> None:
    """What a worker does: takes tasks until it is given None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        _take_tasks(connection)
    except UserError as error:
        connection.send(Failed(str(error), wrong_input=True))
    except Exception:
        connection.send(Failed(traceback.format_exc(), wrong_input=False))


def _end_with_parent() -> None:
    """Nobody is there to take results of a worker whose first process was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _take_tasks(connection: Connection) -> None:
    task = connection.recv()
    from medvr_jax import devices
    from medvr_jax.inputs.image_formats import limit_pixels

    # Whatever the arms are, they have this in common.
    devices.start_devices(task.config["mesh"]["host_devices"], task.config["programs"]["cache"])
    limit_pixels(task.config["data"]["max_image_pixels"])

    from medvr_jax import assembly
    from medvr_jax.experiments.arm import ArmTrainer
    from medvr_jax.experiments.run_files import write_run

    arm, trainer = None, None
    while task is not None:
        note = functools.partial(_send_note, connection, task)
        if arm != task.arm:
            if trainer is not None:
                trainer.close()
                del trainer
                _forget_programs()
            config = FrozenConfigDict(ConfigDict(task.config, type_safe=False))
            arm, trainer = task.arm, ArmTrainer(assembly.assemble(config), note)
        try:
            run = trainer.run(task.arm, task.seed, task.model, note)
        except UserError as error:  # the next run begins from the start again
            connection.send(Lost(task, str(error)))
        else:
            write_run(task.file, run)
            connection.send(Finished(task))
        task = connection.recv()
    trainer.close()


def _send_note(connection: Connection, task: Task, text: str) -> None:
    connection.send(Note(f"{task.name}: {text}"))


def _forget_programs() -> None:
    """Those of an arm that is done, which would else pile up; the disk keeps them."""
    import jax

    jax.clear_caches()
    gc.collect()
