"""Rotary positions: M-RoPE for the decoder (time, row, column) and 2-D rope for the vision tower.

Positions are computed on the host in NumPy, by one function for text, several images and later turns; cosines and
sines on the device, always in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def multimodal_positions(
    token_ids: Sequence[int] | np.ndarray,
    image_grids: Sequence[tuple[int, int, int]],
    start: int = 0,
    *,
    image_token_id: int,
    merge_size: int,
) -> tuple[np.ndarray, int]:
    """Positions [n, 3] int32 of a segment of tokens, and the position of the token that would follow.

    A text token takes one position on all three axes; an image of (t, h, w) patches takes a box of positions and moves
    the next one on by its longer merged side. Segments may be done one after the other with `start` = the previous
    segment's next position; an image's tokens stay in one segment.
    """
    tokens = np.asarray(token_ids, dtype=np.int64)
    positions = np.empty((len(tokens), 3), np.int32)
    grids = iter(image_grids)
    index, position = 0, int(start)
    images = np.flatnonzero(tokens == image_token_id)
    while index < len(tokens):
        ahead = images[images >= index]
        text_end = int(ahead[0]) if len(ahead) else len(tokens)
        positions[index:text_end] = (position + np.arange(text_end - index))[:, None]
        position += text_end - index
        index = text_end
        if index == len(tokens):
            break
        grid = next(grids, None)
        if grid is None:
            raise ValueError(f"an image token at {index}, but only {len(image_grids)} image grids")
        frames, height, width = int(grid[0]), int(grid[1]) // merge_size, int(grid[2]) // merge_size
        count = frames * height * width
        if not np.all(tokens[index : index + count] == image_token_id) or index + count > len(tokens):
            raise ValueError(f"the image at token {index} needs {count} image tokens in a row")
        cells = np.indices((frames, height, width)).reshape(3, count).T
        positions[index : index + count] = position + cells
        position += max(height, width)
        index += count
    if next(grids, None) is not None:
        raise ValueError("more image grids than images in the tokens")
    return positions, position


def text_rotary(positions: jax.Array, *, section: tuple[int, int, int], theta: float) -> tuple[jax.Array, jax.Array]:
    """cos, sin [..., H/2] float32 of M-RoPE positions [..., 3]; `section` shares the H/2 frequencies among the axes."""
    half = sum(section)
    frequencies = _frequencies(2 * half, theta)
    by_axis = [
        jnp.broadcast_to(positions[..., axis : axis + 1], (*positions.shape[:-1], size))
        for axis, size in enumerate(section)
    ]
    angles = jnp.concatenate(by_axis, axis=-1).astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def vision_rotary(positions: jax.Array, *, head_width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos, sin [..., H/2] float32 of (row, column) positions [..., 2]: half of the frequencies for each."""
    frequencies = _frequencies(head_width // 2, theta)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    angles = angles.reshape(*positions.shape[:-1], head_width // 2)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs (x[i], x[i + H/2]) of x [..., H]; cos, sin [..., H/2] broadcast. Keeps x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _frequencies(width: int, theta: float) -> np.ndarray:
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return (1.0 / np.float32(theta) ** exponents).astype(np.float32)
