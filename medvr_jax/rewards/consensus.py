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
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_ALL = np.uint32(0xFFFFFFFF)
_GROUPS_AT_ONCE = 32


class ConsensusResult(NamedTuple):
    """What `tool_reward` knows about every trajectory.

    reward: [B, M] float32, R_tool; 0 for wrong answers and for trajectories without a valid box.
    iou: [B, M] float32, overlap of the trajectory's mask with its group's consensus; 0 if either is empty.
    agreement: [B] float32, share of the correct trajectories that zoomed whose overlap is above eta, an estimate
        of how many of them looked at the right place; 0 if there are none.
    consensus: [B, R, R] bool, rows are y and columns are x.
    counts: [B, R, R] int32, how many of those who vote looked at each pixel.
    votes: [B, M] bool, who votes: the correct ones, without those that are too popular.
    """

    reward: jax.Array
    iou: jax.Array
    agreement: jax.Array
    consensus: jax.Array
    counts: jax.Array
    votes: jax.Array


def usable_boxes(boxes: jax.Array, valid: jax.Array) -> jax.Array:
    """Which boxes [..., Z, 4] mark some of the image (finite, not inverted, not wholly outside): [..., Z] bool."""
    return _usable(tuple(jnp.moveaxis(boxes, -1, 0)), valid)


def _usable(box: tuple[jax.Array, ...], valid: jax.Array) -> jax.Array:
    """The same of x1, y1, x2, y2, each of the shape of `valid`."""
    x1, y1, x2, y2 = (jnp.clip(x, 0.0, 1.0) for x in box)
    usable = valid.astype(bool) & (x2 > x1) & (y2 > y1)
    for x in box:
        usable &= jnp.isfinite(x)
    return usable


def rasterise(boxes: jax.Array, valid: jax.Array, resolution: int) -> jax.Array:
    """Union of a trajectory's boxes as a mask: [..., Z, 4], [..., Z] -> [..., R, R] bool (rows y, columns x).

    A pixel belongs to a box if its centre does (half-open intervals, so that boxes side by side share no pixel). A box
    too thin to hold a centre takes the pixel of its own centre: a usable box never vanishes.
    """
    return unpack(rasterise_packed(jnp.moveaxis(boxes, (-1, -2), (0, 1)), jnp.moveaxis(valid, -1, 0), resolution))


def rasterise_packed(boxes: jax.Array, valid: jax.Array, resolution: int) -> jax.Array:
    """As `rasterise`, 32 columns of a row in one word: [4, Z, ...], [Z, ...] -> [W, R, ...] uint32."""
    spans = _if_any(valid, functools.partial(_spans, resolution=resolution), boxes, valid)
    return _if_any(valid, functools.partial(_union, resolution=resolution), spans)


def _spans(boxes: jax.Array, valid: jax.Array, resolution: int) -> jax.Array:
    """Of each box the first row, the number of rows, and its W words of columns: [2 + W, Z, ...] uint32."""
    x1, y1, x2, y2 = (jnp.clip(x, 0.0, 1.0) for x in boxes)
    first, stop = _covered(x1, x2, resolution)
    columns = [_bits_below(stop - word) & ~_bits_below(first - word) for word in range(0, resolution, 32)]
    first, stop = _covered(y1, y2, resolution)
    count = jnp.where(_usable(tuple(boxes), valid), stop - first, 0)
    return jnp.stack([first.astype(jnp.uint32), count.astype(jnp.uint32), *columns])


def _union(spans: jax.Array, resolution: int) -> jax.Array:
    """Packed mask [W, R, ...] of the boxes that `_spans` describes."""
    first, count, columns = spans[0], spans[1], spans[2:, :, None]
    lead = first.shape[1:]
    row = jnp.arange(resolution, dtype=jnp.uint32).reshape(-1, *(1,) * len(lead))
    mask = jnp.zeros((columns.shape[0], resolution, *lead), jnp.uint32)
    for z in range(first.shape[0]):  # one box after the other: the union never exists box by box
        # As unsigned numbers: rows before the first one are beyond any count.
        mask |= jnp.where(row - first[z] < count[z], columns[:, z], jnp.uint32(0))
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


def _if_any(flags: jax.Array, function: Callable[..., jax.Array], *arguments: jax.Array) -> jax.Array:
    """The function's result if any flag is set, else zeros.

    Its result then exists in memory: the compiler would compute such cheap work again for each of its many uses.
    """

    def nothing(*arguments: jax.Array) -> jax.Array:
        shape = jax.eval_shape(function, *arguments)
        return jnp.zeros(shape.shape, shape.dtype)

    return jax.lax.cond(flags.astype(bool).any(), function, nothing, *arguments)


