"""Where each patch of an image sits: rotary positions and attention windows, on the host in NumPy.

The patches keep the image processor's order (raster over merge blocks, then inside a block) through the whole tower.
Window attention gathers them into blocks of C patches, C being a full window. Windows at the right and bottom edges are
smaller; several of them may share a block, and the tower keeps them apart by their positions, so a bucket of
S patches needs little more than S / C blocks whatever the image's shape. A tower without windows has no blocks.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from medvr_jax.models.config import VisionConfig


@dataclasses.dataclass(frozen=True)
class ImageGeometry:
    """One image of s patches; the arrays are shared by all callers and read-only.

    positions [s, 2] int32 (row, column) of each patch; window_slots [W, C] int32: the patch in each slot of a block,
    s where the slot is empty; slot_of_patch [s] int32: the inverse, a position in the flattened [W*C]. Without windows
    window_slots is [0, 0] and slot_of_patch [0].
    """

    positions: np.ndarray
    window_slots: np.ndarray
    slot_of_patch: np.ndarray


def image_geometry(grid: tuple[int, int, int], vision: VisionConfig) -> ImageGeometry:
    """Geometry of an image whose grid is (t, h, w) in patches; t must be 1 (still images)."""
    side = vision.window_side if vision.has_windows else 0
    return _geometry(tuple(int(n) for n in grid), vision.spatial_merge_size, side)


def padded_geometry(
    grid: tuple[int, int, int] | None, patches: int, vision: VisionConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One row of an ImageBatch with bucket S = `patches`; grid None gives an empty row.

    Returns positions [S, 2], valid [S] bool, window_slots [W, C] (S = empty), slot_of_patch [S] (W*C = none), with
    W = `window_blocks(S, vision)`. Without windows these two are [0, 0] and [0].
    """
    blocks = window_blocks(patches, vision)
    capacity = vision.window_patches if blocks else 0
    positions = np.zeros((patches, 2), np.int32)
    window_slots = np.full((blocks, capacity), patches, np.int32)
    slot_of_patch = np.full((patches if blocks else 0,), blocks * capacity, np.int32)
    count = 0
    if grid is not None:
        geometry = image_geometry(grid, vision)
        count = len(geometry.positions)
        if count > patches:
            raise ValueError(f"an image of {count} patches does not fit a bucket of {patches}")
        positions[:count] = geometry.positions
        used = len(geometry.window_slots)
        window_slots[:used] = np.where(geometry.window_slots == count, patches, geometry.window_slots)
        slot_of_patch[: len(geometry.slot_of_patch)] = geometry.slot_of_patch
    return positions, np.arange(patches) < count, window_slots, slot_of_patch


def window_blocks(patches: int, vision: VisionConfig) -> int:
    """W: blocks that any image of at most `patches` patches fits into; 0 without windows."""
    if patches % vision.merge_unit:
        raise ValueError(f"a patch bucket must be a multiple of {vision.merge_unit}, got {patches}")
    return _blocks_needed(patches // vision.merge_unit, vision.window_side) if vision.has_windows else 0


@functools.lru_cache(maxsize=4096)
def _geometry(grid: tuple[int, int, int], merge: int, side: int) -> ImageGeometry:
    frames, height, width = grid
    if frames != 1 or height % merge or width % merge:
        raise ValueError(f"an image grid must be (1, h, w) with h and w multiples of {merge}, got {grid}")
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    blocked = (height // merge, merge, width // merge, merge)
    rows, columns = (x.reshape(blocked).transpose(0, 2, 1, 3).reshape(-1) for x in (rows, columns))
    positions = np.stack([rows, columns], axis=-1).astype(np.int32)
    geometry = ImageGeometry(positions, *_windows(rows, columns, side * merge))
    for array in dataclasses.astuple(geometry):
        array.setflags(write=False)
    return geometry


def _windows(rows: np.ndarray, columns: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """window_slots and slot_of_patch of patches at these rows and columns; `side` of a window in patches, 0 = none."""
    if side == 0:
        return np.zeros((0, 0), np.int32), np.zeros(0, np.int32)
    count, capacity = len(rows), side**2
    window = (rows // side) * (columns.max() + 1) + columns // side
    order = np.argsort(window, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(window[order])) + 1)
    blocks = _pack([len(m) for m in members], capacity)
    window_slots = np.full((max(blocks) + 1, capacity), count, np.int32)
    filled = np.zeros(len(window_slots), np.int64)
    for block, patches in zip(blocks, members, strict=True):
        window_slots[block, filled[block] : filled[block] + len(patches)] = patches
        filled[block] += len(patches)
    slot_of_patch = np.empty(count, np.int32)
    slots = np.flatnonzero(window_slots.reshape(-1) < count)
    slot_of_patch[window_slots.reshape(-1)[slots]] = slots
    return window_slots, slot_of_patch


def _pack(sizes: list[int], capacity: int) -> list[int]:
    """First-fit decreasing: the block of each window."""
    blocks, room = [0] * len(sizes), []
    for window in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        # full windows fill a block alone: only search blocks that still have room
        block = next((b for b, r in enumerate(room) if r >= sizes[window]), None) if sizes[window] < capacity else None
        if block is None:
            block = len(room)
            room.append(capacity)
        room[block] -= sizes[window]
        blocks[window] = block
    return blocks


@functools.lru_cache(maxsize=64)
def _blocks_needed(cells: int, side: int) -> int:
    """The largest number of blocks over all images of at most `cells` merged cells."""
    most = 0
    # an image and its transpose need the same blocks: heights up to the square root cover all
    for height in range(1, int(cells**0.5) + 1):
        # windows repeat with period `side` along the width: the widest few widths hold the worst case
        for width in range(max(1, cells // height - side), cells // height + 1):
            tall, wide, low, narrow = height // side, width // side, height % side, width % side
            partial = [side * narrow] * tall + [side * low] * wide + [low * narrow]
            blocks = _pack([size for size in partial if size], side * side)
            most = max(most, tall * wide + max(blocks, default=-1) + 1)
    return most
