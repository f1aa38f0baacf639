"""The user's own questions: a JSONL or CSV file and a folder of images, checked line by line before a run begins.

All lines are read in one pass and everything that is wrong is collected, with the number of its line: the faults are
counted, listed in a file, and refused together, or the lines that have one are left out.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from medvr_jax.datasets.csv_file import csv_rows
from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import Fault, Faults, OnError
from medvr_jax.datasets.image_files import Thorough, broken_images
from medvr_jax.datasets.jsonl import json_lines
from medvr_jax.datasets.records import RecordError, parse_record, record_id
from medvr_jax.errors import UserError


def read_questions(
    path: str | Path,
    image_folder: str | Path,
    *,
    field: str = "data.train_file",
    on_error: OnError = "refuse",
    look_at: Thorough = "pixels",
    report: Path | None = None,
) -> list[Example]:
    """All examples of a file; its name ends in .csv for a table, else it is read as JSON lines.

    Keys of a line: question and answer; image (a name) or images (a list), relative to image_folder; optionally id,
    options (a list, or an object letter -> text; the answer is then a letter or an option's text), modality,
    question_type, language ("en" where it is not given), and boxes ([x1, y1, x2, y2] normalised, for audits). For the
    columns of a table see `csv_file.py`.

    Args:
        field: the config field that errors name.
        on_error: refuse a file with faults, or skip the lines that have one.
        look_at: how much of each image is read.
        report: where the faults are listed.
    """
    if not os.path.isfile(path):
        raise UserError(f"{field}: no such file {path}")
    if not os.path.isdir(image_folder):
        raise UserError(f"data.image_folder: no such folder {image_folder}")
    faults = Faults(f"{field}: {path}")
    found = _with_sound_images(_parse(path, Path(image_folder), faults), faults, look_at)
    lines = len({fault.where for fault in faults.list}) + len(found)
    faults.list.sort(key=lambda fault: int(fault.where.rpartition(":")[2]))
    if faults and report is not None:
        faults.write_report(report)
    faults.check(on_error)
    if faults:
        print(f"skipped {lines - len(found)} of {lines} lines: {faults.summary()}")
    if not found:
        raise UserError(f"{field}: {path} holds no example")
    return list(found.values())


def _parse(path: str | Path, folder: Path, faults: Faults) -> dict[str, Example]:
    """Place -> example of the lines that are right by themselves, and whose id no line before them has."""
    rows = csv_rows(path) if str(path).lower().endswith(".csv") else json_lines(path)
    examples: dict[str, Example] = {}
    lines_of: dict[str, int] = {}
    for number, record in rows:
        where, default_id = f"{path}:{number}", f"{Path(path).stem}-{number}"
        if isinstance(record, Fault):
            faults.add(record)
            continue
        example, wrong = parse_record(record, where, folder, default_id)
        faults.extend(wrong)
        with contextlib.suppress(RecordError):  # which is among the faults already
            identity = record_id(record, default_id)
            if lines_of.setdefault(identity, number) != number:
                message = f"id {identity!r} was already used on line {lines_of[identity]}"
                faults.add(Fault(where, "repeated_id", message))
                example = None
        if example is not None:
            examples[where] = example
    return examples


def _with_sound_images(examples: dict[str, Example], faults: Faults, look_at: Thorough) -> dict[str, Example]:
    broken = broken_images((path for example in examples.values() for path in example.images), look_at)
    if not broken:
        return examples
    for where, example in examples.items():
        for path in dict.fromkeys(example.images):
            if path in broken:
                faults.add(Fault(where, "broken_image", f"{path}: not a readable image ({broken[path]})"))
    return {where: example for where, example in examples.items() if broken.keys().isdisjoint(example.images)}
