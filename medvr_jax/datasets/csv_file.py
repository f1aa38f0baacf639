"""Tables of comma-separated values: a header, then one question per row.

Columns: `question` and `answer`; `image`, or `images` with names separated by semicolons; optionally `id`, `modality`,
`question_type`, `language`, and the options, either in columns `option_A`, `option_B`, … or in one column `options`
with | between them. An empty cell is a value that is not given.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvr_jax.datasets.example import LETTERS
from medvr_jax.datasets.faults import Fault
from medvr_jax.errors import UserError

COLUMNS = ("id", "image", "images", "question", "options", "answer", "modality", "question_type", "language")
_OPTION = re.compile(r"option_([A-Z])")


def csv_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """(number of the row's first line, its cells as an object or what is wrong with it) of each row that is not empty.

    UserError if the header cannot be used.
    """
    # Bytes that are no UTF-8 become halves of characters, which are found cell by cell.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        header = _header(reader, path)
        while True:
            first = reader.line_num + 1
            where = f"{path}:{first}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield first, Fault(where, "not_csv", _not_a_row(error, first, reader.line_num))
                continue
            if cells is None:
                return
            if any(cell.strip() for cell in cells):
                yield first, _record(header, cells, where)


def _not_a_row(error: csv.Error, first: int, last: int) -> str:
    """What is wrong; a quotation mark that nothing closes has made one row of many lines."""
    unclosed = f": a quotation mark is opened and never closed, lines {first} to {last} read as one"
    return f"not a row of comma-separated values ({error}){unclosed if last > first else ''}"


def _header(reader: Iterator[list[str]], path: str | Path) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise UserError(f"{path}:1: not a row of comma-separated values ({error})") from error
    where = f"{path}:1: columns"
    for name in header:
        if name not in COLUMNS and not _OPTION.fullmatch(name):
            raise UserError(f"{where}: found {name!r}; allowed: {', '.join(COLUMNS)}, option_A, option_B, …")
        if header.count(name) > 1:
            raise UserError(f"{where}: found {name!r} {header.count(name)} times; allowed: once")
    for name in ("question", "answer"):
        if name not in header:
            raise UserError(f"{where}: found no {name!r}; needed: question, answer, and image or images")
    if ("image" in header) == ("images" in header):
        raise UserError(f"{where}: exactly one of image and images is needed")
    letters = "".join(sorted(match[1] for match in map(_OPTION.fullmatch, header) if match))
    if letters != LETTERS[: len(letters)]:
        raise UserError(f"{where}: found options {', '.join(letters)}; allowed: A, B, … without a gap")
    if letters and "options" in header:
        raise UserError(f"{where}: found options as well as option_A; one of them is needed")
    return header


def _record(header: list[str], cells: list[str], where: str) -> dict[str, Any] | Fault:
    """The row as a JSON line would have it."""
    if len(cells) != len(header):
        return Fault(where, "bad_row", f"found {len(cells)} cells; allowed: {len(header)}, one for each column")
    for name, cell in zip(header, cells, strict=True):
        if any("\udc80" <= character <= "\udcff" for character in cell):
            return Fault(where, "not_utf8", f"{name}: not UTF-8 text")
    given = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}
    record: dict[str, Any] = {name: text for name, text in given.items() if not _OPTION.fullmatch(name)}
    if "images" in record:
        record["images"] = [name.strip() for name in record["images"].split(";")]
    if "options" in record:
        record["options"] = [text.strip() for text in record["options"].split("|")]
    options = {match[1]: given[match[0]] for match in map(_OPTION.fullmatch, given) if match}
    return record | {"options": options} if options else record
