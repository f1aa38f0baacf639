"""Published sets as tensorflow-datasets builders, written to and read from ArrayRecord files without TensorFlow.

They build shard by shard: `GeneratorBasedBuilder` needs TensorFlow's file system as soon as a split has more than a
gigabyte, and shuffles. Here the files' order is kept, and memory does not grow with the set.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import Faults, OnError
from medvr_jax.datasets.image_files import Thorough
from medvr_jax.datasets.published.checks import checked
from medvr_jax.datasets.published.record import PublishedSet, Record, Region
from medvr_jax.datasets.published.registry import SETS
from medvr_jax.errors import UserError

VERSION = "1.0.0"  # of the record layout: another one is another folder
REPORT = "faults.jsonl"  # in the folder of a prepared variant
IDS = "ids.json"  # beside the prepared files: of each split, in order
_SHARD_BYTES = 1 << 27  # of images, about: tfds keeps the examples of a shard in memory until it is written

_TEXTS = ("id", "question", "answer", "answer_kind", "modality", "dataset", "question_type", "language")


def features() -> tfds.features.FeaturesDict:
    """The record of one question. Images and the mask are encoded files, boxes float64 [boxes, 4]."""
    boxes = tfds.features.Tensor(shape=(None, 4), dtype=np.float64, encoding="bytes")
    return tfds.features.FeaturesDict(
        {
            **{name: tfds.features.Text() for name in _TEXTS},
            "images": tfds.features.Sequence(tfds.features.Text()),
            "options": tfds.features.Sequence(tfds.features.Text()),
            "boxes": boxes,
            "region_labels": tfds.features.Sequence(tfds.features.Text()),
            "region_boxes": boxes,
            "mask": tfds.features.Text(),
        }
    )


def encode(record: Record) -> dict[str, Any]:
    """A record as `features` describes it, its images read."""
    example = record.example
    return {
        **{name: getattr(example, name) for name in _TEXTS},
        "images": [image if isinstance(image, bytes) else Path(image).read_bytes() for image in example.images],
        "options": list(example.options),
        "boxes": _array(example.boxes),
        "region_labels": [region.label for region in record.regions],
        "region_boxes": _array([region.box for region in record.regions]),
        "mask": record.mask.read_bytes() if record.mask else b"",
    }


def decode_example(fields: dict[str, Any]) -> Example:
    """The Example of a record that was read back."""
    return Example(
        **{name: fields[name].decode() for name in _TEXTS},
        images=tuple(fields["images"]),
        options=tuple(option.decode() for option in fields["options"]),
        boxes=_boxes(fields["boxes"]),
    )


def decode_regions(fields: dict[str, Any]) -> tuple[Region, ...]:
    labels = (label.decode() for label in fields["region_labels"])
    return tuple(Region(label, box) for label, box in zip(labels, _boxes(fields["region_boxes"]), strict=True))


def _array(boxes: Any) -> np.ndarray:
    return np.asarray(boxes, np.float64).reshape(-1, 4)


def _boxes(array: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in box) for box in array)


class _PlainWriter:
    """Writes a shard as tfds does, except that images, which are compressed, are not compressed again."""

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> None:
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        for _, example in examples:
            writer.write(example)
        writer.close()


class PublishedBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """One published set; its variants are the builder's configurations.

    All records and images are looked at before any is written, so that faults are known, listed and, with `on_error`
    "refuse", end it early. Splits whose files are not there, or that have no sound record, are left out.
    """

    SET: PublishedSet
    VERSION = tfds.core.Version(VERSION)
    on_error: OnError = "refuse"

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        self._ids: dict[str, list[str]] = {}
        super()._download_and_prepare(dl_manager, download_config)
        (Path(self.data_path) / IDS).write_text(json.dumps(self._ids), encoding="utf-8")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=self.SET.title,
            features=features(),
            homepage=self.SET.homepage or None,
            license=self.SET.licence,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[Any]]]]:
        folder, variant = Path(dl_manager.manual_dir), self.builder_config.name
        faults = Faults(f"{self.SET.name}/{variant}")
        surveys = {split: self._survey(folder, split, faults) for split in self.SET.require(folder, variant)}
        faults.list = list(dict.fromkeys(faults.list))  # readers of several splits meet some twice
        # Until all is written, data_path is a folder that vanishes with an error; the report has to stay.
        faults.write_report(self.report_path)
        faults.check(self.on_error)
        if faults:
            print(f"left out: {faults.summary()}")
        shards = {split: self._shards(folder, split, survey) for split, survey in surveys.items() if survey.records}
        if not shards:
            listed = f"; all {len(faults)} faults are listed in {faults.report}" if len(faults) else ""
            raise UserError(f"{self.SET.name}/{variant}: {folder} holds no usable question{listed}")
        return shards

    def _example_writer(self) -> _PlainWriter:
        return _PlainWriter()

    def _log_download_bytes(self) -> None:
        """Says nothing: nothing is downloaded."""

    _log_download_done = _log_download_bytes

    @property
    def report_path(self) -> Path:
        """Beside the folder of this version of the prepared variant."""
        return Path(self._data_dir_root) / self.name / self.builder_config.name / REPORT

    def _survey(self, folder: Path, split: str, faults: Faults) -> _Survey:
        survey, before = _Survey(), len(faults)
        for record in self._records(folder, split, faults, "checking", "pixels"):
            survey.records += 1
            survey.bytes += sum(
                len(image) if isinstance(image, bytes) else Path(image).stat().st_size
                for image in record.example.images
            )
        survey.faulty |= {fault.where for fault in faults.list[before:]}
        return survey

    def _shards(self, folder: Path, split: str, survey: _Survey) -> list[Callable[[], Iterator[Any]]]:
        """Shards are written one after the other: each takes its share of one stream."""
        number = 1 + survey.bytes // _SHARD_BYTES
        size = -(-survey.records // number)
        known = Faults("")  # they were collected by the survey
        ids = self._ids[split] = []

        def encoded() -> Iterator[tuple[int, dict[str, Any]]]:
            for record in self._records(folder, split, known, "writing", "header"):
                if record.where not in survey.faulty:
                    ids.append(record.example.id)
                    yield len(ids), encode(record)

        examples = encoded()
        return [lambda: itertools.islice(examples, size)] * (-(-survey.records // size))

    def _records(self, folder: Path, split: str, faults: Faults, what: str, look_at: Thorough) -> Iterator[Record]:
        variant = self.builder_config.name
        records = checked(self.SET.read(folder, variant, split, faults), faults, look_at)
        # Shown on terminals alone.
        return tqdm(
            records, desc=f"{what} {self.SET.name}/{variant} {split}", mininterval=1.0, disable=None, leave=False
        )


@dataclasses.dataclass
class _Survey:
    """How much there is to write of a split, and the places of what is not."""

    records: int = 0
    bytes: int = 0
    faulty: set[str] = dataclasses.field(default_factory=set)


def _builder(published: PublishedSet) -> type[PublishedBuilder]:
    """The builder class of a set, registered with tfds under the set's name."""
    name = "".join(word.capitalize() for word in published.name.split("_"))
    configs = [tfds.core.BuilderConfig(name=variant, description=published.title) for variant in published.variants]
    return type(
        name,
        (PublishedBuilder,),
        {
            "__doc__": published.title,
            "__module__": __name__,
            "SET": published,
            "BUILDER_CONFIGS": configs,
            "MANUAL_DOWNLOAD_INSTRUCTIONS": published.instructions,
        },
    )


BUILDERS: dict[str, type[PublishedBuilder]] = {name: _builder(published) for name, published in SETS.items()}
