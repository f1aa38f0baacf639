"""VQA-RAD: questions about radiology images, as parquet or as the original JSON; parquet first where both are there.

The test questions are the same 451. The JSON also tells the closed questions that are no yes-or-no ones, and the type
of a question; its test split is what `phrase_type` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medvr_jax.datasets.example import Example, free_kind
from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.published import parquet_vqa
from medvr_jax.datasets.published.answers import free
from medvr_jax.datasets.published.files import first_existing, read_json, text
from medvr_jax.datasets.published.record import PublishedSet, Record

_SPLITS = ("train", "test")
_JSON = "VQA_RAD Dataset Public.json"


def splits_in(folder: Path, variant: str) -> tuple[str, ...]:
    parquet = tuple(split for split in _SPLITS if parquet_vqa.files(folder, split))
    return parquet or (_SPLITS if (folder / _JSON).is_file() else ())


def read(folder: Path, variant: str, split: str, faults: Faults) -> Iterator[Record]:
    if parquet_vqa.files(folder, split):
        yield from parquet_vqa.read(folder, split, SET.name, faults)
    else:
        yield from _read_json(folder, split, faults)


def _read_json(folder: Path, split: str, faults: Faults) -> Iterator[Record]:
    images = first_existing(folder, "VQA_RAD Image Folder", "images")
    for place, fields in read_json(folder / _JSON, faults):
        in_test = text(fields, "phrase_type").startswith("test_")
        if in_test != (split == "test"):
            continue
        identity, image, answer = text(fields, "qid"), text(fields, "image_name"), text(fields, "answer")
        kind = free_kind(answer)
        if kind == "open" and text(fields, "answer_type").upper() == "CLOSED":
            kind = "closed"
        example = Example(
            id=identity,
            images=(images / image,) if image else (),
            question=text(fields, "question"),
            options=(),
            answer="",
            answer_kind=kind,
            dataset=SET.name,
            question_type=text(fields, "question_type"),
        )
        record = Record(f"{place}, qid {identity}", example)
        if not identity:
            faults.add(record.fault("missing_id", "found no qid"))
            continue
        yield from free(record, answer, kind, faults)


SET = PublishedSet(
    name="vqa_rad",
    title="VQA-RAD",
    variants=("default",),
    splits=_SPLITS,
    instructions=(
        "put data/train-*.parquet and data/test-*.parquet of https://huggingface.co/datasets/flaviagiammarino/vqa-rad "
        "here; or 'VQA_RAD Dataset Public.json' and the folder 'VQA_RAD Image Folder' of https://osf.io/89kps"
    ),
    homepage="https://osf.io/89kps",
    licence="CC0",
    read=read,
    splits_in=splits_in,
)
