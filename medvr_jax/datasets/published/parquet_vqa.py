"""The layout that VQA-RAD and PathVQA share: parquet files of image, question and answer, one or more per split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.published.answers import answered
from medvr_jax.datasets.published.files import read_parquet, text
from medvr_jax.datasets.published.record import Record


def files(folder: Path, split: str) -> list[Path]:
    """The split's files, in data/ as the hub has them or in the folder itself."""
    return sorted((folder / "data").glob(f"{split}-*.parquet")) or sorted(folder.glob(f"{split}-*.parquet"))


def read(folder: Path, split: str, dataset: str, faults: Faults) -> Iterator[Record]:
    """The rows in order, numbered through all files of the split; a question is yes_no by its answer, or open."""
    number = 0
    for path in files(folder, split):
        for where, fields in read_parquet(path, faults):
            image, answer = _bytes(fields.get("image")), text(fields, "answer")
            example = Example(
                id=f"{split}-{number}",
                images=(image,) if image else (),
                question=text(fields, "question"),
                options=(),
                answer="",
                answer_kind="open",
                dataset=dataset,
            )
            number += 1
            yield from answered(Record(where, example), answer, faults)


def _bytes(image: Any) -> bytes | None:
    """The encoded bytes of the hub's image column: bytes beside a path, or plain ones."""
    return image.get("bytes") if isinstance(image, dict) else image
