"""How far several samples agree: on an answer, and on where to look. The truth is not known here.

Answers are compared as the scoring does: letters for choices, yes and no where every sample says one of them, else the
normalised text.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from medvr_jax.evaluation.statistics import wilson_interval
from medvr_jax.rewards.answers import chosen_letter, normalise, yes_or_no
from medvr_jax.rewards.consensus import tool_reward

LEVEL = 0.95
MEANING = (
    "The confidence is the share of the samples that gave the most frequent answer: how far the policy agrees with"
    " itself, and not the probability that the answer is right."
)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What N samples answered.

    Attributes:
        keys: of each sample what its answer is compared by; None where it gave none.
        counts: how many samples gave each answer, the most frequent one first.
        majority: that answer, the first to be given among equals; None where no sample answered.
        confidence: the share of the samples, silent ones too, that gave it.
        interval: Wilson's interval for that share, at `LEVEL`.
        tie: whether another answer was as frequent.
    """

    keys: tuple[str | None, ...]
    counts: dict[str, int]
    majority: str | None
    confidence: float
    interval: tuple[float, float]
    tie: bool

    @property
    def agrees(self) -> np.ndarray:
        """`[M]` bool, which samples gave the most frequent answer."""
        return np.array([key is not None and key == self.majority for key in self.keys])


def answer_keys(predictions: Sequence[str | None], options: Sequence[str]) -> tuple[str | None, ...]:
    """What answers are compared by; None for no answer."""
    said = [prediction for prediction in predictions if prediction is not None]
    if options:
        return tuple(p if p is None else chosen_letter(p, options) or normalise(p) for p in predictions)
    if said and all(yes_or_no(prediction) for prediction in said):
        return tuple(p if p is None else yes_or_no(p) for p in predictions)
    return tuple(p if p is None else normalise(p) for p in predictions)


def agree(predictions: Sequence[str | None], options: Sequence[str]) -> Agreement:
    """Of the samples' answers."""
    keys = answer_keys(predictions, options)
    counts = dict(collections.Counter(key for key in keys if key is not None).most_common())
    most = next(iter(counts.values()), 0)
    return Agreement(
        keys=keys,
        counts=counts,
        majority=next(iter(counts), None),
        confidence=most / len(keys),
        interval=wilson_interval(most, len(keys), LEVEL),
        tie=list(counts.values()).count(most) > 1,
    )


@dataclasses.dataclass(frozen=True)
class Consensus:
    """Where the samples of the most frequent answer looked.

    Attributes:
        mask: `[R, R]` bool, where more than half of them did; rows are y.
        counts: `[R, R]` int, how many did.
        voters: how many they are.
        iou: `[M]` float, each sample's overlap with the mask.
    """

    mask: np.ndarray
    counts: np.ndarray
    voters: int
    iou: np.ndarray


def look_for_consensus(boxes: np.ndarray, valid: np.ndarray, agrees: np.ndarray, raster: int) -> Consensus:
    """CCA's own consensus, with those who `agree [M]` in the place of those who are right.

    boxes: `[M, Z, 4]` normalised; valid: `[M, Z]`; raster: R.
    """
    found = jax.device_get(_consensus(boxes[None], valid[None], agrees[None], resolution=raster))
    return Consensus(found.consensus[0], found.counts[0], int(agrees.sum()), found.iou[0])


_consensus = jax.jit(tool_reward, static_argnames="resolution")
