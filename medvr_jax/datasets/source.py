"""One protocol over all data: a stream of training examples by position, and a fixed list of test examples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medvr_jax.datasets.example import Example, Picked
from medvr_jax.datasets.faults import Faults, OnError
from medvr_jax.datasets.mixing import parse_sets
from medvr_jax.datasets.pool import Pool, Sets
from medvr_jax.datasets.questions import read_questions
from medvr_jax.datasets.selection import Selection
from medvr_jax.datasets.synthetic import SyntheticTask
from medvr_jax.errors import UserError

SPLITS = ("train", "test")


class ExampleSource(Protocol):
    """Where a run gets its examples; the position in the stream is all the state there is.

    All processes of a run have the same stream, and each reads the positions that are its own.

    alike: whether all examples need the same room, so that a look at a few tells.
    """

    alike: bool

    def prepare(self, splits: Iterable[str]) -> None:
        """Makes what these splits need on disk and is not there yet; one process does it before any loads."""

    def load(self, splits: Iterable[str]) -> None:
        """Opens and checks these of the splits now, which else happens when they are first needed."""

    def train(self, position: int, count: int) -> list[Example]:
        """Examples position … position + count − 1 of an endless stream."""

    def keys(self, position: int, count: int) -> list[Hashable]:
        """Which examples stand there, without reading them: where keys are equal, the examples are."""

    def learned(self) -> Sequence[Example]:
        """All examples of the stream, each once; UserError where there is no end of them."""

    def test(self, count: int) -> list[Example]:
        """`count` held-out examples, the same ones each time, or all when there are fewer."""

    def test_sets(self, count: int | None = None) -> dict[str, Sequence[Example]]:
        """The same by set, read when they are needed; all of them without a count."""

    def fingerprint(self) -> str:
        """Another one where another stream is; empty where the stream follows from the configuration alone."""


class SyntheticSource:
    """The synthetic task. Runs of different seeds train on different images and are tested on the same ones."""

    alike = True

    def __init__(self, task: SyntheticTask, seed: int) -> None:
        self.task = task
        self._offset = seed << 40  # far more than any run reads

    def prepare(self, splits: Iterable[str]) -> None:
        """There is nothing to make."""

    def load(self, splits: Iterable[str]) -> None:
        """There is nothing to open."""

    def train(self, position: int, count: int) -> list[Example]:
        return [self.task.example("train", self._offset + position + i) for i in range(count)]

    def keys(self, position: int, count: int) -> list[Hashable]:
        return list(range(position, position + count))

    def learned(self) -> Sequence[Example]:
        raise _endless()

    def test(self, count: int) -> list[Example]:
        return [self.task.example("test", i) for i in range(count)]

    def test_sets(self, count: int | None = None) -> dict[str, Sequence[Example]]:
        if count is None:
            raise _endless()
        return {"synthetic": Picked(functools.partial(self.task.example, "test"), range(count))}

    def fingerprint(self) -> str:
        return ""


def _endless() -> UserError:
    return UserError("data.name: found 'synthetic', whose examples never end; allowed here are jsonl and sets")


class SetSource:
    """Sets of questions, the user's own or published ones, each split read once."""

    alike = False

    def __init__(
        self,
        read: Callable[[str], Sets],
        *,
        prepare: Callable[[str], None] = lambda split: None,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        selection: Selection | None = None,
        on_error: OnError = "refuse",
        report_folder: Path | None = None,
    ) -> None:
        """
        Args:
            read: a split's sets by name.
            prepare: makes what a split needs on disk.
            weights: of the sets in the training stream; None = all as one.
            seed: of the order.
            selection: of training questions.
            on_error: refuse a training question that the selection cannot judge, or skip it.
            report_folder: where such questions are listed.
        """
        self._read, self._prepare, self._weights, self._seed = read, prepare, weights, seed
        self._selection, self._on_error = selection or Selection(), on_error
        self._report_folder = report_folder

    def prepare(self, splits: Iterable[str]) -> None:
        for split in splits:
            self._prepare(split)

    def load(self, splits: Iterable[str]) -> None:
        """What is wrong with several of the splits is told together."""
        errors = []
        for split in splits:
            try:
                _ = self._pool if split == "train" else self._tested
            except UserError as error:
                errors.append(str(error))
        if errors:
            raise UserError("; ".join(dict.fromkeys(errors)))

    @functools.cached_property
    def _pool(self) -> Pool:
        faults = Faults("data.filter_file")
        pool = Pool(self._read("train"), self._weights, self._seed, self._selection, faults)
        if faults and self._report_folder:
            faults.write_report(self._report_folder / "not_scored.jsonl")
        faults.check(self._on_error)
        if faults:
            print(f"skipped {len(faults)} training questions: {faults.summary()}")
        return pool

    @functools.cached_property
    def _tested(self) -> Sets:
        return self._read("test")

    def train(self, position: int, count: int) -> list[Example]:
        return self._pool.examples(position, count)

    def keys(self, position: int, count: int) -> list[Hashable]:
        return self._pool.numbers(position, count)

    def learned(self) -> Sequence[Example]:
        return self._pool.kept()

    def test(self, count: int) -> list[Example]:
        return [example for examples in self.test_sets(count).values() for example in examples]

    def test_sets(self, count: int | None = None) -> dict[str, Sequence[Example]]:
        """As many of each set, spread evenly over it, since published files are sorted by this or that."""
        sizes = {name: len(examples) for name, examples in self._tested.items()}
        shares = list(sizes.values()) if count is None else _shares(count, list(sizes.values()))
        return {
            name: Picked(self._tested[name].__getitem__, np.linspace(0, size - 1, share).astype(int).tolist())
            for (name, size), share in zip(sizes.items(), shares, strict=True)
            if share
        }

    def fingerprint(self) -> str:
        return self._pool.fingerprint


