"""Pictures of an answer: boxes on the original, and where several samples looked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medvr_jax.inputs.boxes import Box

AGREEING, OTHERS = (255, 176, 0), (120, 160, 255)  # told apart by colour-blind people, too
_DARK = (0, 0, 0)
_READABLE_SIDE = 512  # pixels; smaller images are enlarged by a whole factor until their long side has as many
_HEAT = np.array(AGREEING, np.float64)


def enlarged(image: Image.Image) -> Image.Image:
    """The image, or where lines and letters on it could not be read, larger by a whole factor."""
    factor = -(-_READABLE_SIDE // max(image.size))
    size = (image.width * factor, image.height * factor)
    return image.copy() if factor == 1 else image.resize(size, Image.Resampling.NEAREST)


def annotate(image: Image.Image, boxes: Sequence[tuple[Box, str, tuple[int, int, int]]]) -> Image.Image:
    """Normalised boxes, each with its label and colour, on the image; lines and letters grow with it."""
    drawn = enlarged(image)
    side = max(drawn.size)
    width = max(2, round(side / 300))
    font = ImageFont.load_default(max(14, round(side / 32)))
    canvas = ImageDraw.Draw(drawn)
    for box, label, colour in boxes:
        x1, y1, x2, y2 = (round(v * drawn.size[i % 2]) for i, v in enumerate(box))
        x2, y2 = max(x2 - 1, x1), max(y2 - 1, y1)
        canvas.rectangle((x1, y1, x2, y2), outline=_DARK, width=2 * width)
        canvas.rectangle((x1, y1, x2, y2), outline=colour, width=width)
        if label:
            _write_label(canvas, label, (x1, y1), drawn.size, font, colour)
    return drawn


def _write_label(
    canvas: ImageDraw.ImageDraw,
    label: str,
    corner: tuple[int, int],
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont,
    colour: tuple[int, int, int],
) -> None:
    """Above the box where there is room, else inside it; never beyond the image."""
    left, top, right, bottom = canvas.textbbox((0, 0), label, font=font)
    pad = max(2, (bottom - top) // 4)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(max(corner[0], 0), max(size[0] - width, 0))
    y = corner[1] - height if corner[1] >= height else corner[1]
    canvas.rectangle((x, y, x + width, y + height), fill=colour, outline=_DARK)
    canvas.text((x + pad - left, y + pad - top), label, fill=_DARK, font=font)


def heat_map(image: Image.Image, counts: np.ndarray, voters: int, mask: np.ndarray) -> Image.Image:
    """The image in grey with a colour where samples looked, the stronger the more; the mask has an outline.

    counts: `[R, R]`, how many of `voters` did; mask: `[R, R]` bool.
    """
    base = enlarged(image.convert("L").convert("RGB"))
    share = np.asarray(counts, np.float64) / max(voters, 1)
    shown = Image.fromarray(np.uint8(np.round(share * 255))).resize(base.size, Image.Resampling.NEAREST)
    weight = np.asarray(shown, np.float64)[..., None] / 255 * 0.6
    mixed = np.asarray(base, np.float64) * (1 - weight) + _HEAT * weight
    inside = np.asarray(Image.fromarray(mask).resize(base.size, Image.Resampling.NEAREST))
    line = max(2, round(max(base.size) / 400))
    mixed[_edge(inside, line)] = _DARK
    mixed[_edge(inside, max(line // 2, 1))] = (255, 255, 255)
    return Image.fromarray(np.uint8(np.round(mixed)))


def _edge(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of the mask at most `width` from its border: bool, of its shape."""
    framed = np.pad(mask, width)
    height, length = mask.shape
    moves = ((0, width), (2 * width, width), (width, 0), (width, 2 * width))
    core = np.logical_and.reduce([framed[y : y + height, x : x + length] for y, x in moves])
    return mask & ~core
