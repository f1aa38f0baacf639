"""Any images with true boxes: one JSON-lines file per split, {train,validation,test}.jsonl, beside the images.

Keys of a line: `image` (a path relative to the folder, or `images`, a list), `boxes` (normalised [x1, y1, x2, y2], of
the first image) and `label`, what is in them; optionally `id`, `question`, `answer`, `options`, `modality`, `source`.
Without a question one is asked whose answer is yes: what counts here is where the policy looks. `convert.py` makes such
files from ChestX-ray8, ISIC masks and GEMeX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.published.answers import answered, option_texts
from medvr_jax.datasets.published.boxes import from_corners
from medvr_jax.datasets.published.files import file_names, read_json_lines, text
from medvr_jax.datasets.published.record import PublishedSet, Record, Region

_SPLITS = ("train", "validation", "test")


def splits_in(folder: Path, variant: str) -> tuple[str, ...]:
    return tuple(split for split in _SPLITS if (folder / f"{split}.jsonl").is_file())


def read(folder: Path, variant: str, split: str, faults: Faults) -> Iterator[Record]:
    for number, (where, fields) in enumerate(read_json_lines(folder / f"{split}.jsonl", faults)):
        label = text(fields, "label")
        asked = text(fields, "question")
        example = Example(
            id=text(fields, "id") or f"{split}-{number}",
            images=tuple(folder / name for name in file_names(fields.get("images", fields.get("image")))),
            question=asked or (f"Can the {label.lower()} be seen in this image?" if label else ""),
            options=option_texts(fields.get("options")),
            answer="",
            answer_kind="open",
            modality=text(fields, "modality"),
            dataset=SET.name,
            question_type=text(fields, "source"),
        )
        record = Record(where, example)
        try:
            boxes = tuple(from_corners(box) for box in fields.get("boxes") or ())
        except (ValueError, TypeError) as error:
            faults.add(record.fault("bad_box", str(error)))
            continue
        if not boxes:
            faults.add(record.fault("missing_boxes", "found no boxes; allowed: one or more"))
            continue
        record = Record(where, dataclasses.replace(example, boxes=boxes), tuple(Region(label, box) for box in boxes))
        answer = text(fields, "answer") or ("" if asked else "yes")
        yield from answered(record, answer, faults)


SET = PublishedSet(
    name="grounding",
    title="Grounding",
    variants=("default",),
    splits=_SPLITS,
    instructions=(
        "put train.jsonl, validation.jsonl or test.jsonl here with lines of image, boxes (normalised [x1, y1, x2, y2]) "
        "and label, and the images beside them; python -m medvr_jax.datasets.published.convert makes them from "
        "ChestX-ray8, ISIC and GEMeX"
    ),
    homepage="",
    licence="each source's own",
    read=read,
    splits_in=splits_in,
)
