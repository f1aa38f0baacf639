"""Where the trajectories of a group looked, and what they agreed on: the same masks and votes as the reward's.

In NumPy, so that a page can be made beside a run that trains, on any machine, without compiling anything.
`tests/reports/test_agreement.py` holds it against `rewards/consensus.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medvr_jax.evaluation.grounding import ELSEWHERE, mask_overlap


class Agreement(NamedTuple):
    """Of one group: counts [R, R] int32, how many voters looked at each pixel; mask [R, R] bool, the consensus;
    voters, how many there are; covered, the share of the true boxes' area inside the mask, and iou, the overlap of the
    two (None where no true box is known)."""

    counts: np.ndarray
    mask: np.ndarray
    voters: int
    covered: float | None
    iou: float | None

    @property
    def elsewhere(self) -> bool | None:
        """Whether there is a consensus that holds less than half of the true boxes; None where none is known."""
        return None if self.covered is None else bool(self.mask.any()) and self.covered < ELSEWHERE


def agreement(records: Sequence[Mapping[str, Any]], raster: int) -> Agreement:
    """Those vote who did in training; where nobody knows what is right, those that `agree`, all by default.

    One trajectory that nobody judged agrees with nobody.
    R = `raster`.
    """
    alone = len(records) == 1 and records[0]["correct"] is None
    voters = [] if alone else [record for record in records if _votes(record)]
    counts = np.zeros((raster, raster), np.int32)
    for record in voters:
        counts += union(record["boxes"], raster)
    mask = 2 * counts > len(voters)
    true = union(records[0]["true_boxes"], raster)
    iou, covered = map(float, mask_overlap(mask, true)) if true.any() else (None, None)
    return Agreement(counts, mask, len(voters), covered, iou)


def _votes(record: Mapping[str, Any]) -> bool:
    if record["correct"] is None:
        return record.get("agrees", True)
    return record.get("votes", record["correct"])  # files older than this field: all right ones voted


def union(boxes: Sequence[Sequence[float]], raster: int) -> np.ndarray:
    """The pixels [R, R] whose centre lies in a normalised box; a box too thin to hold one takes that of its centre."""
    mask = np.zeros((raster, raster), bool)
    for box in np.asarray(boxes, np.float32).reshape(-1, 4):
        x1, y1, x2, y2 = np.clip(box, 0, 1)
        if np.isfinite(box).all() and x2 > x1 and y2 > y1:
            mask[_covered(y1, y2, raster), _covered(x1, x2, raster)] = True
    return mask


def _covered(low: np.float32, high: np.float32, raster: int) -> slice:
    low, high = low * np.float32(raster), high * np.float32(raster)
    first, stop = np.ceil(low - np.float32(0.5)), np.ceil(high - np.float32(0.5))
    if first >= stop:
        first = np.clip(np.floor((low + high) / 2), 0, raster - 1)
        stop = first + 1
    return slice(int(first), int(stop))
