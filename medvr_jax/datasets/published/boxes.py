"""Boxes as published -> normalised (x1, y1, x2, y2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from medvr_jax.datasets.published.record import Box

Size = tuple[float, float]  # (width, height) of what the numbers are relative to
_SLACK = 0.02  # annotations may stick out of the image by this share of it, and are cut off


def from_corner_and_size(numbers: Any, size: Size) -> Box:
    """[x, y, width, height] in pixels of an image of this size."""
    x, y, width, height = _four(numbers)
    return _normalised((x, y, x + width, y + height), size)


def from_corners(numbers: Any, size: Size = (1.0, 1.0)) -> Box:
    """[x1, y1, x2, y2] in pixels of an image of this size; without one, they are normalised already."""
    return _normalised(_four(numbers), size)


def from_mask(mask: np.ndarray) -> Box:
    """The smallest box around all pixels of a mask [H, W] that are not zero."""
    rows, columns = np.any(mask, axis=1), np.any(mask, axis=0)
    if not rows.any():
        raise ValueError("the mask is empty")
    top, bottom = np.flatnonzero(rows)[[0, -1]]
    left, right = np.flatnonzero(columns)[[0, -1]]
    height, width = mask.shape
    return (float(left / width), float(top / height), float((right + 1) / width), float((bottom + 1) / height))


def _four(numbers: Any) -> tuple[float, float, float, float]:
    valid = isinstance(numbers, (list, tuple)) and len(numbers) == 4
    if not valid or not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in numbers
    ):
        raise ValueError(f"found box {numbers!r}; allowed: four numbers")
    return tuple(float(v) for v in numbers)


def _normalised(box: Box, size: Size) -> Box:
    width, height = size
    scaled = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
    if min(scaled) < -_SLACK or max(scaled) > 1 + _SLACK:
        raise ValueError(f"found box {list(box)}, which is outside an image of {width:g} x {height:g}")
    x1, y1, x2, y2 = (min(max(v, 0.0), 1.0) for v in scaled)
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"found box {list(box)}, which has no area")
    return (x1, y1, x2, y2)
