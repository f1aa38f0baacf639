"""Zoom boxes and their three spaces: the only place that converts between them.

The model speaks pixels of the *resized* image that the vision tower saw; crops are cut from the *original* image; masks
and audits use *normalised* [0, 1] coordinates. A box is (x1, y1, x2, y2), x to the right and y downwards, in every
space. Nothing else in the package multiplies a box by a scale.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]
Size = tuple[int, int]  # (width, height)

MINIMUM_SIDE = 28  # pixels of the original: one merged visual token
MAXIMUM_ASPECT = 100.0


@dataclasses.dataclass(frozen=True)
class ZoomBox:
    """A box that may be cut: whole pixels of the original image, and the same region normalised."""

    original: tuple[int, int, int, int]
    normalised: Box


def scale_box(box: Sequence[float], source: Size, target: Size) -> Box:
    """The same region in another image size. box: 4 numbers in pixels of `source` -> pixels of `target`."""
    scale_x, scale_y = target[0] / source[0], target[1] / source[1]
    x1, y1, x2, y2 = box
    return (x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y)


def normalise_box(box: Sequence[float], size: Size) -> Box:
    """Pixels of an image of `size` -> [0, 1]."""
    return scale_box(box, size, (1, 1))


def check_zoom_box(
    box: object,
    resized_size: Size,
    original_size: Size,
    *,
    minimum_side: int = MINIMUM_SIDE,
    maximum_aspect: float = MAXIMUM_ASPECT,
) -> ZoomBox | str:
    """The region to cut for a call's `bbox_2d`, or the reason why there is none (a sentence for the model).

    box: what the JSON held, in pixels of the resized image. It is clamped to the image, refused when degenerate or too
    elongated, and short sides are enlarged around the centre, inside the image, to `minimum_side` original pixels.
    """
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        return "bbox_2d must be a list of four numbers."
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in box):
        return "bbox_2d must be a list of four numbers."
    try:
        numbers = [float(v) for v in box]
    except OverflowError:
        return "bbox_2d holds a number that is too large."
    if not all(math.isfinite(v) for v in numbers):
        return "bbox_2d must hold finite numbers."
    x1, y1, x2, y2 = scale_box(numbers, resized_size, original_size)
    if x2 <= x1 or y2 <= y1:
        return "bbox_2d must satisfy x1 < x2 and y1 < y2."
    width, height = original_size
    x1, x2 = max(x1, 0.0), min(x2, float(width))
    y1, y2 = max(y1, 0.0), min(y2, float(height))
    if x2 <= x1 or y2 <= y1:
        return "bbox_2d lies outside the image."
    if max((x2 - x1) / (y2 - y1), (y2 - y1) / (x2 - x1)) > maximum_aspect:
        return f"bbox_2d must have an aspect ratio of at most {maximum_aspect:g}."
    left, right = _whole_interval(x1, x2, minimum_side, width)
    top, bottom = _whole_interval(y1, y2, minimum_side, height)
    region = (left, top, right, bottom)
    return ZoomBox(original=region, normalised=normalise_box(region, original_size))


def _whole_interval(low: float, high: float, minimum: int, limit: int) -> tuple[int, int]:
    """The whole-pixel interval around [low, high], at least `minimum` long where the image's side `limit` allows it."""
    if high - low < minimum:
        centre = (low + high) / 2
        low, high = centre - minimum / 2, centre + minimum / 2
        shift = max(0.0, -low) - max(0.0, high - limit)  # back inside, not cut off
        low, high = low + shift, high + shift
    # The tolerance keeps a side that is whole up to rounding from growing by a pixel.
    return max(0, math.floor(low + 1e-6)), min(limit, math.ceil(high - 1e-6))
