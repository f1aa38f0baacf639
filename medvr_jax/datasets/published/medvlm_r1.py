"""MedVLM-R1's files: its own test of 3 x 300 questions, and the HuatuoGPT-Vision evaluation data it was drawn from.

  r1       test: the 900 questions of MedVLM-R1 (MRI, CT, X-ray), in their order; train: 600 MRI questions, drawn by a
           seed from the evaluation data among those whose image is not in the test (the original draw is not public).
  huatuo   test: all of the evaluation data, whose sets are told apart by `question_type`.

Answers are option texts, options a list; a question without options is answered freely.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.published.answers import answered, option_texts
from medvr_jax.datasets.published.files import file_names, read_json, text
from medvr_jax.datasets.published.omnimedvqa import short_modality
from medvr_jax.datasets.published.record import PublishedSet, Record

TEST_FILE = "MRI_CT_XRAY_300each_dataset.json"
EVALUATION_FILE = "medical_multimodel_evaluation_data.json"
TRAIN_QUESTIONS = 600
SPLIT_SEED = 0


def splits_in(folder: Path, variant: str) -> tuple[str, ...]:
    has_test, has_all = (folder / TEST_FILE).is_file(), (folder / EVALUATION_FILE).is_file()
    if variant == "huatuo":
        return ("test",) if has_all else ()
    return (("train",) if has_test and has_all else ()) + (("test",) if has_test else ())


def read(folder: Path, variant: str, split: str, faults: Faults) -> Iterator[Record]:
    if variant == "huatuo":
        yield from _records(folder, EVALUATION_FILE, "huatuo", faults)
    elif split == "test":
        yield from _records(folder, TEST_FILE, "test", faults)
    else:
        # Faults of questions that are not drawn are no faults of this split.
        tested = {
            image for record in _records(folder, TEST_FILE, "test", Faults("")) for image in record.example.images
        }
        rest = [
            record
            for record in _records(folder, EVALUATION_FILE, "train", Faults(""))
            if record.example.question_type == "OmniMedVQA"
            and record.example.modality == "MRI"
            and tested.isdisjoint(record.example.images)
        ]
        yield from draw(rest)


def draw(records: list[Record], count: int = TRAIN_QUESTIONS, seed: int = SPLIT_SEED) -> list[Record]:
    """`count` of the records, in their order; which ones depends on their ids and the seed alone."""

    def lot(record: Record) -> bytes:
        return hashlib.sha256(f"{seed}:{record.example.id}".encode()).digest()

    drawn = {record.example.id for record in sorted(records, key=lot)[:count]}
    return [record for record in records if record.example.id in drawn]


def _records(folder: Path, name: str, prefix: str, faults: Faults) -> Iterator[Record]:
    """The file's records; their ids are the prefix and the place in the file, which has none."""
    for number, (where, fields) in enumerate(read_json(folder / name, faults)):
        example = Example(
            id=f"{prefix}-{number}",
            images=tuple(folder / image for image in file_names(fields.get("image"))),
            question=text(fields, "question"),
            options=option_texts(fields.get("options")),
            answer="",
            answer_kind="open",
            modality=short_modality(text(fields, "subset")) if text(fields, "dataset") == "OmniMedVQA" else "",
            dataset=SET.name,
            question_type=text(fields, "dataset"),
        )
        yield from answered(Record(where, example), text(fields, "answer"), faults)


SET = PublishedSet(
    name="medvlm_r1",
    title="MedVLM-R1",
    variants=("r1", "huatuo"),
    splits=("train", "test"),
    instructions=(
        f"put {TEST_FILE} of https://github.com/JZPeterPan/MedVLM-R1 here, and {EVALUATION_FILE} with images.zip "
        "unpacked to images/ of https://huggingface.co/datasets/FreedomIntelligence/Medical_Multimodal_Evaluation_Data"
        "; the second file is needed for training questions and the variant huatuo"
    ),
    homepage="https://huggingface.co/datasets/FreedomIntelligence/Medical_Multimodal_Evaluation_Data",
    licence="each source's own",
    read=read,
    splits_in=splits_in,
)
