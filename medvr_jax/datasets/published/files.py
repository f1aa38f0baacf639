"""Records of JSON, JSON-lines, CSV and parquet files, each with its place; what cannot be read becomes a fault."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvr_jax.datasets.faults import Fault, Faults
from medvr_jax.datasets.jsonl import json_lines

Raw = tuple[str, dict[str, Any]]  # (where, the record's fields)

_ROWS = 16  # of a parquet file that are in memory at once: they hold images
csv.field_size_limit(1 << 24)  # captions are longer than the default of 128 KiB


def read_json(path: Path, faults: Faults) -> Iterator[Raw]:
    """The objects of a JSON list."""
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        faults.add(Fault(path.name, "not_json", f"cannot be read ({error}); allowed: a JSON list of objects"))
        return
    if not isinstance(items, list):
        faults.add(Fault(path.name, "not_json", f"found {type(items).__name__}; allowed: a JSON list of objects"))
        return
    for number, item in enumerate(items, start=1):
        where = f"{path.name}, record {number}"
        if isinstance(item, dict):
            yield where, item
        else:
            faults.add(Fault(where, "not_object", f"found {type(item).__name__}; allowed: a JSON object"))


def read_json_lines(path: Path, faults: Faults) -> Iterator[Raw]:
    """One JSON object per line; empty lines are passed over."""
    for number, record in json_lines(path, path.name):
        if isinstance(record, Fault):
            faults.add(record)
        else:
            yield f"{path.name}:{number}", record


def read_csv(path: Path, faults: Faults) -> Iterator[Raw]:
    """The rows of a CSV file with a header, whose names are stripped of blanks. The place is the row's last line."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = csv.reader(stream)
        names = [name.strip() for name in next(rows, [])]
        while names and not names[-1]:
            names.pop()
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                faults.add(Fault(f"{path.name}:{rows.line_num}", "not_csv", f"cannot be read ({error})"))
                continue
            if not row:
                continue
            if not any(row[len(names) :]):  # a table may end in empty columns
                row = row[: len(names)]
            if len(row) != len(names):
                message = f"found {len(row)} columns; allowed: {len(names)}, as in the header"
                faults.add(Fault(f"{path.name}:{rows.line_num}", "not_csv", message))
            elif any("\udc80" <= character <= "\udcff" for value in row for character in value):
                faults.add(Fault(f"{path.name}:{rows.line_num}", "not_csv", "found bytes that are not UTF-8 text"))
            else:
                yield f"{path.name}:{rows.line_num}", dict(zip(names, row, strict=True))


def read_parquet(path: Path, faults: Faults) -> Iterator[Raw]:
    """The rows of a parquet file, a few at a time."""
    import pyarrow.parquet  # takes a moment, and two sets use it

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name}, row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        faults.add(Fault(f"{path.name}, row {number + 1}", "not_parquet", f"cannot be read ({error})"))


def text(fields: dict[str, Any], key: str) -> str:
    """A field as stripped text; empty where it is missing or neither text nor a number."""
    value = fields.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    return value.strip() if isinstance(value, str) else ""


def first_existing(folder: Path, *names: str) -> Path:
    """The first of the names that exists in the folder; the first one if none does."""
    return next((folder / name for name in names if (folder / name).exists()), folder / names[0])


def file_names(value: Any) -> tuple[str, ...]:
    """A name, or a list of names; none if there is anything else, or an empty one."""
    names = [value] if isinstance(value, str) else value
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) and name for name in names) else ()
