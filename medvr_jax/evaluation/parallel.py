"""Many requests under way at the same time, their results in the order in which they arrive."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """What became of a task: a result, or the error that was raised; no task where none could be taken."""

    task: Any
    result: Any = None
    error: Exception | None = None


class Parallel:
    """Works on tasks in a number of threads; a context manager, behind which no new task is begun.

    The threads do not keep the program from ending. Tasks are taken one by one, as threads become free.
    """

    def __init__(
        self, tasks: Iterable[Any], work: Callable[[Any], Any], threads: int, stopping: threading.Event
    ) -> None:
        """`stopping` is set when nobody wants results any more; long waits of `work` should end with it."""
        self._tasks, self._work, self._stopping = iter(tasks), work, stopping
        self._taking = threading.Lock()
        self._outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __iter__(self) -> Iterator[Outcome]:
        """The outcome of every task, as soon as it is there."""
        for thread in self._threads:
            thread.start()
        working = len(self._threads)
        while working:
            outcome = self._outcomes.get()
            if outcome is None:
                working -= 1
            else:
                yield outcome

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                task = self._take()
                if task is self:
                    return
                try:
                    self._outcomes.put(Outcome(task, self._work(task)))
                except Exception as error:
                    self._outcomes.put(Outcome(task, error=error))
        finally:
            self._outcomes.put(None)

    def _take(self) -> Any:
        """The next task, or this object where there is none."""
        try:
            with self._taking:
                return next(self._tasks, self)
        except Exception as error:  # of whoever makes the tasks
            self._outcomes.put(Outcome(None, error=error))
            return self

    def __enter__(self) -> Parallel:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
