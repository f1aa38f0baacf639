"""Many requests under way at the same time, their results in the order in which they arrive."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Parallel(Generic[Task, Result]):
    """Works on tasks in a number of threads; a context manager, behind which no new task is begun.

    The threads do not keep the program from ending. Tasks are taken one by one, as threads become free.
    """

    def __init__(
        self, tasks: Iterable[Task], work: Callable[[Task], Result], threads: int, stopping: threading.Event
    ) -> None:
        """`stopping` is set when nobody wants results any more; long waits of `work` should end with it."""
        self._tasks, self._work, self._stopping = iter(tasks), work, stopping
        self._taking = threading.Lock()
        self._results: queue.SimpleQueue[tuple[Task | None, Result | None, Exception | None] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __iter__(self) -> Iterator[tuple[Task | None, Result | None, Exception | None]]:
        """(task, result, None) or (task, None, what `work` raised) of every task, (None, None, error) where none could
        be taken."""
        for thread in self._threads:
            thread.start()
        ended = 0
        while ended < len(self._threads):
            found = self._results.get()
            if found is None:
                ended += 1
            else:
                yield found

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    with self._taking:
                        task = next(self._tasks, self)
                except Exception as error:  # of whoever makes the tasks: there are no more
                    self._results.put((None, None, error))
                    return
                if task is self:
                    return
                try:
                    self._results.put((task, self._work(task), None))
                except Exception as error:
                    self._results.put((task, None, error))
        finally:
            self._results.put(None)

    def __enter__(self) -> Parallel[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