def unpack(words: jax.Array) -> jax.Array:
    """[W, R, ...] uint32 -> [..., R, R] bool."""
    words = jnp.moveaxis(words, (1, 0), (-2, -1))
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    side = words.shape[-2]
    return bits.reshape(*words.shape[:-1], -1)[..., :side].astype(bool)


def pack(masks: jax.Array) -> jax.Array:
    """[..., R, R] bool -> [W, R, ...] uint32."""
    side = masks.shape[-1]
    words = -(-side // 32)
    bits = jnp.pad(masks, [(0, 0)] * (masks.ndim - 1) + [(0, 32 * words - side)]).reshape(*masks.shape[:-1], words, 32)
    packed = jnp.sum(bits.astype(jnp.uint32) << jnp.arange(32, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)
    return jnp.moveaxis(packed, (-1, -2), (0, 1))


def consensus(masks: jax.Array, correct: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where more than half of the correct trajectories looked: [..., M, R, R], [..., M] -> mask [..., R, R], counts.

    A correct trajectory that never zoomed votes too, for nowhere. No correct trajectory: the mask is empty.
    """
    packed, voters = jnp.moveaxis(pack(masks), -1, 2), jnp.moveaxis(correct, -1, 0)
    return unpack(_majority(packed, voters)), _counts(packed, voters)


def _count(masks: jax.Array, correct: jax.Array) -> list[jax.Array]:
    """Votes of the correct trajectories for every pixel as binary numbers: packed masks [W, R, M, B], correct [M, B] ->
    their digits, lowest first, one packed mask [W, R, B] for each digit."""
    planes: list[jax.Array] = []
    for m in range(masks.shape[2]):
        carry = jnp.where(correct[m].astype(bool), masks[:, :, m], jnp.uint32(0))
        for digit, plane in enumerate(planes):
            planes[digit], carry = plane ^ carry, plane & carry
        if (m + 1).bit_length() > len(planes):
            planes.append(carry)
    return planes


def _majority(masks: jax.Array, correct: jax.Array) -> jax.Array:
    """Packed mask [W, R, B] of the pixels with more than half of the votes that there could be."""
    planes = _count(masks, correct)
    half = jnp.sum(correct.astype(bool), axis=0, dtype=jnp.int32) // 2
    above, equal = jnp.zeros_like(planes[0]), jnp.full_like(planes[0], _ALL)
    for digit in reversed(range(len(planes))):  # the highest digit that differs decides
        wanted = jnp.where((half >> digit) & 1 == 1, _ALL, jnp.uint32(0))
        above |= equal & planes[digit] & ~wanted
        equal &= ~(planes[digit] ^ wanted)
    return above


def _counts(masks: jax.Array, correct: jax.Array) -> jax.Array:
    """The votes as numbers [B, R, R] int32."""
    return sum(unpack(plane).astype(jnp.int32) << digit for digit, plane in enumerate(_count(masks, correct)))


def _pixels(words: jax.Array) -> jax.Array:
    """Set pixels of packed masks: [W, R, ...] -> [...] float32, exact as the numbers are far below 2**24.

    Summed over the first axes in two ways that do not walk through memory in columns: written out over some rows, and
    as a product over what is left.
    """
    some = math.gcd(words.shape[1], 16)
    rows = words.reshape(-1, some, math.prod(words.shape[2:]))
    digits = _added([rows[:, row] for row in range(some)])
    sums = sum(jax.lax.population_count(word).astype(jnp.int32) << digit for digit, word in enumerate(digits))
    sums = sums.astype(jnp.float32)
    return (jnp.ones((1, sums.shape[0]), jnp.float32) @ sums).reshape(words.shape[2:])


def _added(words: list[jax.Array]) -> list[jax.Array]:
    """How often each bit is set among some words, as binary numbers whose digits are words, lowest first.

    Full adders, three words in, two out: far fewer words are left to be counted bit by bit.
    """
    digits = []
    while words:
        carried = []
        while len(words) > 1:
            first, second, third = words[0], words[1], words[2] if len(words) > 2 else jnp.zeros_like(words[0])
            either = first ^ second
            words = [*words[3:], either ^ third]
            carried.append((first & second) | (either & third))
        digits.append(words[0])
        words = carried
    return digits


def tool_reward(
    boxes: jax.Array,
    valid: jax.Array,
    correct: jax.Array,
    *,
    eta: float = 0.5,
    high: float = 1.0,
    low: float = 0.5,
    resolution: int = 64,
    maximum_popularity: float = 1.0,
) -> ConsensusResult:
    """R_tool of every trajectory: boxes [B, M, Z, 4], valid [B, M, Z], correct [B, M].

    A correct trajectory that zoomed earns `high` if its mask overlaps the consensus with IoU > `eta`, else `low`; also
    `low` if the consensus is empty.

    maximum_popularity: < 1: a correct trajectory votes only if its `popularity` is not above this.
    """
    correct = correct.astype(bool)
    votes = correct
    if maximum_popularity < 1:
        votes &= popularity(boxes, valid, correct, eta=eta, resolution=resolution) <= maximum_popularity
    iou, agreed, masks = _in_parts(functools.partial(_overlaps, resolution=resolution), boxes, valid, votes)
    agrees, looked = iou > eta, correct & usable_boxes(boxes, valid).any(-1)
    reward = jnp.where(looked, jnp.where(agrees, high, low), 0.0).astype(jnp.float32)
    agreement = agreeing_share(agrees, looked)
    return ConsensusResult(reward, iou, agreement, unpack(agreed), _counts(masks, votes.T), votes)


def popularity(
    boxes: jax.Array, valid: jax.Array, correct: jax.Array, *, eta: float = 0.5, resolution: int = 64
) -> jax.Array:
    """Where everybody looks: of the correct trajectories of all other groups that looked, the share whose mask overlaps
    one's own with IoU > `eta`; [B, M, Z, 4], [B, M, Z], [B, M] -> [B, M] float32, 0 for those who marked nothing.

    A finding moves with the image. A box that answers many questions right by luck does not: it is a habit. Two
    questions about one image are two groups. Memory and time grow with (BM)**2 and with R**2 BM.
    """
    groups, slots = correct.shape
    masks = rasterise(boxes, valid, resolution).reshape(groups * slots, -1).astype(jnp.float32)
    size = masks.sum(-1)
    shared = masks @ masks.T  # whole numbers far below 2**24: exact
    alike = shared / jnp.maximum(size[:, None] + size - shared, 1.0) > eta
    group = jnp.arange(groups * slots) // slots
    elsewhere = (group[:, None] != group) & (correct.reshape(-1).astype(bool) & (size > 0))
    share = jnp.sum(alike & elsewhere, axis=1, dtype=jnp.float32) / jnp.maximum(jnp.sum(elsewhere, axis=1), 1)
    return share.astype(jnp.float32).reshape(groups, slots)


def agreeing_share(agrees: jax.Array, looked: jax.Array) -> jax.Array:
    """Share of those who looked that agree: [B, M], [B, M] bool -> [B] float32; 0 where nobody looked."""
    agreeing, lookers = (jnp.sum(x, axis=-1, dtype=jnp.float32) for x in (agrees & looked, looked))
    return agreeing / jnp.maximum(lookers, 1.0)


def _overlaps(boxes: jax.Array, valid: jax.Array, correct: jax.Array, resolution: int) -> tuple[jax.Array, ...]:
    """IoU [B, M] of each mask with its consensus, and both packed: the consensus [W, R, B], the masks [W, R, M, B]."""
    # Groups last: neighbours in memory are then the same pixels of neighbouring groups.
    masks = rasterise_packed(jnp.transpose(boxes, (3, 2, 1, 0)), jnp.transpose(valid, (2, 1, 0)), resolution)
    agreed = _if_any(correct, _majority, masks, correct.T)
    shared = _pixels(masks & agreed[:, :, None]).T
    joined = _pixels(masks).T + _pixels(agreed)[:, None] - shared
    return shared / jnp.maximum(joined, 1.0), agreed, masks


def _in_parts(function: Callable[..., tuple[jax.Array, ...]], *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """`_overlaps` of many groups, `_GROUPS_AT_ONCE` at a time: their masks stay in a core's cache."""
    groups = arrays[0].shape[0]
    if groups <= _GROUPS_AT_ONCE:
        return function(*arrays)
    parts = -(-groups // _GROUPS_AT_ONCE)
    missing = parts * _GROUPS_AT_ONCE - groups

    def cut(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(parts, _GROUPS_AT_ONCE, *x.shape[1:])

    def joined(x: jax.Array) -> jax.Array:
        """[parts, ..., groups of a part] -> [..., B]."""
        x = jnp.moveaxis(x, 0, -2)
        return x.reshape(*x.shape[:-2], -1)[..., :groups]

    iou, agreed, masks = jax.lax.map(lambda part: function(*part), tuple(cut(x) for x in arrays))
    return iou.reshape(-1, iou.shape[-1])[:groups], joined(agreed), joined(masks)