def _shares(count: int, sizes: Sequence[int]) -> list[int]:
    """`count` things out of sets of these sizes, as evenly as the small ones allow."""
    shares = [0] * len(sizes)
    for left, which in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[which] = min(sizes[which], (count - sum(shares)) // (len(sizes) - left))
    return shares


def make_source(data: Any, seed: int, report_folder: Path | None = None) -> ExampleSource:
    """The source that a config's `data` section names; what is wrong with it is listed in `report_folder`."""
    if data.name == "synthetic":
        return SyntheticSource(SyntheticTask(**dict(data.synthetic)), seed)
    names, weights = parse_sets(data.sets) if data.name == "sets" else (("jsonl",), None)

    @functools.cache
    def published(name: str, split: str) -> Sequence[Example]:
        from medvr_jax.datasets import sets  # needs more packages than the user's own data

        return sets.read_set(name, split, data_dir=data.data_dir, manual_dir=data.manual_dir, on_error=data.on_error)

    def prepare(split: str) -> None:
        for name in names:
            if name != "jsonl":
                published(name, split)

    def read(split: str) -> Sets:
        return {name: _own(data, split, report_folder) if name == "jsonl" else published(name, split) for name in names}

    bounds = {name: data[f"filter_{name}"] for name in ("file", "rule", "minimum", "maximum")}
    selection = Selection(**bounds, count=data.train_examples)
    return SetSource(
        read,
        prepare=prepare,
        weights=weights,
        seed=seed,
        selection=selection,
        on_error=data.on_error,
        report_folder=report_folder,
    )


def _own(data: Any, split: str, report_folder: Path | None) -> list[Example]:
    """The user's own questions."""
    field, path = f"data.{split}_file", data[f"{split}_file"]
    if not path:
        raise UserError(
            f"{field}: not set; {'training' if split == 'train' else 'evaluation'} needs a JSONL or CSV file"
        )
    return read_questions(
        path,
        data.image_folder,
        field=field,
        on_error=data.on_error,
        look_at=data.check_images,
        report=report_folder and report_folder / f"{split}_file.jsonl",
    )
