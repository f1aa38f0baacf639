"""PathVQA: yes-or-no and open questions about pathology images, as parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.published import parquet_vqa
from medvr_jax.datasets.published.record import PublishedSet, Record

_SPLITS = ("train", "validation", "test")


def splits_in(folder: Path, variant: str) -> tuple[str, ...]:
    return tuple(split for split in _SPLITS if parquet_vqa.files(folder, split))


def read(folder: Path, variant: str, split: str, faults: Faults) -> Iterator[Record]:
    yield from parquet_vqa.read(folder, split, SET.name, faults)


SET = PublishedSet(
    name="path_vqa",
    title="PathVQA",
    variants=("default",),
    splits=_SPLITS,
    instructions=(
        "put data/train-*.parquet, data/validation-*.parquet and data/test-*.parquet of "
        "https://huggingface.co/datasets/flaviagiammarino/path-vqa here"
    ),
    homepage="https://huggingface.co/datasets/flaviagiammarino/path-vqa",
    licence="MIT",
    read=read,
    splits_in=splits_in,
)
