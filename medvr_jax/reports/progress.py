"""The progress line: how far, how fast, how long still; readable on a terminal and in a log file alike."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

_LINE_SECONDS = 1.0  # at most one lasting line a second
_NOTE_SECONDS = 10.0  # passing remarks get into a log file at most this often


def duration(seconds: float) -> str:
    """The two largest units: 5 -> "5 s", 65 -> "1 min 5 s", 3725 -> "1 h 2 min", 90061 -> "1 d 1 h"."""
    left = max(round(seconds), 0)
    if left >= 60:
        left -= left % (3600 if left >= 86400 else 60 if left >= 3600 else 1)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts) or "0 s"


def rate(each: float) -> str:
    """Seconds per item as the larger of the two ways to say it."""
    return f"{each:.3g} s each" if each >= 1 else f"{1 / max(each, 1e-9):.3g} per s"


class Progress:
    """Tells the progress of `total` items, of which `start` were done before; a context manager.

    Lines that last: one per update, but at most one a second. On a terminal what lies between is shown too and
    overwritten. The rate leaves out the first item, which also compiles: there is none before the second.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        label: str = "",
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._label, self._clock = total, label, clock
        self._stream = sys.stdout if stream is None else stream
        self._terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._done = start
        self._mark = (clock(), start)  # where the rate is measured from
        self._warm = False
        self._rate = ""
        self._last_line = self._last_note = float("-inf")
        self._transient = False

    def update(self, done: int, text: str = "") -> None:
        """`done` items of the total are done; `text` says what is worth knowing about the last one."""
        now = self._clock()
        began, first = self._mark
        self._done, finished = done, done >= self._total
        if self._warm or finished:
            each = (now - began) / max(done - first, 1)
            left = (self._total - done) * each
            self._rate = f"{rate(each)}, " + ("done" if finished else f"{duration(left)} to go")
        else:
            self._rate = f"the first in {duration(now - began)}"
            self._mark, self._warm = (now, done), True
        lasting = now - self._last_line >= _LINE_SECONDS or done >= self._total
        if lasting:
            self._last_line = now
        self._show(text, lasting)

    def note(self, text: str) -> None:
        """A passing remark on what is going on now."""
        now = self._clock()
        lasting = not self._terminal and now - self._last_note >= _NOTE_SECONDS
        if lasting:
            self._last_note = now
        if self._done >= self._total:  # more is done behind the last item
            self._rate = ""
        self._show(text, lasting)

    def _show(self, text: str, lasting: bool) -> None:
        width = len(str(self._total))
        line = f"{self._label} {self._done:>{width}}/{self._total}".strip()
        line = " | ".join(part for part in (line, self._rate, text) if part)
        if self._terminal:
            columns = shutil.get_terminal_size().columns
            self._stream.write("\r\x1b[K" + (line + "\n" if lasting else line[: columns - 1]))
            self._transient = not lasting
        elif lasting:
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leaves the cursor at the beginning of a line."""
        if self._transient:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._transient = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
