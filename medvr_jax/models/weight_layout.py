"""Which rows and columns of which tensors in the files make up a parameter, or a part of it.

A parameter, a stack over L layers in most cases, is handled in pieces of at most PIECE_BYTES, so that a host never
holds more than that of it. A piece is the same part of every device's shard: of some layers, some rows of the file.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.safetensors_file import Range
from medvr_jax.models.weight_names import file_shape, names_of, transposed, width_in_file

PIECE_BYTES = 64 * 2**20  # of a piece, all devices' parts together
ParameterPath = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows and columns of one tensor of a stack; `layer` is None where there is no stack."""

    layer: int | None
    rows: tuple[Range, ...]
    columns: Range


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a parameter lies in the files.

    Attributes:
        path: of the parameter.
        shape: of the parameter, [L, …] for a stack.
        turn: see `weight_names`.
        names: of its tensors, one per layer of a stack.
        tensor_shape: of each of them in the file.
        stacked: whether it is a stack.
    """

    path: ParameterPath
    shape: tuple[int, ...]
    turn: str
    names: tuple[str, ...]
    tensor_shape: tuple[int, ...]
    stacked: bool

    @property
    def width(self) -> int:
        """Columns of a tensor seen as a matrix."""
        return width_in_file(self.shape[self.stacked :], self.turn)

    def name(self, layer: int | None) -> str:
        """Of the tensor of a layer."""
        return self.names[layer or 0]

    @property
    def row_axes(self) -> range:
        """Axes of the parameter that are rows in the file, in their order there."""
        first = int(self.stacked)
        if transposed(self.turn):
            return range(first + 1, len(self.shape))
        return range(first, len(self.shape) - (self.width > 1))

    def blocks(self, starts: tuple[int, ...], sizes: tuple[int, ...]) -> Iterator[Block]:
        """The part of the files for a box of the parameter, layer by layer."""
        spans = [(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        rows = self._rows([spans[axis] for axis in self.row_axes])
        column_axes = set(range(int(self.stacked), len(self.shape))) - set(self.row_axes)
        columns = spans[column_axes.pop()] if column_axes else (0, 1)
        for layer in range(*spans[0]) if self.stacked else (None,):
            yield Block(layer, rows, columns)

    def _rows(self, spans: list[Range]) -> tuple[Range, ...]:
        """Ranges of rows, neighbours joined."""
        *outer, (first, last) = spans
        length = self.shape[self.row_axes[-1]]
        ranges: list[Range] = []
        for place in itertools.product(*(range(*span) for span in outer)):
            base = 0
            for axis, at in zip(self.row_axes[:-1], place, strict=True):
                base = base * self.shape[axis] + at
            start, stop = base * length + first, base * length + last
            if ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, stop))
        return tuple(ranges)

    def pieces(self, local: tuple[int, ...], limit: int) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """How a shard of shape `local` is cut into parts of at most `limit` elements: their size and starts.

        All parts have one size, so that one program serves them all; the last overlaps the one before where the shard
        does not divide. One row of a tensor is never cut.
        """
        sizes, starts = list(local), [range(1)] * len(local)
        if self.stacked and math.prod(sizes) > limit:
            sizes[0], starts[0] = _cut(local[0], limit // math.prod(local[1:]))
        rows = self.row_axes[-1]
        if math.prod(sizes) > limit:
            sizes[rows], starts[rows] = _cut(local[rows], limit * local[rows] // math.prod(sizes))
        return tuple(sizes), list(itertools.product(*starts))


def _cut(length: int, most: int) -> tuple[int, list[int]]:
    """Equal parts of at most `most` (and at least 1): their length and starts; the last may overlap."""
    count = -(-length // max(most, 1))
    size = -(-length // count)
    return size, [min(part * size, length - size) for part in range(count)]


def layouts(config: BackboneConfig, flat: dict[ParameterPath, nnx.Variable]) -> list[Layout]:
    """The layout of every parameter that the model has, in the order of the table of names."""
    made = []
    for pattern, dotted, turn in names_of(config):
        path = tuple(dotted.split("."))
        shape, stacked = tuple(flat[path].get_value().shape), "{}" in pattern
        names = tuple(pattern.format(layer) for layer in range(shape[0])) if stacked else (pattern,)
        made.append(Layout(path, shape, turn, names, file_shape(shape[stacked:], turn, config), stacked))
    return made


# ------------------------------------------------------------------------------------------------------ shards


def shard_starts(
    shape: tuple[int, ...], sharding: NamedSharding | None, *, addressable: bool
) -> dict[tuple[int, ...], list[jax.Device | None]]:
    """Where each distinct shard begins in the whole array, and the devices that hold it; None = the default device."""
    if sharding is None:
        return {(0,) * len(shape): [None]}
    every = sharding.addressable_devices_indices_map(shape) if addressable else sharding.devices_indices_map(shape)
    shards: dict[tuple[int, ...], list[jax.Device | None]] = {}
    for device, index in every.items():
        shards.setdefault(tuple(part.start or 0 for part in index), []).append(device)
    return shards


def local_shape(shape: tuple[int, ...], sharding: NamedSharding | None) -> tuple[int, ...]:
    """Of one device's shard."""
    return shape if sharding is None else sharding.shard_shape(shape)


def piece_elements(sharding: NamedSharding | None, dtype: np.dtype) -> int:
    """Elements of a piece on one device; the same on all processes."""
    return PIECE_BYTES // dtype.itemsize // (1 if sharding is None else len(sharding.device_set))
