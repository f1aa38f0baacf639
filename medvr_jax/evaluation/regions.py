"""Where a masking test blanks: the regions that boxes name, and as much elsewhere. Whole pixels; no image is needed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from medvr_jax.inputs.blanking import PixelBox
from medvr_jax.inputs.boxes import Size, scale_box

_ROUNDING = 1e-6  # of a pixel: a side that is whole up to rounding does not grow


def pixel_boxes(boxes: Sequence[Sequence[float]], size: Size) -> tuple[PixelBox, ...]:
    """The whole pixels of an image of this (width, height) that normalised boxes touch; of each box one at least."""
    found = []
    for box in boxes:
        x1, y1, x2, y2 = scale_box(box, (1, 1), size)
        (left, right), (top, bottom) = _touched(x1, x2, size[0]), _touched(y1, y2, size[1])
        found.append((left, top, right, bottom))
    return tuple(dict.fromkeys(found))


def _touched(low: float, high: float, limit: int) -> tuple[int, int]:
    first = min(max(math.floor(low + _ROUNDING), 0), limit - 1)
    return first, max(min(math.ceil(high - _ROUNDING), limit), first + 1)


def overlap(first: Sequence[PixelBox], second: Sequence[PixelBox]) -> bool:
    """Whether two regions share a pixel."""
    return any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a in first for b in second)


def generator_of(*names: str) -> np.random.Generator:
    """Random numbers that depend on these names alone."""
    digest = hashlib.blake2s("\n".join(names).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def elsewhere(boxes: Sequence[PixelBox], size: Size, generator: np.random.Generator) -> tuple[PixelBox, ...]:
    """The same boxes, moved together to another place inside the image of this (width, height).

    Every place where no moved box meets any of the boxes is as likely. Where there is no such place, one of those is
    drawn at which they overlap least, the overlaps added up box by box.
    """
    corners = np.array(boxes, np.int64)
    axes = [_Axis(corners[:, axis], corners[:, axis + 2], size[axis]) for axis in range(2)]
    # Whether a pair overlaps along an axis can only change at a stretch's first move.
    x, y = axes
    free = (x.overlaps(x.stretches[:-1]) @ y.overlaps(y.stretches[:-1]).T) == 0
    places = np.cumsum(np.where(free, np.outer(np.diff(x.stretches), np.diff(y.stretches)), 0))
    if places[-1]:
        drawn = int(generator.integers(places[-1]))
        cell = int(np.searchsorted(places, drawn, side="right"))
        column, row = divmod(cell, free.shape[1])
        across, down = divmod(drawn - int(places[cell - 1] if cell else 0), int(np.diff(y.stretches)[row]))
        move = int(x.stretches[column]) + across, int(y.stretches[row]) + down
    else:
        # The overlap is linear in either direction between bends: it is least where two of these meet.
        shared = x.overlaps(x.bends) @ y.overlaps(y.bends).T
        least = np.argwhere(shared == shared.min())
        column, row = least[generator.integers(len(least))]
        move = int(x.bends[column]), int(y.bends[row])
    return tuple((a + move[0], b + move[1], c + move[0], d + move[1]) for a, b, c, d in boxes)


class _Axis:
    """The moves along one axis that keep all boxes inside the image.

    Attributes:
        stretches: moves at which a pair of boxes may begin or cease to overlap, and the one after the last, ascending.
        bends: moves at which the overlap of a pair may change its slope, and the first and the last.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, side: int) -> None:
        self._low, self._high = low, high
        first, last = -int(low.min()), side - int(high.max())
        meet, part = np.subtract.outer(low, high).ravel(), np.subtract.outer(high, low).ravel()
        self.stretches = np.unique(np.clip(np.concatenate([[first, last + 1], meet + 1, part]), first, last + 1))
        level = [np.subtract.outer(edge, edge).ravel() for edge in (low, high)]
        self.bends = np.unique(np.clip(np.concatenate([[first, last], meet, part, *level]), first, last))

    def overlaps(self, moves: np.ndarray) -> np.ndarray:
        """Pixels along this axis that each moved box shares with each box: moves [n] -> [n, pairs] float64."""
        low, high = (moves[:, None, None] + edge[:, None] for edge in (self._low, self._high))
        shared = np.minimum(high, self._high) - np.maximum(low, self._low)
        return np.maximum(shared, 0).reshape(len(moves), -1).astype(np.float64)
