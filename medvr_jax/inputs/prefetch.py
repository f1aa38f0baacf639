"""Work of the host for the next step, done in a thread while the devices are busy with this one."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Generic, TypeVar

Prepared = TypeVar("Prepared")


class Prefetcher(Generic[Prepared]):
    """Results of `prepare(step)` in the order in which they are asked for, the next one begun early; a context manager.

    One thread does all the work, one step after the other, so that what `prepare` sees does not depend on timing. It
    must not talk to other processes: what it raises comes out of `take` of that very step, on the caller's thread,
    where `distributed.together()` can tell the others.
    """

    def __init__(self, prepare: Callable[[int], Prepared], stop: int) -> None:
        """`stop`: the first step that is never asked for."""
        self._prepare, self._stop = prepare, stop
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "prefetch")
        self._next: tuple[int, concurrent.futures.Future[Prepared]] | None = None

    def take(self, step: int) -> Prepared:
        """The result for this step, waiting for it if need be; the work for the step after it begins."""
        begun, future = self._next or (None, None)
        self._next = None
        if begun != step or future is None:  # the first one, or a step out of order
            if future is not None:
                future.cancel()
            future = self._pool.submit(self._prepare, step)
        result = future.result()
        if step + 1 < self._stop:
            self._next = step + 1, self._pool.submit(self._prepare, step + 1)
        return result

    def close(self) -> None:
        """Ends the thread after what it is doing now; what it would have done next is given up."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetcher[Prepared]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
