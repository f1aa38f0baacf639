"""Box rules and conversions, against the definitions and a brute-force search over pixels."""

from __future__ import annotations

import numpy as np
import pytest

from medvr_jax.inputs.boxes import (
    ZoomBox,
    check_zoom_box,
    normalise_box,
    scale_box,
)

RESIZED, ORIGINAL = (112, 112), (448, 448)


def test_spaces_are_inverse_of_each_other():
    box = (10.0, 20.0, 31.0, 45.5)
    assert scale_box(scale_box(box, (140, 84), (999, 333)), (999, 333), (140, 84)) == pytest.approx(box)
    assert scale_box(normalise_box(box, (140, 84)), (1, 1), (140, 84)) == pytest.approx(box)
    assert scale_box((0, 0, 140, 84), (140, 84), (999, 333)) == pytest.approx((0, 0, 999, 333))


def test_a_box_of_the_resized_image_is_cut_from_the_original():
    zoom = check_zoom_box([14, 28, 56, 70], RESIZED, ORIGINAL)
    assert zoom == ZoomBox((56, 112, 224, 280), (0.125, 0.25, 0.5, 0.625))


def test_non_square_scales_differ_by_axis():
    zoom = check_zoom_box([10, 10, 50, 50], (100, 200), (300, 1000))
    assert zoom.original == (30, 50, 150, 250)


def test_clamped_to_the_image():
    assert check_zoom_box([-50, 90, 30, 500], RESIZED, ORIGINAL).original == (0, 360, 120, 448)


def test_short_sides_grow_around_the_centre():
    zoom = check_zoom_box([50, 50, 52, 60], RESIZED, ORIGINAL)  # 8 x 40 pixels of the original
    assert zoom.original == (190, 200, 218, 240)


def test_growth_stays_inside_the_image():
    assert check_zoom_box([0, 0, 1, 1], RESIZED, ORIGINAL).original == (0, 0, 28, 28)
    assert check_zoom_box([111, 111, 112, 112], RESIZED, ORIGINAL).original == (420, 420, 448, 448)
    assert check_zoom_box([1, 1, 5, 5], (20, 20), (20, 20)).original == (0, 0, 20, 20)  # image under the minimum


@pytest.mark.parametrize(
    ("box", "word"),
    [
        ([56, 14, 14, 56], "x1 < x2"),
        ([14, 14, 14, 56], "x1 < x2"),
        ([200, 200, 240, 240], "outside"),
        ([-40, 0, -2, 50], "outside"),
        ([1, 2, 3], "four numbers"),
        ([1, 2, 3, 4, 5], "four numbers"),
        ("1,2,3,4", "four numbers"),
        (None, "four numbers"),
        ([1, 2, "3", 4], "four numbers"),
        ([True, False, 3, 4], "four numbers"),
        ([0, 0, float("nan"), 4], "finite"),
        ([0, 0, float("inf"), 4], "finite"),
        ([0, 0, 10**400, 4], "too large"),
        ([0, 0, 112, 1.1], "aspect"),
    ],
)
def test_invalid_boxes_give_a_reason(box, word):
    reason = check_zoom_box(box, RESIZED, ORIGINAL)
    assert isinstance(reason, str) and word in reason


def test_random_boxes_cover_what_was_asked_and_stay_inside():
    rng = np.random.default_rng(0)
    for _ in range(500):
        original = tuple(int(v) for v in rng.integers(30, 900, 2))
        resized = tuple(int(v) * 28 for v in rng.integers(1, 20, 2))
        box = rng.uniform(-50, 600, 4).round(2)
        zoom = check_zoom_box(box.tolist(), resized, original)
        if isinstance(zoom, str):
            continue
        x1, y1, x2, y2 = zoom.original
        assert 0 <= x1 < x2 <= original[0] and 0 <= y1 < y2 <= original[1]
        assert x2 - x1 >= min(28, original[0]) and y2 - y1 >= min(28, original[1])
        asked = scale_box(box, resized, original)
        assert x1 <= max(asked[0], 0) + 1e-3 and x2 >= min(asked[2], original[0]) - 1e-3
        assert normalise_box(zoom.original, original) == zoom.normalised
