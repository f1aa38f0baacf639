"""MedXpertQA-MM: multiple-choice questions with five options and one to six images, as JSON lines.

The published question repeats its choices ("… Answer Choices: (A) … (E) …"); here they are cut off. The five examples
of `dev.jsonl` are the validation split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvr_jax.datasets.example import LETTERS, Example
from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.published.answers import choice, letter_of_letter
from medvr_jax.datasets.published.files import file_names, read_json_lines, text
from medvr_jax.datasets.published.record import PublishedSet, Record

_FILES = {"validation": "dev.jsonl", "test": "test.jsonl"}
_CHOICES = re.compile(r"\s*Answer Choices:\s*\(A\).*\Z", re.DOTALL)


def splits_in(folder: Path, variant: str) -> tuple[str, ...]:
    return tuple(split for split, name in _FILES.items() if (folder / "MM" / name).is_file())


def read(folder: Path, variant: str, split: str, faults: Faults) -> Iterator[Record]:
    for place, fields in read_json_lines(folder / "MM" / _FILES[split], faults):
        identity = text(fields, "id")
        record = Record(
            f"{place}, id {identity}",
            Example(
                id=identity,
                images=tuple(folder / "images" / name for name in file_names(fields.get("images"))),
                question=_CHOICES.sub("", text(fields, "question")),
                options=_options(fields.get("options")),
                answer="",
                answer_kind="choice",
                dataset=SET.name,
                question_type=text(fields, "question_type"),
            ),
        )
        if not identity:
            faults.add(record.fault("missing_id", "found no id"))
            continue
        yield from choice(record, text(fields, "label"), letter_of_letter, faults)


def _options(options: Any) -> tuple[str, ...]:
    """Letter -> text in the order of the letters; nothing if letters or texts are not what they should be."""
    if not isinstance(options, dict) or sorted(options) != list(LETTERS[: len(options)]):
        return ()
    return tuple(text(options, letter) for letter in sorted(options))


SET = PublishedSet(
    name="medxpertqa_mm",
    title="MedXpertQA-MM",
    variants=("default",),
    splits=("validation", "test"),
    instructions=(
        "from https://huggingface.co/datasets/TsinghuaC3I/MedXpertQA put MM/test.jsonl and MM/dev.jsonl here, and "
        "unpack images.zip to images/"
    ),
    homepage="https://huggingface.co/datasets/TsinghuaC3I/MedXpertQA",
    licence="MIT",
    read=read,
    splits_in=splits_in,
)
