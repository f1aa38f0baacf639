"""Copies of images for the page."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from medvr_jax.reports.agreement import agreement
from medvr_jax.reports.pictures import small_copy


def test_noise_can_be_copied() -> None:
    """More than a byte for each pixel."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    copy, size = small_copy(buffer.getvalue())
    assert size == (400, 300) and len(copy) > 400 * 300


def test_who_votes() -> None:
    boxes = ([[0, 0, 0.5, 1]], [[0.5, 0, 1, 1]])
    records = [{"boxes": box, "true_boxes": [], "correct": None} for box in boxes]
    assert agreement(records, 2).voters == 2
    found = agreement([{**records[0], "agrees": False}, {**records[1], "agrees": True}], 2)
    assert found.voters == 1 and found.counts.tolist() == [[0, 1], [0, 1]]
    assert agreement([{**records[0], "correct": False}, {**records[1], "correct": True}], 2).voters == 1
