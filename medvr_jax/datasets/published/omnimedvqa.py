"""OmniMedVQA, the open-access part: 88,996 multiple-choice questions of 42 sources, in one JSON list per source.

There is no official split. Where Med-R1's public `Splits` folder lies beside the files, its membership by image and
problem text is used: that of `Splits/modality` for the whole set and the modalities, that of `Splits/question_type` for
the question types. Otherwise an image's content and a seed decide, so that no image is in both splits.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.published.answers import choice, letter_of_text
from medvr_jax.datasets.published.checks import repeated
from medvr_jax.datasets.published.files import read_json, text
from medvr_jax.datasets.published.record import PublishedSet, Record

# How the published names begin, in lower case -> the short name.
_MODALITIES = {
    "ct": "CT",
    "computed": "CT",
    "mr": "MRI",
    "x-ray": "X-Ray",
    "ultrasound": "Ultrasound",
    "dermoscopy": "Dermoscopy",
    "fundus": "Fundus",
    "oct": "OCT",
    "microscopy": "Microscopy",
}
MODALITY_VARIANTS = {name.lower().replace("-", "_"): name for name in _MODALITIES.values()}
QUESTION_TYPE_VARIANTS = {
    name.lower().replace(" ", "_"): name
    for name in (
        "Anatomy Identification",
        "Disease Diagnosis",
        "Lesion Grading",
        "Modality Recognition",
        "Other Biological Attributes",
    )
}
SPLIT_SEED = 0
TEST_SHARE = 0.2  # of the images; Med-R1's share of the questions
_QUESTIONS = Path("QA_information", "Open-access")


def short_modality(name: str) -> str:
    """ "MR (Mag-netic Resonance Imaging)" -> "MRI"; a name that we do not know stays as it is."""
    return next((short for start, short in _MODALITIES.items() if name.lower().startswith(start)), name)


def seeded_split(image: bytes, seed: int = SPLIT_SEED) -> str:
    """The split of an image by its content alone: copies of it under other names go the same way."""
    digest = hashlib.sha256(hashlib.sha256(image).digest() + str(seed).encode()).digest()
    return "test" if int.from_bytes(digest[:8]) < TEST_SHARE * 2**64 else "train"


def splits_in(folder: Path, variant: str) -> tuple[str, ...]:
    return ("train", "test") if any((folder / _QUESTIONS).glob("*.json")) else ()


def read(folder: Path, variant: str, split: str, faults: Faults) -> Iterator[Record]:
    public = _public_splits(folder, variant, faults)
    seen: dict[str, str] = {}  # in all splits: the files know none
    for path in sorted((folder / _QUESTIONS).glob("*.json")):
        for place, fields in read_json(path, faults):
            unanswered = _record(folder, place, fields, variant, faults)
            if unanswered is None:
                continue
            first = seen.setdefault(unanswered.example.id, unanswered.where)
            if first != unanswered.where:
                faults.add(repeated(unanswered, first))
                continue
            for record in choice(unanswered, text(fields, "gt_answer"), letter_of_text, faults):
                if public is None:
                    belongs = _seeded(record.example.images[0]) == split
                else:
                    key = _key(text(fields, "image_path"), _problem(record.example))
                    belongs = key in public[split]
                    if not any(key in keys for keys in public.values()):
                        faults.add(record.fault("not_in_splits", "image and problem are in no file of Splits/"))
                if belongs:
                    yield record


def _record(folder: Path, place: str, fields: dict[str, Any], variant: str, faults: Faults) -> Record | None:
    """The question without its answer; None if it is not of this variant, or has no id or image."""
    identity, image = text(fields, "question_id"), text(fields, "image_path")
    example = Example(
        id=identity,
        images=(folder / image,) if image else (),
        question=text(fields, "question"),
        # Yes-or-no questions have two options, others three: the keys of the rest are missing, or null.
        options=tuple(option for letter in "ABCD" if (option := text(fields, f"option_{letter}"))),
        answer="",
        answer_kind="choice",
        # One record of "Chest CT Scan" calls the key differently.
        modality=short_modality(text(fields, "modality_type") or text(fields, "modality")),
        dataset=SET.name,
        question_type=text(fields, "question_type"),
    )
    record = Record(f"{place}, question_id {identity}", example)
    if not _wanted(example, variant):
        return None
    if not identity or not image:
        missing = "id" if not identity else "image"
        faults.add(record.fault(f"missing_{missing}", f"found no {'image_path' if identity else 'question_id'}"))
        return None
    return record


def _wanted(example: Example, variant: str) -> bool:
    if variant in MODALITY_VARIANTS:
        return example.modality == MODALITY_VARIANTS[variant]
    return variant == "all" or example.question_type == QUESTION_TYPE_VARIANTS[variant]


@functools.lru_cache(maxsize=1)  # questions about one image mostly follow each other
def _seeded(image: Path) -> str:
    # A missing image is found by the checks that follow, in whichever split.
    return seeded_split(image.read_bytes()) if image.is_file() else "train"


def _public_splits(folder: Path, variant: str, faults: Faults) -> dict[str, set[bytes]] | None:
    """The keys of each split in Med-R1's files; None where there are none."""
    kind = "question_type" if variant in QUESTION_TYPE_VARIANTS else "modality"
    files = {split: sorted((folder / "Splits" / kind / split).glob("*.json")) for split in ("train", "test")}
    if not any(files.values()):
        return None
    return {
        split: {
            _key(text(fields, "image"), text(fields, "problem"))
            for path in paths
            for _, fields in read_json(path, faults)
        }
        for split, paths in files.items()
    }


def _problem(example: Example) -> str:
    """Question and options in Med-R1's notation."""
    options = (f"{letter}){option}" for letter, option in zip("ABCD", example.options, strict=False))
    return f"{example.question} {', '.join(options)}"


def _key(image: str, problem: str) -> bytes:
    """What stands for a question in the public splits, in 16 bytes; blanks do not count."""
    return hashlib.sha256(f"{image}\n{''.join(problem.split())}".encode()).digest()[:16]


SET = PublishedSet(
    name="omnimedvqa",
    title="OmniMedVQA",
    variants=("all", *MODALITY_VARIANTS, *QUESTION_TYPE_VARIANTS),
    splits=("train", "test"),
    instructions=(
        "unpack OmniMedVQA.zip of https://huggingface.co/datasets/foreverbeliever/OmniMedVQA here, so that "
        "QA_information/Open-access/*.json and Images/ are in this folder; for Med-R1's splits copy the folder Splits/ "
        "of https://github.com/Yuxiang-Lai117/Med-R1 beside them"
    ),
    homepage="https://huggingface.co/datasets/foreverbeliever/OmniMedVQA",
    licence="each source's own",
    read=read,
    splits_in=splits_in,
)
