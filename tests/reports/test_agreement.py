"""What the page shows as votes and consensus against the reward's own functions."""

from __future__ import annotations

import numpy as np
import pytest

from medvr_jax.reports.agreement import agreement, union
from medvr_jax.rewards.consensus import rasterise, tool_reward


def made_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes of all sizes, some thin, some partly or wholly outside, some inverted."""
    corner, size = (
        rng.uniform(-0.2, 1.1, (count, 2)),
        rng.choice([1e-4, 0.01, 0.1, 0.5], (count, 2)) * rng.uniform(0.5, 1.5, (count, 2)),
    )
    boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
    boxes[::17] = boxes[::17, [2, 1, 0, 3]]
    boxes[5] = np.nan
    return boxes


@pytest.mark.parametrize("raster", [8, 64, 100])
def test_masks_are_the_rewards(raster: int) -> None:
    boxes = made_boxes(np.random.default_rng(raster), 400)
    expected = np.asarray(rasterise(boxes[:, None], np.ones((400, 1), bool), raster))
    assert expected.any((1, 2)).sum() > 200
    for box, mask in zip(boxes, expected, strict=True):
        np.testing.assert_array_equal(union([box], raster), mask, str(box))


@pytest.mark.parametrize("popularity", [1.0, 0.1])
def test_votes_and_consensus_are_the_rewards(popularity: float) -> None:
    rng = np.random.default_rng(0)
    groups, slots, most = 12, 6, 3
    corner = rng.uniform(0, 0.5, (groups, slots, most, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 0.5, corner.shape)], -1).astype(np.float32)
    valid, correct = rng.random((groups, slots, most)) < 0.7, rng.random((groups, slots)) < 0.6
    expected = tool_reward(boxes, valid, correct, resolution=64, maximum_popularity=popularity)
    votes = np.asarray(expected.votes)
    assert (votes.sum() == correct.sum()) == (popularity == 1)
    for b in range(groups):
        records = [
            {"boxes": boxes[b, m][valid[b, m]].tolist(), "correct": bool(correct[b, m]), "true_boxes": []}
            | ({"votes": bool(votes[b, m])} if popularity < 1 else {})  # a file may be older than the field
            for m in range(slots)
        ]
        found = agreement(records, 64)
        np.testing.assert_array_equal(found.counts, expected.counts[b])
        np.testing.assert_array_equal(found.mask, expected.consensus[b])
        assert found.voters == votes[b].sum() and found.covered is None
    assert expected.consensus.any()


def test_true_places_and_unknown_answers() -> None:
    record = {"true_boxes": [[0.25, 0.25, 0.75, 0.75]], "correct": True}
    same = [record | {"boxes": [[0, 0, 0.5, 0.5]]} for _ in range(2)] + [record | {"boxes": []}]
    found = agreement(same, 64)
    assert found.mask[:32, :32].all() and found.mask.sum() == 32 * 32 and found.voters == 3 and found.covered == 0.25
    assert found.iou == pytest.approx(0.25 / 1.75) and found.elsewhere is True
    on = agreement([record | {"boxes": [[0.25, 0.25, 0.75, 0.5]]}], 64)  # half of it
    assert on.covered == on.iou == 0.5 and on.elsewhere is False
    unknown = {"boxes": [[0, 0, 1, 0.5]], "correct": None, "true_boxes": []}
    found = agreement([unknown, unknown, unknown | {"boxes": [[0, 0, 1, 1]], "agrees": False}], 8)
    assert found.voters == 2 and found.mask[:4].all() and not found.mask[4:].any()
    alone = agreement([unknown], 8)
    assert alone.voters == 0 and not alone.mask.any()
    nobody = agreement([record | {"boxes": [[0, 0, 1, 1]], "correct": False}], 8)
    assert nobody.voters == 0 and not nobody.mask.any() and nobody.covered == 0
    assert nobody.iou == 0 and nobody.elsewhere is False
    assert unknown["true_boxes"] == [] and agreement([unknown] * 3, 8).elsewhere is None and alone.iou is None
