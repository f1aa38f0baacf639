"""Hits and IoU against counting pixels."""

from __future__ import annotations

import numpy as np
import pytest

from medvr_jax.evaluation.grounding import any_hit, area, best_iou, hit, intersection, iou, mask_overlap


def mask(box, side=50):
    axis = (np.arange(side) + 0.5) / side
    return ((axis[:, None] > box[1]) & (axis[:, None] < box[3])) & ((axis > box[0]) & (axis < box[2]))


def test_against_counted_pixels():
    rng = np.random.default_rng(0)
    for _ in range(300):
        zoom, true = (np.concatenate([c, c + rng.integers(1, 25, 2)]) / 50 for c in rng.integers(0, 26, (2, 2)))
        a, b = mask(zoom), mask(true)
        assert iou(zoom, true) == pytest.approx((a & b).sum() / (a | b).sum())
        centre = (true[:2] + true[2:]) / 2
        inside = bool((zoom[:2] <= centre).all() and (centre <= zoom[2:]).all())
        assert hit(zoom, true) == (inside and (a & b).sum() * 2 >= b.sum())


def test_edges():
    true = (0.4, 0.4, 0.6, 0.6)
    assert hit((0.4, 0.4, 0.5, 0.6), true)  # the centre on the border, half of the area
    assert not hit((0.4, 0.4, 0.5, 0.5), true)  # the centre, but a quarter only
    assert not hit((0.6, 0.6, 0.4, 0.4), true) and iou((0.6, 0.6, 0.4, 0.4), true) == 0.0
    assert not hit((0, 0, 1, 1), (0.5, 0.5, 0.5, 0.5))
    assert not any_hit([], [true]) and best_iou([], [true]) == 0.0
    assert any_hit([(0, 0, 0.1, 0.1), true], [true]) and best_iou([(0, 0, 0.1, 0.1), true], [true]) == pytest.approx(1)


def test_masks_overlap_as_boxes_do() -> None:
    """Boxes whose edges are on the lines of the raster have the same IoU as their masks."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, 24, (2, 200, 2))
    high = low + rng.integers(1, 9, low.shape)
    masks = np.zeros((2, 200, 32, 32), bool)
    for place in np.ndindex(2, 200):
        masks[place][low[place][1] : high[place][1], low[place][0] : high[place][0]] = True
    first, second = np.concatenate([low, high], -1) / 32
    ious, held = mask_overlap(*masks)
    np.testing.assert_allclose(ious, [iou(one, other) for one, other in zip(first, second, strict=True)])
    np.testing.assert_allclose(
        held, [intersection(one, other) / area(other) for one, other in zip(first, second, strict=True)]
    )
    assert (held > 0).sum() > 10
    nothing = np.zeros((32, 32), bool)
    assert mask_overlap(masks[0, 0], nothing) == mask_overlap(nothing, nothing) == (0, 0)
