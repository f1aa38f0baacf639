"""How far samples agree, by hand and by formulas from elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medvr_jax.asking.agreement import agree, answer_keys, look_for_consensus
from medvr_jax.evaluation.statistics import wilson_interval


def test_letters_words_and_texts_are_compared_as_the_scoring_does() -> None:
    options = ("left lung", "right lung")
    said = ["A", "(a)", "Left lung", "A. left lung", "b", None, "both"]
    assert answer_keys(said, options) == ("A", "A", "A", "A", "B", None, "both")
    assert answer_keys(["Yes, there is.", "yes", "No."], ()) == ("yes", "yes", "no")
    assert answer_keys(["No fracture", "no", "Left"], ()) == (
        "no fracture",
        "no",
        "left",
    )  # not a question of yes or no
    assert answer_keys(["The  Liver.", "the liver", "ＬＩＶＥＲ"], ()) == ("the liver", "the liver", "liver")


def test_shares_and_the_most_frequent_answer() -> None:
    found = agree(["a", "b", "B", None, "b"], ())
    assert found.majority == "b" and found.counts == {"b": 3, "a": 1} and not found.tie
    assert found.confidence == 3 / 5 and found.agrees.tolist() == [False, True, True, False, True]
    tied = agree(["x", "y"], ())
    assert tied.majority == "x" and tied.tie
    silent = agree([None, None], ())
    assert silent.majority is None and silent.confidence == 0 and not silent.agrees.any() and not silent.tie


@pytest.mark.parametrize(("successes", "trials"), [(0, 16), (11, 16), (16, 16), (1, 3)])
def test_wilson_interval_solves_its_equation(successes: int, trials: int) -> None:
    """Its ends are where the share is z standard errors away: (s - p)² = z² p (1 - p) / n."""
    z, share = 1.959963984540054, successes / trials
    a, b, c = 1 + z * z / trials, -(2 * share + z * z / trials), share * share
    root = math.sqrt(b * b - 4 * a * c)
    expected = ((-b - root) / (2 * a), (-b + root) / (2 * a))
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=1e-9)


def test_consensus_of_those_who_agree() -> None:
    """Against masks made pixel by pixel."""
    boxes = np.array([[0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 0.75, 0.5], [0.0, 0.0, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]])
    agrees, side = np.array([True, True, True, False]), 8
    centres = (np.arange(side) + 0.5) / side

    def mask(box: np.ndarray) -> np.ndarray:
        inside_x = (centres >= box[0]) & (centres < box[2])
        return ((centres >= box[1]) & (centres < box[3]))[:, None] & inside_x

    masks = np.array([mask(box) for box in boxes])
    found = look_for_consensus(boxes[:, None].astype(np.float32), np.ones((4, 1), bool), agrees, side)
    votes = masks[agrees].sum(0)
    assert np.array_equal(found.counts, votes) and np.array_equal(found.mask, votes >= 2) and found.voters == 3
    expected = [(m & (votes >= 2)).sum() / (m | (votes >= 2)).sum() for m in masks]
    assert np.allclose(found.iou, expected)
