"""PMC-VQA: multiple-choice questions about figures of papers, as CSV. v2 has no compound figures; v1 came first.

The test split of v1 is `test_clean.csv`, the 2,000 questions that people checked. Choices carry their letter
(" A:text"). Neither version has ids that are sure to be unique, so the row's number is the id.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.published.answers import choice, letter_of_letter, without_label
from medvr_jax.datasets.published.files import first_existing, read_csv, text
from medvr_jax.datasets.published.record import PublishedSet, Record

_FILES = {
    "v2": {"train": "train_2.csv", "test": "test_2.csv"},
    "v1": {"train": "train.csv", "test": "test_clean.csv"},
}
_ANSWER = {"v2": "Answer", "v1": "Answer_label"}
_IMAGE_FOLDERS = {"v2": ("images_2", "figures", "images"), "v1": ("images", "figures")}


def splits_in(folder: Path, variant: str) -> tuple[str, ...]:
    return tuple(split for split, name in _FILES[variant].items() if (folder / name).is_file())


def read(folder: Path, variant: str, split: str, faults: Faults) -> Iterator[Record]:
    path = folder / _FILES[variant][split]
    images = first_existing(folder, *_IMAGE_FOLDERS[variant])
    for number, (where, fields) in enumerate(read_csv(path, faults)):
        image = text(fields, "Figure_path")
        example = Example(
            id=f"{path.stem}-{number}",
            images=(images / image,) if image else (),
            question=text(fields, "Question"),
            options=tuple(without_label(text(fields, f"Choice {letter}"), letter) for letter in "ABCD"),
            answer="",
            answer_kind="choice",
            dataset=SET.name,
        )
        yield from choice(Record(where, example), text(fields, _ANSWER[variant]), letter_of_letter, faults)


SET = PublishedSet(
    name="pmc_vqa",
    title="PMC-VQA",
    variants=("v2", "v1"),
    splits=("train", "test"),
    instructions=(
        "from https://huggingface.co/datasets/RadGenome/PMC-VQA put test_2.csv and train_2.csv here, with images_2.zip "
        "unpacked to images_2/ or figures/ (v2); or test_clean.csv and train.csv, with images.zip unpacked to images/ "
        "(v1)"
    ),
    homepage="https://huggingface.co/datasets/RadGenome/PMC-VQA",
    licence="CC BY-SA",
    read=read,
    splits_in=splits_in,
)
