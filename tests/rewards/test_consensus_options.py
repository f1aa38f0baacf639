"""The options of CCA's reward against a NumPy loop over the trajectories of each group."""

from __future__ import annotations

import jax
import numpy as np
import pytest

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


def reference_options(boxes, valid, correct, *, minimum_agreement=0.0, soft_iou=False, eta_side=0.0, eta=0.5):
    """[M, Z, 4], [M, Z], [M] -> rewards [M] and agreement of one group, from areas and overlaps of masks."""
    _, ious, _ = reference_group(boxes, valid, correct)
    masks = [reference_mask(b, v, R) for b, v in zip(boxes, valid, strict=True)]
    looked = [j for j in range(len(masks)) if correct[j] and masks[j].any()]
    needed = {}
    for j in looked:
        side = np.sqrt(masks[j].sum()) / R
        needed[j] = eta * side / eta_side if side < eta_side else eta
    agreeing = [j for j in looked if ious[j] > needed[j]]
    agreement = len(agreeing) / len(looked) if looked else 0.0
    rewards = np.zeros(len(masks))
    for j in looked:
        rewards[j] = 0.5 + ious[j] / 2 if soft_iou else 1.0 if j in agreeing else 0.5
        if agreement < minimum_agreement:
            rewards[j] = 0.5
    return rewards, agreement


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"minimum_agreement": 0.6},
        {"soft_iou": True},
        {"eta_side": 0.77},
        {"minimum_agreement": 0.5, "soft_iou": True, "eta_side": 0.77, "eta": 0.3},
    ],
    ids=lambda options: "+".join(options) or "none",
)
def test_options_equal_numpy(options: dict[str, float]) -> None:
    boxes, valid, correct = random_groups(250, 9, seed=9)
    result = jax.tree.map(np.asarray, tool_reward(boxes, valid, correct, **options))
    plain = np.asarray(tool_reward(boxes, valid, correct).reward)
    expected = [reference_options(*group, **options) for group in zip(boxes, valid, correct, strict=True)]
    rewards, agreement = (np.array(x) for x in zip(*expected, strict=True))
    np.testing.assert_allclose(result.reward, rewards, atol=1e-6)
    np.testing.assert_allclose(result.agreement, agreement, atol=1e-6)
    assert ((result.reward != plain).sum() > 20) == bool(options)
    assert 0 in agreement and 1 in agreement and len(set(agreement)) > 5


def test_a_small_box_one_lattice_step_aside_may_agree() -> None:
    """42 px boxes of a 448 px image on a 14 px lattice: their IoU of 1/2 is not above eta, but above eta by size."""
    step, side = 14 / 448, 42 / 448
    at = [[x, 0.25, x + side, 0.25 + side] for x in (0.25, 0.25, 0.25 + step)]
    arrays = group(*(([box], True) for box in at))
    settings = {"resolution": 64}
    np.testing.assert_array_equal(tool_reward(*arrays, **settings).reward[0], [1, 1, 0.5])
    small = tool_reward(*arrays, eta_side=2 * side, **settings)
    np.testing.assert_array_equal(small.reward[0], [1, 1, 1])
    assert float(small.agreement[0]) == 1.0
    np.testing.assert_array_equal(tool_reward(*arrays, eta_side=side, **settings).reward[0], [1, 1, 0.5])


def test_agreement_is_that_of_right_trajectories_with_a_box() -> None:
    right = (([HERE], True), ([HERE], True), ([THERE], True))
    arrays = group(*right, ([], True), ([THERE], False), ([HERE], False))
    result = tool_reward(*arrays)  # two of four right ones are no majority: nobody agrees
    assert float(result.agreement[0]) == 0.0
    arrays = group(*right, ([HERE], True), ([], True), ([THERE], False))
    assert float(tool_reward(*arrays).agreement[0]) == 0.75
    for minimum, high in ((0.75, 1.0), (0.76, 0.5)):
        found = tool_reward(*arrays, minimum_agreement=minimum)
        np.testing.assert_array_equal(found.reward[0], [high, high, 0.5, high, 0, 0])
    nobody = tool_reward(*group(([HERE], False), ([], True)), minimum_agreement=0.5)
    assert float(nobody.agreement[0]) == 0.0 and not np.asarray(nobody.reward).any()
