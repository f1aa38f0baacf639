"""Regions of an image painted out, as if there were nothing to see in them. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PixelBox = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels of the image as it is seen

RING_SHARE, RING_LEAST = 1 / 8, 2  # the ring's width: a share of the region's shorter side, and pixels at least


def blank(pixels: np.ndarray, regions: Sequence[PixelBox]) -> np.ndarray:
    """A copy of `pixels [height, width, …]` in which each region has one colour: the mean of a ring around it.

    Pixels of other regions do not count. Where none is left in the ring, the mean of all that is in no region stands
    in for it, and where that is nothing, that of the whole image.
    """
    blanked, outside = pixels.copy(), np.ones(pixels.shape[:2], bool)
    for x1, y1, x2, y2 in regions:
        outside[y1:y2, x1:x2] = False
    for x1, y1, x2, y2 in regions:
        wide = max(RING_LEAST, round(RING_SHARE * min(x2 - x1, y2 - y1)))
        near = slice(max(y1 - wide, 0), y2 + wide), slice(max(x1 - wide, 0), x2 + wide)
        around = pixels[near][outside[near]]
        if not len(around):
            around = pixels[outside] if outside.any() else pixels.reshape(-1, *pixels.shape[2:])
        colour = around.mean(axis=0, dtype=np.float64)
        blanked[y1:y2, x1:x2] = np.rint(colour) if np.issubdtype(pixels.dtype, np.integer) else colour
    return blanked
