"""Lines of JSON on disk, appended as they are made, so that what was killed goes on where it was.

However often it is killed, wherever it is, and in whatever order the rows arrive: the finished file is the same, byte
for byte. A manifest beside the file holds what the rows depend on; rows of another configuration are put aside.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medvr_jax.errors import UserError
from medvr_jax.workdir import write_atomically

Key = tuple[str, int | str]  # the question's id, and the number of the sample or what else tells its rows apart


class RowFile:
    """FOLDER/NAME.jsonl with one row for each key; `close` it, or use it as a context manager."""

    def __init__(
        self,
        folder: Path,
        keys: Sequence[Key],
        identity: Mapping[str, Any],
        name: str = "predictions",
        part: str = "sample",
    ) -> None:
        """Opens the file, or begins it.

        Args:
            keys: of all rows, in the order of the finished file.
            identity: flat, plain JSON: what the rows depend on.
            part: the field of a row that is the second part of its key.
        """
        self.path, self._manifest = folder / f"{name}.jsonl", folder / f"{name}.manifest.json"
        self._keys, self._lines, self._part = tuple(keys), {}, part
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder)
        self._note = self._put_aside_others(json.loads(json.dumps(dict(identity))))
        self._read()

    def tell(self) -> None:
        """Prints what was found: rows of something else, or some of the rows."""
        if self._note:
            print(self._note)
        elif self._lines:
            print(f"{self.path}: {len(self._lines)} of {len(self._keys)} are there")

    @property
    def count(self) -> int:
        """How many rows are there."""
        return len(self._lines)

    @property
    def done(self) -> set[Key]:
        """The keys whose rows are there."""
        return set(self._lines)

    @property
    def missing(self) -> list[Key]:
        """The keys whose rows are not there yet, in order."""
        return [key for key in self._keys if key not in self._lines]

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows that are not there yet; when this returns, they are on disk."""
        new = {self._key(row): (json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows}
        new = {key: line for key, line in new.items() if key not in self._lines}
        with self.path.open("ab") as stream:
            stream.write(b"".join(new.values()))
            stream.flush()
            os.fsync(stream.fileno())
        self._lines |= new

    def finish(self) -> list[dict[str, Any]]:
        """All rows in the order of the keys, which is from now on that of the file."""
        content = b"".join(self._lines[key] for key in self._keys)
        if self.path.read_bytes() != content:
            write_atomically(self.path, content)
        return [json.loads(self._lines[key]) for key in self._keys]

    def _put_aside_others(self, identity: dict[str, Any]) -> str:
        """Renames a file of another identity; says so, in the result."""
        try:
            before = json.loads(self._manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        if before == identity:
            return ""
        note = ""
        if self.path.is_file() and self.path.stat().st_size:
            aside = self.path.with_suffix(".former.jsonl")
            os.replace(self.path, aside)
            note = (
                f"{self.path}: started afresh, as {_difference(before, identity)}; what was there is {aside.name} now"
            )
        write_atomically(self._manifest, json.dumps(identity, indent=2, ensure_ascii=False) + "\n")
        return note

    def _read(self) -> None:
        """Reads the rows that are there; what is no whole row, and all behind it, is cut."""
        self.path.touch()
        content, wanted, good = self.path.read_bytes(), set(self._keys), 0
        for line in content.splitlines(keepends=True):
            key = self._key_of_line(line)
            if key is None or key not in wanted or key in self._lines:
                break
            self._lines[key] = line
            good += len(line)
        if good < len(content):
            os.truncate(self.path, good)

    def _key(self, row: Mapping[str, Any]) -> Key:
        return row["id"], row[self._part]

    def _key_of_line(self, line: bytes) -> Key | None:
        if not line.endswith(b"\n"):
            return None
        try:
            identity, part = self._key(json.loads(line))
            return (identity, part) if isinstance(identity, str) and isinstance(part, int | str) else None
        except (ValueError, KeyError, TypeError):
            return None

    def close(self) -> None:
        """Lets others have the folder."""
        os.close(self._lock)

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    name = next(name for name in [*now, *before] if before.get(name) != now.get(name))
    return f"{name} was {before.get(name)!r}, now {now.get(name)!r}" if before else "nobody knows what it is of"


def _locked(folder: Path) -> int:
    """A descriptor of the folder that no other evaluation holds at the same time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(f"--workdir: another evaluation is writing to {folder}; wait for it, or end it") from error
    except OSError:  # a file system without locks
        pass
    return descriptor
