"""One protocol over all data: a stream of training examples by position, and a fixed list of test examples."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.jsonl import read_jsonl
from medvr_jax.datasets.synthetic import SyntheticTask
from medvr_jax.errors import UserError


class ExampleSource(Protocol):
    """Where a run gets its examples; the position in the stream is all the state there is.

    alike: whether all examples need the same room, so that a look at a few tells.
    """

    alike: bool

    def train(self, position: int, count: int) -> list[Example]:
        """Examples position … position + count − 1 of an endless stream."""

    def test(self, count: int) -> list[Example]:
        """The first `count` held-out examples, or all when there are fewer."""


class SyntheticSource:
    """The synthetic task. Runs of different seeds train on different images and are tested on the same ones."""

    alike = True

    def __init__(self, task: SyntheticTask, seed: int) -> None:
        self.task = task
        self._offset = seed << 40  # far more than any run reads

    def train(self, position: int, count: int) -> list[Example]:
        return [self.task.example("train", self._offset + position + i) for i in range(count)]

    def test(self, count: int) -> list[Example]:
        return [self.task.example("test", i) for i in range(count)]


class JsonlSource:
    """The user's files. Training order is a fresh permutation per epoch, a pure function of (seed, epoch)."""

    alike = False

    def __init__(
        self, train_file: str | Path | None, test_file: str | Path | None, image_folder: str | Path, seed: int
    ) -> None:
        self._train = read_jsonl(train_file, image_folder, field="data.train_file") if train_file else []
        self._test = read_jsonl(test_file, image_folder, field="data.test_file") if test_file else []
        self._seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._train))

    def train(self, position: int, count: int) -> list[Example]:
        if not self._train:
            raise UserError("data.train_file: not set; training needs a JSONL file")
        size = len(self._train)
        return [self._train[self._order(p // size)[p % size]] for p in range(position, position + count)]

    def test(self, count: int) -> list[Example]:
        if not self._test:
            raise UserError("data.test_file: not set; evaluation needs a JSONL file")
        return self._test[:count]


def make_source(data: Any, seed: int) -> ExampleSource:
    """The source that a config's `data` section names."""
    if data.name == "synthetic":
        return SyntheticSource(SyntheticTask(**dict(data.synthetic)), seed)
    if data.name == "jsonl":
        return JsonlSource(data.train_file, data.test_file, data.image_folder, seed)
    raise UserError(f"data.name: found {data.name!r}; allowed: synthetic, jsonl")
