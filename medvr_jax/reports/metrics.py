"""`metrics.jsonl`: one JSON object per step, written as the step ends, cut back when a run resumes.

Strict JSON: numbers that are not finite are written as null, so that any reader can read them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medvr_jax.errors import UserError

FILE_NAME = "metrics.jsonl"


def plain(value: Any) -> Any:
    """A value as JSON can hold it: arrays and their scalars as Python's own, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # a lone surrogate cannot be written as UTF-8
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    raise TypeError(f"{type(value).__name__} does not fit into JSON")


def json_line(value: Mapping[str, Any]) -> str:
    """One object as one line of strict JSON, with its line break."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False) + "\n"


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, read as they are asked for; a last line cut short by a crash is passed over."""
    return (row for _, row in _numbered_objects(path))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All of them."""
    return list(json_lines(path))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, every one with its `step`."""
    rows = []
    for number, row in _numbered_objects(path):
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            found = repr(step) if "step" in row else "nothing"
            raise UserError(f"{path}, line {number}: step: found {found}, allowed is a whole number")
        rows.append(row)
    return rows


def _numbered_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):  # the last one
                    return
                raise UserError(f"{path}, line {number}: not JSON ({error}); every line must be one object") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: found {type(row).__name__}; every line must be one object")
            yield number, row


def replace_file(path: Path, text: str) -> None:
    """Writes a whole file so that a reader, or a crash, finds either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


class MetricsWriter:
    """Appends rows to `workdir/metrics.jsonl`; a context manager.

    Args:
        workdir: the run's folder.
        resume_step: the next step to be done; rows of this and later steps, left by a run that was cut off after its
            last checkpoint, are removed first.
    """

    def __init__(self, workdir: str | Path, resume_step: int = 0) -> None:
        path = Path(workdir) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [row for row in read_metrics(path) if row["step"] < resume_step]
            replace_file(path, "".join(map(json_line, kept)))
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row (it must have a `step`), which is in the file when this returns."""
        self._file.write(json_line({"step": row["step"]} | dict(row)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
