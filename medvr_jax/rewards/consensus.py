"""Consensus-based credit assignment (CCA): correct trajectories vote on where to look.

Pure functions of arrays for a whole batch of groups, all of them traceable under `jax.jit`. Boxes are in normalised
[0, 1] coordinates (x1, y1, x2, y2). Which answers are correct and how rewards are added is decided elsewhere.

What the raster costs: a mask's edges lie on the nearest grid lines, at most 1/(2R) away. For boxes with sides of at
least 1/R the overlap of two sets changes by at most the area between their true and their rastered edges divided by
their union; for two single boxes with sides of at least s that is |IoU_R - IoU| <= 4/(Rs) + 2/(Rs)^2.

Axis letters: B groups, M trajectories, Z zoom boxes per trajectory, R raster side.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class ConsensusResult(NamedTuple):
    """What `tool_reward` knows about every trajectory.

    reward: [B, M] float32, R_tool; 0 for wrong answers and for trajectories without a valid box.
    iou: [B, M] float32, overlap of the trajectory's mask with its group's consensus; 0 if either is empty.
    consensus: [B, R, R] bool, rows are y and columns are x.
    counts: [B, R, R] int32, how many correct trajectories looked at each pixel.
    """

    reward: jax.Array
    iou: jax.Array
    consensus: jax.Array
    counts: jax.Array


def usable_boxes(boxes: jax.Array, valid: jax.Array) -> jax.Array:
    """Which boxes [..., Z, 4] mark some of the image (finite, not inverted, not wholly outside): [..., Z] bool."""
    x1, y1, x2, y2 = jnp.moveaxis(jnp.clip(boxes, 0.0, 1.0), -1, 0)
    return valid.astype(bool) & jnp.isfinite(boxes).all(-1) & (x2 > x1) & (y2 > y1)


def rasterise(boxes: jax.Array, valid: jax.Array, resolution: int) -> jax.Array:
    """Union of a trajectory's boxes as a mask: [..., Z, 4], [..., Z] -> [..., R, R] bool (rows y, columns x).

    A pixel belongs to a box if its centre does (half-open intervals, so that boxes side by side share no pixel). A box
    too thin to hold a centre takes the pixel of its own centre: a usable box never vanishes.
    """
    usable = usable_boxes(boxes, valid)
    boxes = jnp.clip(boxes, 0.0, 1.0)
    pixels = jnp.arange(resolution)

    def covers(low: jax.Array, high: jax.Array) -> jax.Array:  # [..., Z] -> [..., Z, R]
        low, high = low[..., None] * resolution, high[..., None] * resolution
        middle = jnp.clip(jnp.floor((low + high) / 2), 0, resolution - 1)
        centres = pixels + 0.5
        return ((centres >= low) & (centres < high)) | (pixels == middle)

    columns = covers(boxes[..., 0], boxes[..., 2])
    rows = covers(boxes[..., 1], boxes[..., 3]) & usable[..., None]
    return (rows[..., :, None] & columns[..., None, :]).any(-3)


def consensus(masks: jax.Array, correct: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where more than half of the correct trajectories looked: [B, M, R, R], [B, M] -> mask [B, R, R], counts.

    A correct trajectory that never zoomed votes too, for nowhere. No correct trajectory: the mask is empty.
    """
    correct = correct.astype(bool)
    counts = jnp.sum(masks & correct[..., None, None], axis=-3, dtype=jnp.int32)
    voters = jnp.sum(correct, axis=-1, dtype=jnp.int32)
    return 2 * counts > voters[..., None, None], counts


def tool_reward(
    boxes: jax.Array,
    valid: jax.Array,
    correct: jax.Array,
    *,
    eta: float = 0.5,
    high: float = 1.0,
    low: float = 0.5,
    resolution: int = 64,
    minimum_correct: int = 1,
) -> ConsensusResult:
    """R_tool of every trajectory: boxes [B, M, Z, 4], valid [B, M, Z], correct [B, M].

    A correct trajectory that zoomed earns `high` if its mask overlaps the consensus with IoU > `eta`, else `low`; also
    `low` if the consensus is empty, or if fewer than `minimum_correct` trajectories of its group are correct.
    """
    correct = correct.astype(bool)
    masks = rasterise(boxes, valid, resolution)
    agreed, counts = consensus(masks, correct)
    shared = jnp.sum(masks & agreed[..., None, :, :], axis=(-2, -1), dtype=jnp.int32)
    joined = jnp.sum(masks | agreed[..., None, :, :], axis=(-2, -1), dtype=jnp.int32)
    iou = shared.astype(jnp.float32) / jnp.maximum(joined, 1).astype(jnp.float32)
    trusted = jnp.sum(correct, axis=-1, keepdims=True, dtype=jnp.int32) >= minimum_correct
    zoomed = usable_boxes(boxes, valid).any(-1)
    reward = jnp.where((iou > eta) & trusted, high, low)
    reward = jnp.where(correct & zoomed, reward, 0.0).astype(jnp.float32)
    return ConsensusResult(reward, iou, agreed, counts)
