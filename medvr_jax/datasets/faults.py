"""What is wrong with the records of a set: collected in one pass, counted, listed in a file, refused or left out."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from medvr_jax.errors import UserError

OnError = Literal["refuse", "skip"]
ON_ERROR: tuple[OnError, ...] = ("refuse", "skip")
SHOWN = 3  # faults that an error line quotes


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong with one record."""

    where: str  # the record's place: "train.jsonl:17", or a file and a key in it
    kind: str  # a short fixed word: missing_image, broken_image, repeated_id, bad_answer, not_json, …
    message: str  # what was found and what is allowed

    def line(self) -> str:
        """The fault in one line of text, whatever is in the record."""
        return " ".join(f"{self.where}: {self.message}".split())


class Faults:
    """The faults of one set, in the order in which they were found.

    `subject` is what an error line calls the set: a config field with its file, or the name of a published set.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.list: list[Fault] = []
        self.report: Path | None = None  # where `write_report` put them

    def __len__(self) -> int:
        return len(self.list)

    def add(self, fault: Fault) -> None:
        self.list.append(fault)

    def extend(self, faults: Iterable[Fault]) -> None:
        self.list.extend(faults)

    def counts(self) -> dict[str, int]:
        """Kind -> number, the most frequent first; kinds of the same number by name."""
        counted = collections.Counter(fault.kind for fault in self.list)
        return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))

    def summary(self) -> str:
        """One line: how many, of which kinds, the first few, and where all of them are listed."""
        if len(self.list) == 1:
            return self.list[0].line()
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.counts().items())
        shown = "; ".join(fault.line() for fault in self.list[:SHOWN])
        listed = f"; all are listed in {self.report}" if self.report else ""
        return f"{self.subject}: {len(self.list)} faults ({kinds}); {shown}{listed}"

    def write_report(self, path: str | Path) -> Path:
        """All faults as JSON lines of where, kind and message; the folder is made where it is missing."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(dataclasses.asdict(fault), ensure_ascii=True) for fault in self.list)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self.report = path
        return path

    def check(self, on_error: OnError) -> None:
        """UserError with the summary if there is a fault and they are refused; nothing if they are to be skipped."""
        if on_error not in ON_ERROR:
            raise UserError(f"data.on_error: found {on_error!r}; allowed: {', '.join(ON_ERROR)}")
        if self.list and on_error == "refuse":
            raise UserError(self.summary())
