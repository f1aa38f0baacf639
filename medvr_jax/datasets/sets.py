"""The published question sets by name: what there is, and one way to read it.

A set is prepared once, from the files that its makers publish, into ArrayRecord files; then any question of it is read
by its place, its images as the bytes of the published files. Names have a variant behind a slash, "slake/en", or none
for the default one. Published files lie in MANUAL_DIR/NAME, prepared ones in DATA_DIR/NAME/VARIANT.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import ON_ERROR, OnError
from medvr_jax.datasets.published.record import PublishedSet, Region
from medvr_jax.datasets.published.registry import SETS
from medvr_jax.errors import UserError

__all__ = ["SETS", "Audit", "PreparedSet", "find_set", "prepare_set", "read_set"]


@dataclasses.dataclass(frozen=True)
class Audit:
    """What a set knows about the first image of a question: all named regions, and an encoded mask or None."""

    regions: tuple[Region, ...]
    mask: bytes | None


class PreparedSet(Sequence[Example]):
    """One split of a prepared set. A question is read when it is asked for; nothing is kept.

    Can be pickled: a copy opens the files for itself.
    """

    def __init__(self, name: str, split: str, data_dir: str | Path) -> None:
        self.name, self.split, self.data_dir = name, split, data_dir
        builder = _open(name, data_dir)
        if split not in builder.info.splits:
            raise UserError(
                f"{name}: prepared without a split {split!r}; there is {', '.join(builder.info.splits)}; "
                f"for another one add its files and delete {builder.data_dir}"
            )
        self.folder = Path(builder.data_dir)
        self._records = builder.as_data_source(split)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        from medvr_jax.datasets.published.builders import decode_example

        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return decode_example(self._fields(index))

    @functools.cached_property
    def ids(self) -> list[str]:
        """The ids of all questions, without reading these."""
        from medvr_jax.datasets.published.builders import IDS

        return json.loads((self.folder / IDS).read_text(encoding="utf-8"))[self.split]

    def audit(self, index: int) -> Audit:
        """Regions and mask of one question's image."""
        from medvr_jax.datasets.published.builders import decode_regions

        fields = self._fields(index)
        return Audit(decode_regions(fields), fields["mask"] or None)

    def _fields(self, index: int) -> dict[str, Any]:
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"{self.name} {self.split} has {len(self)} questions, none at {place}")
        return self._records[place % len(self)]

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedSet, (self.name, self.split, self.data_dir)


def find_set(name: str, field: str = "data.sets") -> tuple[PublishedSet, str]:
    """The set and the variant that a name means; `field` is the config field that errors name."""
    base, slash, variant = name.partition("/")
    if base not in SETS:
        raise UserError(f"{field}: found {name!r}; allowed: {', '.join(SETS)}, with a variant behind a slash")
    published = SETS[base]
    if not slash:
        return published, published.variants[0]
    if variant not in published.variants:
        raise UserError(f"{field}: found {name!r}; variants of {base}: {', '.join(published.variants)}")
    return published, variant


def read_set(
    name: str,
    split: str,
    *,
    data_dir: str | Path,
    manual_dir: str | Path,
    on_error: OnError = "refuse",
    field: str = "data.sets",
) -> PreparedSet:
    """One split of a set, prepared first if it is not yet; on_error holds for what was prepared earlier, too.

    `field` is the config field that names the set, for errors.
    """
    published, variant = find_set(name, field)
    if split not in published.splits:
        raise UserError(f"{field}: {name} has no split {split!r}; allowed: {', '.join(published.splits)}")
    if not _is_prepared(_open(name, data_dir)):
        if not str(manual_dir):
            raise UserError(
                f"data.manual_dir: not set; {name} is read from its folder {published.name}: {published.instructions}"
            )
        published.require(Path(manual_dir) / published.name, variant, split)
    prepare_set(name, data_dir=data_dir, manual_dir=manual_dir, on_error=on_error)
    return PreparedSet(name, split, data_dir)


def prepare_set(name: str, *, data_dir: str | Path, manual_dir: str | Path, on_error: OnError = "refuse") -> Path:
    """Writes the ArrayRecord files of a set, all splits whose files are there; the folder that holds them.

    Faults are listed in faults.jsonl beside it. With "refuse" nothing is written if there is one, and files that were
    prepared without the faulty records are refused; with "skip" the rest is written.
    """
    import tensorflow_datasets as tfds  # takes seconds, which runs without published sets need not wait

    if on_error not in ON_ERROR:
        raise UserError(f"data.on_error: found {on_error!r}; allowed: {', '.join(ON_ERROR)}")
    published, variant = find_set(name)
    builder = _open(name, data_dir)
    if not _is_prepared(builder):
        folder = Path(manual_dir) / published.name
        published.require(folder, variant)
        builder.on_error = on_error
        try:
            builder.download_and_prepare(
                download_dir=os.fspath(Path(data_dir) / "downloads"),
                download_config=tfds.download.DownloadConfig(manual_dir=os.fspath(folder)),
                file_format="array_record",
            )
        except OSError:
            if not _is_prepared(_open(name, data_dir)):  # else another process was faster
                raise
    elif builder.report_path.is_file() and (found := builder.report_path.read_text("utf-8")):
        told = f"{name}: {builder.data_dir} was prepared without {len(found.splitlines())} faulty records"
        told += f", listed in {builder.report_path}"
        if on_error == "refuse":
            raise UserError(f"{told}; allowed: data.on_error='skip', or better files and that folder deleted")
        print(told)
    return Path(builder.data_dir)


def _open(name: str, data_dir: str | Path) -> Any:
    """The builder of a set; without prepared files it has no splits."""
    from medvr_jax.datasets.published.builders import BUILDERS

    published, variant = find_set(name)
    return BUILDERS[published.name](data_dir=os.fspath(data_dir), config=variant)


def _is_prepared(builder: Any) -> bool:
    """As tfds asks it, without its warning if there is nothing yet."""
    return (builder.data_path / "dataset_info.json").exists()
