"""Where the trajectories of a group looked, and what they agreed on, computed by the reward's own functions."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medvr_jax.rewards.consensus import consensus, rasterise

_AT_ONCE = 32  # groups, so that a page of many costs little memory and one compilation


class Agreement(NamedTuple):
    """Of one group: counts [R, R] int32, how many voters looked at each pixel; mask [R, R] bool, the consensus;
    voters, how many there are; covered, the share of the true boxes' area inside the mask (None where unknown)."""

    counts: np.ndarray
    mask: np.ndarray
    voters: int
    covered: float | None


def agreements(groups: Sequence[Sequence[Mapping[str, Any]]], raster: int) -> list[Agreement]:
    """Right trajectories vote, as in training; where nobody knows what is right, those that `agree`, all by default.

    R = `raster`.
    """
    if not groups:
        return []
    slots = _at_most(len(records) for records in groups)
    most = _at_most(len(record["boxes"]) for records in groups for record in records)
    trues = _at_most(len(records[0]["true_boxes"]) for records in groups)
    result = []
    for start in range(0, len(groups), _AT_ONCE):
        part = groups[start : start + _AT_ONCE]
        boxes, valid = np.zeros((_AT_ONCE, slots, most, 4), np.float32), np.zeros((_AT_ONCE, slots, most), bool)
        truth, known = np.zeros((_AT_ONCE, trues, 4), np.float32), np.zeros((_AT_ONCE, trues), bool)
        votes = np.zeros((_AT_ONCE, slots), bool)
        for b, records in enumerate(part):
            _fill(truth[b], known[b], records[0]["true_boxes"])
            for m, record in enumerate(records):
                _fill(boxes[b, m], valid[b, m], record["boxes"])
                votes[b, m] = record.get("agrees", True) if record["correct"] is None else record["correct"]
        mask, counts, true = map(np.asarray, _agreed(boxes, valid, votes, truth, known, raster))
        for b in range(len(part)):
            covered = (mask[b] & true[b]).sum() / max(true[b].sum(), 1) if known[b].any() else None
            result.append(Agreement(counts[b], mask[b], int(votes[b].sum()), covered))
    return result


def _at_most(counts: Any) -> int:
    """A multiple of 8 that none exceeds: few shapes, few compilations."""
    return 8 * math.ceil(max(1, *counts, 1) / 8)


def _fill(boxes: np.ndarray, valid: np.ndarray, found: Sequence[Sequence[float]]) -> None:
    for z, box in enumerate(found):
        boxes[z], valid[z] = box, True


@functools.partial(jax.jit, static_argnames="raster")
def _agreed(
    boxes: jax.Array, valid: jax.Array, votes: jax.Array, truth: jax.Array, known: jax.Array, raster: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Boxes [B, M, Z, 4], true ones [B, Y, 4] -> mask [B, R, R], counts [B, R, R] and the true boxes' [B, R, R]."""
    mask, counts = consensus(rasterise(boxes, valid, raster), votes)
    return mask, counts, jnp.asarray(rasterise(truth, known, raster))
