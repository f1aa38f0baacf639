"""What a reader of a published set yields, and what there is to know about a set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import Fault, Faults
from medvr_jax.errors import UserError

Box = tuple[float, float, float, float]  # normalised (x1, y1, x2, y2)


@dataclasses.dataclass(frozen=True)
class Region:
    """A named true box of an image."""

    label: str
    box: Box


@dataclasses.dataclass(frozen=True)
class Record:
    """One question with its place in the files. For audits: all regions of its (first) image, and a mask file."""

    where: str
    example: Example
    regions: tuple[Region, ...] = ()
    mask: Path | None = None

    def fault(self, kind: str, message: str) -> Fault:
        return Fault(self.where, kind, message)


# (folder, variant, split, faults) -> the records of that split, in the files' order.
Reader = Callable[[Path, str, str, Faults], Iterator[Record]]


@dataclasses.dataclass(frozen=True)
class PublishedSet:
    """A set: its names, where its files come from, and how to read them.

    The first variant is the default. `splits_in` says for (folder, variant) which splits' files are there.
    """

    name: str
    title: str
    variants: tuple[str, ...]
    splits: tuple[str, ...]
    instructions: str
    homepage: str
    licence: str
    read: Reader
    splits_in: Callable[[Path, str], tuple[str, ...]]

    def require(self, folder: Path, variant: str, split: str = "") -> tuple[str, ...]:
        """The splits whose files are in the folder; UserError with the instructions without any, or without `split`."""
        if not folder.is_dir():
            raise UserError(f"{self.name}: no such folder {folder}; {self.instructions}")
        found = self.splits_in(folder, variant)
        if not found:
            raise UserError(f"{self.name}: {folder} holds none of the files that are needed; {self.instructions}")
        if split and split not in found:
            files = f"files of {', '.join(found)} but not of {split}"
            raise UserError(f"{self.name}/{variant}: {folder} holds {files}; {self.instructions}")
        return found
