"""Votes without habits: popularity against a NumPy loop over sets of pixels, and what CCA makes of it."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from medvr_jax.rewards.consensus import popularity
from tests.rewards.test_consensus import (
    HERE,
    THERE,
    R,
    group,
    random_groups,
    reference_group,
    reference_mask,
    tool_reward,
)

ELSEWHERE = (0.05, 0.7, 0.3, 0.95)


def reference_popularity(boxes: np.ndarray, valid: np.ndarray, correct: np.ndarray, eta: float) -> list[list[float]]:
    """[B, M, Z, 4], [B, M, Z], [B, M] -> [B][M], pair by pair with sets of pixels."""
    groups = range(len(boxes))
    looks = [
        [set(np.flatnonzero(reference_mask(b, v, R))) for b, v in zip(boxes[g], valid[g], strict=True)] for g in groups
    ]
    found = []
    for g in groups:
        others = [
            look for h in groups if h != g for look, right in zip(looks[h], correct[h], strict=True) if right and look
        ]
        found.append([sum(len(own & o) > eta * len(own | o) for o in others) / max(len(others), 1) for own in looks[g]])
    return found


@pytest.mark.parametrize("eta", [0.3, 0.5])
def test_popularity_equals_numpy(eta: float) -> None:
    boxes, valid, correct = random_groups(14, 9, seed=3)
    boxes[::2, :4], valid[::2, :4] = boxes[0, 0], valid[0, 0]  # a habit of every second group
    boxes[:, 4, 0], valid[:, 4] = HERE, [True, False, False]  # and one of all
    expected = np.array(reference_popularity(boxes, valid, correct, eta))
    found = popularity(boxes, valid, correct, eta=eta, resolution=R)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(np.unique(expected)) > 8 and 0.05 < expected.max() < 1


def test_votes_equal_numpy() -> None:
    """The paper's formulas again, with those who are too popular left out of the vote, though not of the reward."""
    boxes, valid, correct = random_groups(40, 9, seed=4)
    boxes[::2, :5, 0], valid[::2, :5] = HERE, [True, False, False]
    result = jax.tree.map(np.asarray, tool_reward(boxes, valid, correct, maximum_popularity=0.15))
    plain = np.asarray(tool_reward(boxes, valid, correct).reward)
    votes = correct & (np.array(reference_popularity(boxes, valid, correct, 0.5)) <= 0.15)
    assert 20 < (correct & ~votes).sum() < correct.sum() - 20
    for g in range(len(boxes)):
        _, iou, agreed = reference_group(boxes[g], valid[g], votes[g])
        np.testing.assert_array_equal(result.consensus[g], agreed)
        np.testing.assert_allclose(result.iou[g], iou, atol=1e-6)
        looked = np.array([reference_mask(b, v, R).any() for b, v in zip(boxes[g], valid[g], strict=True)])
        expected = np.where(correct[g] & looked, np.where(iou > 0.5, 1.0, 0.5), 0.0)
        np.testing.assert_array_equal(result.reward[g], expected)
    np.testing.assert_array_equal(result.votes, votes)
    assert (result.reward != plain).sum() > 20


def test_the_habit_of_all_images_loses_its_majority() -> None:
    """In each image three look where everybody looks, and one at the lesion: the one has the vote."""
    lesions = ((0.6, 0.1, 0.8, 0.3), ELSEWHERE, THERE)
    arrays = [
        np.concatenate(parts)
        for parts in zip(*(group(*[([HERE], True)] * 3, ([box], True)) for box in lesions), strict=True)
    ]
    np.testing.assert_array_equal(tool_reward(*arrays).reward, [[1, 1, 1, 0.5]] * 3)
    np.testing.assert_array_equal(popularity(*arrays)[0], [0.75, 0.75, 0.75, 0])
    found = tool_reward(*arrays, maximum_popularity=0.5)
    np.testing.assert_array_equal(found.reward, [[0.5, 0.5, 0.5, 1]] * 3)
    np.testing.assert_array_equal(found.votes, [[False, False, False, True]] * 3)


def test_an_image_alone_has_no_habits() -> None:
    arrays = group(([HERE], True), ([HERE], True), ([THERE], False), ([], True))
    assert not np.asarray(popularity(*arrays)).any()
    plain, found = tool_reward(*arrays), tool_reward(*arrays, maximum_popularity=0.0)
    np.testing.assert_array_equal(found.reward, plain.reward)


def test_wrong_answers_and_those_who_did_not_look_make_nothing_popular() -> None:
    one = group(([HERE], True), ([THERE], True))
    other = group(([HERE], False), ([], True))
    arrays = [np.concatenate(parts) for parts in zip(one, other, strict=True)]
    np.testing.assert_array_equal(popularity(*arrays), [[0, 0], [0.5, 0]])
