"""Pictures of an answer: lines lie where the boxes are, and can be seen at every size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medvr_jax.asking.drawing import AGREEING, annotate, enlarged, heat_map


@pytest.mark.parametrize("size", [(64, 64), (512, 300), (3000, 2000)])
def test_boxes_can_be_seen_at_every_size(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (90, 90, 90))
    drawn = annotate(image, [((0.25, 0.5, 0.75, 0.9), "1", AGREEING)])
    assert image.getpixel((size[0] // 4, size[1] // 2)) == (90, 90, 90)  # the original stays
    factor = drawn.width // size[0]
    assert drawn.size == (size[0] * factor, size[1] * factor) and max(drawn.size) >= 512
    coloured = (np.asarray(drawn) == AGREEING).all(-1)
    rows, columns = np.flatnonzero(coloured.any(1)), np.flatnonzero(coloured.any(0))
    assert columns[0] == drawn.width // 4 and abs(columns[-1] - drawn.width * 0.75) <= 1
    assert abs(rows[-1] - drawn.height * 0.9) <= 1
    middle = coloured[:, drawn.width // 2]
    thickness = middle[round(drawn.height * 0.8) :].sum()
    assert thickness >= max(2, max(drawn.size) // 320)  # the lower line
    label = np.flatnonzero(coloured[:, drawn.width // 4 + 1])
    assert label[0] < drawn.height * 0.5 - max(drawn.size) / 45  # letters above the box


def test_labels_stay_inside() -> None:
    drawn = annotate(Image.new("RGB", (600, 600)), [((0.99, 0.0, 1.0, 0.01), "12", AGREEING)])
    assert drawn.size == (600, 600) and (np.asarray(drawn) == AGREEING).all(-1).any()


def test_heat_where_they_looked() -> None:
    counts = np.zeros((4, 4), int)
    counts[1, 2], counts[3, 3] = 4, 1
    found = np.asarray(heat_map(Image.new("RGB", (800, 800), (100, 0, 0)), counts, 4, counts == 4), np.int64)
    grey = round(100 * 0.299)
    assert (found[50, 50] == grey).all()
    strong, weak = found[300, 500], found[700, 700]
    assert np.abs(strong - (0.4 * grey + 0.6 * np.array(AGREEING))).max() <= 1.5
    assert np.abs(weak - (0.85 * grey + 0.15 * np.array(AGREEING))).max() <= 1.5
    assert (found[200:400, 400:600] == 255).all(-1).any()  # the outline of the mask
    assert enlarged(Image.new("RGB", (64, 32))).size == (512, 256)
