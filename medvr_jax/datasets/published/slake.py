"""SLAKE: questions in English and Chinese about 642 images that come with named boxes and segmentation masks.

`answer_type` decides between open and closed questions, as in the published counts. The boxes of an image
(`detection.json`: a list of {name: [x, y, width, height]} in pixels) and its mask are kept for audits; an example's own
boxes are those whose name its question or answer says, which Chinese ones never do.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from medvr_jax.datasets.example import AnswerKind, Example, free_kind
from medvr_jax.datasets.faults import Fault, Faults
from medvr_jax.datasets.image_files import image_size
from medvr_jax.datasets.published.answers import free
from medvr_jax.datasets.published.boxes import from_corner_and_size
from medvr_jax.datasets.published.files import first_existing, read_json, text
from medvr_jax.datasets.published.record import Box, PublishedSet, Record, Region

LANGUAGES = {"all": ("en", "zh"), "en": ("en",), "zh": ("zh",)}
_FILES = {"train": ("train.json",), "validation": ("validation.json", "validate.json"), "test": ("test.json",)}


def questions_file(folder: Path, split: str) -> Path:
    return first_existing(folder, *_FILES[split])


def splits_in(folder: Path, variant: str) -> tuple[str, ...]:
    return tuple(split for split in _FILES if questions_file(folder, split).is_file())


def read(folder: Path, variant: str, split: str, faults: Faults) -> Iterator[Record]:
    regions_of = functools.lru_cache(maxsize=None)(functools.partial(read_regions, faults=faults))
    for place, fields in read_json(questions_file(folder, split), faults):
        identity, language, answer = text(fields, "qid"), text(fields, "q_lang"), text(fields, "answer")
        image = image_path(folder, text(fields, "img_name"))
        example = Example(
            id=identity,
            images=(image,) if image else (),
            question=text(fields, "question"),
            options=(),
            answer="",
            answer_kind="open",
            modality=text(fields, "modality"),
            dataset=SET.name,
            question_type=text(fields, "content_type"),
            language=language,
        )
        record = Record(f"{place}, qid {identity}", example)
        if language not in LANGUAGES["all"]:
            faults.add(record.fault("bad_language", f"found q_lang {language!r}; allowed: en, zh"))
        elif not identity:
            faults.add(record.fault("missing_id", "found no qid"))
        elif language in LANGUAGES[variant]:
            for sound in free(record, answer, _kind(text(fields, "answer_type"), answer), faults):
                yield _with_regions(sound, image, regions_of(image.parent) if image else ())


def image_path(folder: Path, name: str) -> Path | None:
    """imgs/xmlab…/source.jpg; unpacking in place makes that imgs/imgs/xmlab…/source.jpg."""
    return first_existing(folder, f"imgs/{name}", f"imgs/imgs/{name}") if name else None


def read_regions(folder: Path, faults: Faults) -> tuple[Region, ...]:
    """The named boxes of an image's folder; none where there is no detection.json. A bad box is left out."""
    path, image = folder / "detection.json", folder / "source.jpg"
    if not path.is_file() or not image.is_file():
        return ()
    where = f"{folder.name}/{path.name}"
    try:
        size = image_size(image)
        named = [pair for entry in json.loads(path.read_text(encoding="utf-8")) for pair in entry.items()]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        faults.add(
            Fault(where, "bad_box", f"cannot be read ({error}); allowed: a list of {{name: [x, y, width, height]}}")
        )
        return ()
    regions = []
    for label, numbers in named:
        try:
            regions.append(Region(str(label), from_corner_and_size(numbers, size)))
        except ValueError as error:
            faults.add(Fault(where, "bad_box", f"{label}: {error}"))
    return tuple(regions)


def named_boxes(regions: tuple[Region, ...], words: str) -> tuple[Box, ...]:
    """The boxes of the regions whose name, or its plural, is among the words."""
    return tuple(
        region.box for region in regions if re.search(rf"\b{re.escape(region.label)}s?\b", words, re.IGNORECASE)
    )


def _with_regions(record: Record, image: Path | None, regions: tuple[Region, ...]) -> Record:
    mask = image.parent / "mask.png" if image else None
    example = record.example
    boxes = named_boxes(regions, f"{example.question} {example.answer}")
    return dataclasses.replace(
        record,
        example=dataclasses.replace(example, boxes=boxes),
        regions=regions,
        mask=mask if mask and mask.is_file() else None,
    )


def _kind(answer_type: str, answer: str) -> AnswerKind:
    if answer_type.upper() == "OPEN":
        return "open"
    return "yes_no" if free_kind(answer) == "yes_no" else "closed"


SET = PublishedSet(
    name="slake",
    title="SLAKE",
    variants=tuple(LANGUAGES),
    splits=tuple(_FILES),
    instructions=(
        "put train.json, validation.json and test.json of https://huggingface.co/datasets/BoKelvin/SLAKE here and "
        "unpack imgs.zip to imgs/"
    ),
    homepage="https://www.med-vqa.com/slake",
    licence="CC BY 4.0",
    read=read,
    splits_in=splits_in,
)
