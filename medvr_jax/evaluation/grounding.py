"""How well zoom boxes agree with the true ones. Boxes are normalised (x1, y1, x2, y2); audits only, never rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Box = Sequence[float]

ELSEWHERE = 0.5  # a consensus that holds less than this share of the true boxes' area points elsewhere


def area(box: Box) -> float:
    """0 for an inverted or degenerate box."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def intersection(first: Box, second: Box) -> float:
    return area(
        (max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3]))
    )


def iou(zoom: Box, true: Box) -> float:
    """Intersection over union; 0 when either box is empty."""
    common = intersection(zoom, true)
    union = area(zoom) + area(true) - common
    return common / union if common > 0 else 0.0


def hit(zoom: Box, true: Box) -> bool:
    """The zoom contains the true box's centre and at least half of the true box's area."""
    x, y = (true[0] + true[2]) / 2, (true[1] + true[3]) / 2
    holds_centre = zoom[0] <= x <= zoom[2] and zoom[1] <= y <= zoom[3]
    return holds_centre and area(true) > 0 and intersection(zoom, true) >= 0.5 * area(true)


def any_hit(zooms: Sequence[Box], true_boxes: Sequence[Box]) -> bool:
    """Some zoom of a trajectory hits some true box."""
    return any(hit(zoom, true) for zoom in zooms for true in true_boxes)


def mask_overlap(masks: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU of masks with those of the true boxes, and the share of the latter that they hold: [..., R, R] bool each ->
    [...] float64 each, 0 where a denominator is."""
    shared, joined, area = (x.sum((-2, -1)) for x in (masks & true, masks | true, true))
    return shared / np.maximum(joined, 1), shared / np.maximum(area, 1)


def best_iou(zooms: Sequence[Box], true_boxes: Sequence[Box]) -> float:
    """The best IoU of any zoom with any true box; 0 when there is none."""
    return max((iou(zoom, true) for zoom in zooms for true in true_boxes), default=0.0)
