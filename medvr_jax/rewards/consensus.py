"""Consensus-based credit assignment (CCA): correct trajectories vote on where to look.

Pure functions of arrays for a whole batch of groups, all of them traceable under `jax.jit`. Boxes are in normalised
[0, 1] coordinates (x1, y1, x2, y2). Which answers are correct and how rewards are added is decided elsewhere.

What the raster costs: a mask's edges lie on the nearest grid lines, at most 1/(2R) away. For boxes with sides of at
least 1/R the overlap of two sets changes by at most the area between their true and their rastered edges divided by
their union; for two single boxes with sides of at least s that is |IoU_R - IoU| <= 4/(Rs) + 2/(Rs)^2.

Masks are computed with 32 pixels in a word, and votes as binary numbers whose digits are masks, so that a group of 16
costs some thousand words instead of some hundred thousand pixels.

Axis letters: B groups, M trajectories, Z zoom boxes per trajectory, R raster side, W words of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_ALL = np.uint32(0xFFFFFFFF)


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
    return unpack(rasterise_packed(boxes, valid, resolution), resolution)


def rasterise_packed(boxes: jax.Array, valid: jax.Array, resolution: int) -> jax.Array:
    """As `rasterise`, 32 columns of a row in one word: [..., W, R] uint32, W = R / 32 rounded up."""
    spans = _if_any(valid, functools.partial(_spans, resolution=resolution), boxes, valid)
    return _if_any(valid, functools.partial(_union, resolution=resolution), *spans)


def _spans(boxes: jax.Array, valid: jax.Array, resolution: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each box the first row and the number of rows [..., Z], and its columns as words [..., Z, W]."""
    usable = usable_boxes(boxes, valid)
    boxes = jnp.clip(boxes, 0.0, 1.0)
    first, stop = _covered(boxes[..., 0], boxes[..., 2], resolution)
    word = 32 * jnp.arange(-(-resolution // 32), dtype=jnp.int32)
    columns = _bits_below(stop[..., None] - word) & ~_bits_below(first[..., None] - word)
    first, stop = _covered(boxes[..., 1], boxes[..., 3], resolution)
    return first, jnp.where(usable, stop - first, 0), columns


def _union(first: jax.Array, count: jax.Array, columns: jax.Array, resolution: int) -> jax.Array:
    """Packed mask [..., W, R] of the boxes that `_spans` describes."""
    row = jnp.arange(resolution, dtype=jnp.int32)
    mask = jnp.zeros((*columns.shape[:-2], columns.shape[-1], resolution), jnp.uint32)
    for z in range(columns.shape[-2]):  # one box after the other: the union never exists box by box
        # As unsigned numbers: rows before the first one are beyond any count.
        below = (row - first[..., z, None]).astype(jnp.uint32) < count[..., z, None].astype(jnp.uint32)
        mask |= jnp.where(below[..., None, :], columns[..., z, :, None], jnp.uint32(0))
    return mask


def _covered(low: jax.Array, high: jax.Array, resolution: int) -> tuple[jax.Array, jax.Array]:
    """The pixels of an interval of [0, 1]: the first one and the one after the last, int32."""
    low, high = low * resolution, high * resolution
    middle = jnp.clip(jnp.floor((low + high) / 2), 0, resolution - 1)
    first, stop = jnp.ceil(low - 0.5), jnp.ceil(high - 0.5)
    thin = first >= stop
    first, stop = jnp.where(thin, middle, first), jnp.where(thin, middle + 1, stop)
    return first.astype(jnp.int32), stop.astype(jnp.int32)


def _bits_below(count: jax.Array) -> jax.Array:
    """uint32 words whose lowest `count` bits are set (none below 0, all from 32 on)."""
    some = (jnp.uint32(1) << jnp.clip(count, 0, 31).astype(jnp.uint32)) - jnp.uint32(1)
    return jnp.where(count >= 32, _ALL, some)


def _if_any(flags: jax.Array, function: Callable[..., Any], *arguments: jax.Array) -> Any:
    """The function's result if any flag is set, else zeros.

    Its result then exists in memory: the compiler would compute such cheap work again for each of its many uses.
    """

    def nothing(*arguments: jax.Array) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *arguments))

    return jax.lax.cond(flags.astype(bool).any(), function, nothing, *arguments)


