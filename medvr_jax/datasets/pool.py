"""The questions that a run learns from: several sets as one, less those that a selection drops, in an endless order."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from medvr_jax.datasets.example import Example, Picked
from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.mixing import endless_order
from medvr_jax.datasets.selection import Selection, name_of_set, names_of, select
from medvr_jax.errors import UserError

Sets = Mapping[str, Sequence[Example]]  # by name


class Pool:
    """Random access to the stream by position, whatever the sets read from."""

    def __init__(
        self, sets: Sets, weights: Sequence[float] | None, seed: int, selection: Selection, faults: Faults
    ) -> None:
        """
        Args:
            sets: by name, as the configuration calls them.
            weights: of the sets in the stream; None = all as one.
            seed: of the order.
            selection: of the questions.
            faults: takes those that the selection cannot judge.
        """
        self._sets, self._weights, self._seed = sets, weights, seed
        self._starts = np.cumsum([0, *map(len, sets.values())])  # of the sets, in numbers through all of them
        self._kept = np.arange(self._starts[-1])
        if selection.asks:
            names = [name for key, examples in sets.items() for name in names_of(examples, name_of_set(key))]
            self._kept = select(names, selection, faults)
        sizes = np.diff(np.searchsorted(self._kept, self._starts)).tolist()
        for name, size in zip(sets, sizes, strict=True):
            if not size:
                raise UserError(f"data: no training question of {name} is left")
        self._order = endless_order(sizes, weights, seed)

    def numbers(self, position: int, count: int) -> list[int]:
        """Which questions stand at these positions, as numbers through all sets."""
        return [int(self._kept[self._order[p]]) for p in range(position, position + count)]

    def examples(self, position: int, count: int) -> list[Example]:
        """The questions at these positions, read now; of several sets, ids begin with the set's name."""
        return [self._example(number) for number in self.numbers(position, count)]

    def kept(self) -> Sequence[Example]:
        """All questions of the stream, each once, set by set; ids as in the stream."""
        return Picked(self._example, self._kept.tolist())

    def _example(self, number: int) -> Example:
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        name, examples = self._parts[which]
        example = examples[number - int(self._starts[which])]
        # Published ids are whole numbers, more often than not.
        return example if len(self._parts) == 1 else dataclasses.replace(example, id=f"{name}/{example.id}")

    @functools.cached_property
    def _parts(self) -> list[tuple[str, Sequence[Example]]]:
        return list(self._sets.items())

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the stream: its sets by name, size and ids, what is kept of them, weights and seed."""
        digest = hashlib.blake2s(repr((self._weights, self._seed)).encode(), digest_size=8)
        for name, examples in self._sets.items():
            ids = [identity for _, identity in names_of(examples, name)]
            digest.update(repr((name, len(examples), ids)).encode())
        digest.update(self._kept.astype("<i8").tobytes())
        return digest.hexdigest()