def unpack(words: jax.Array, resolution: int) -> jax.Array:
    """[..., W, R] uint32 -> [..., R, R] bool."""
    words = jnp.swapaxes(words, -1, -2)
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(*words.shape[:-1], -1)[..., :resolution].astype(bool)


def pack(masks: jax.Array) -> jax.Array:
    """[..., R, R] bool -> [..., W, R] uint32."""
    side = masks.shape[-1]
    words = -(-side // 32)
    bits = jnp.pad(masks, [(0, 0)] * (masks.ndim - 1) + [(0, 32 * words - side)]).reshape(*masks.shape[:-1], words, 32)
    packed = jnp.sum(bits.astype(jnp.uint32) << jnp.arange(32, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)
    return jnp.swapaxes(packed, -1, -2)


def consensus(masks: jax.Array, correct: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where more than half of the correct trajectories looked: [B, M, R, R], [B, M] -> mask [B, R, R], counts.

    A correct trajectory that never zoomed votes too, for nowhere. No correct trajectory: the mask is empty.
    """
    agreed, planes = _vote(pack(masks), correct)
    return unpack(agreed, masks.shape[-1]), _numbers(planes, masks.shape[-1])


def _vote(masks: jax.Array, correct: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Packed masks [B, M, W, R] -> packed consensus [B, W, R] and the votes (see `_count`)."""
    planes = _if_any(correct, _count, masks, correct)
    return _if_any(correct, _majority, planes, correct), planes


def _count(masks: jax.Array, correct: jax.Array) -> tuple[jax.Array, ...]:
    """Votes of the correct trajectories for every pixel as binary numbers: packed masks [B, M, W, R] -> their digits,
    lowest first, one packed mask [B, W, R] for each digit."""
    votes = jnp.where(correct.astype(bool)[..., None, None], masks, jnp.uint32(0))
    planes: list[jax.Array] = []
    for m in range(masks.shape[-3]):
        carry = votes[..., m, :, :]
        for digit, plane in enumerate(planes):
            planes[digit], carry = plane ^ carry, plane & carry
        if (m + 1).bit_length() > len(planes):
            planes.append(carry)
    return tuple(planes)


def _majority(planes: tuple[jax.Array, ...], correct: jax.Array) -> jax.Array:
    """Packed mask [B, W, R] of the pixels with more than half of the votes that there could be."""
    half = jnp.sum(correct.astype(bool), axis=-1, dtype=jnp.int32)[..., None, None] // 2
    above, equal = jnp.zeros_like(planes[0]), jnp.full_like(planes[0], _ALL)
    for digit in reversed(range(len(planes))):  # the highest digit that differs decides
        wanted = jnp.where((half >> digit) & 1 == 1, _ALL, jnp.uint32(0))
        above |= equal & planes[digit] & ~wanted
        equal &= ~(planes[digit] ^ wanted)
    return above


def _numbers(planes: tuple[jax.Array, ...], resolution: int) -> jax.Array:
    """Binary digits [B, W, R], packed -> numbers [B, R, R] int32."""
    return sum(unpack(plane, resolution).astype(jnp.int32) << digit for digit, plane in enumerate(planes))


def _pixels(words: jax.Array) -> jax.Array:
    """Set pixels of packed masks: [..., W, R] -> [...] int32."""
    return jnp.sum(jax.lax.population_count(words), axis=(-2, -1), dtype=jnp.uint32).astype(jnp.int32)


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
    masks = rasterise_packed(boxes, valid, resolution)
    agreed, planes = _vote(masks, correct)
    shared = _pixels(masks & agreed[..., None, :, :])
    joined = _pixels(masks) + _pixels(agreed)[..., None] - shared
    iou = shared.astype(jnp.float32) / jnp.maximum(joined, 1).astype(jnp.float32)
    trusted = jnp.sum(correct, axis=-1, keepdims=True, dtype=jnp.int32) >= minimum_correct
    zoomed = usable_boxes(boxes, valid).any(-1)
    reward = jnp.where((iou > eta) & trusted, high, low)
    reward = jnp.where(correct & zoomed, reward, 0.0).astype(jnp.float32)
    return ConsensusResult(reward, iou, unpack(agreed, resolution), _numbers(planes, resolution))
