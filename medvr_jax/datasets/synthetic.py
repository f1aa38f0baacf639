"""The embedded task: a small lesion that the overview shows as a spot, and whose class only a zoom can tell.

A grey image with a dark border and a textured body holds one disc lesion with stripes; the class is the direction of
the stripes. All classes are equally bright, and the stripes are too fine for the overview. Every example is a pure
function of (seed, split, index); splits and indices never share a random stream.
"""

from __future__ import annotations

import dataclasses
import io
import zlib
from typing import Literal

import numpy as np
from PIL import Image

from medvr_jax.datasets.example import Example
from medvr_jax.errors import UserError

Split = Literal["train", "test", "warmup"]
SPLITS: tuple[Split, ...] = ("train", "test", "warmup")
CLASSES = ("level stripes", "upright stripes", "rising stripes", "falling stripes")
# Per class the direction (x, y) along which the brightness oscillates; y points downwards.
_WAVE_DIRECTIONS = np.array([[0.0, 1.0], [1.0, 0.0], [0.70710678, 0.70710678], [0.70710678, -0.70710678]])
LESION_WORD = "lesion"
MARKER_WORD = "square"


def question(word: str) -> str:
    return f"What is in the {word}?"


@dataclasses.dataclass(frozen=True)
class Scene:
    """A drawn image [side, side] uint8, the class of its lesion, and the true box in pixels (x1, y1, x2, y2)."""

    pixels: np.ndarray
    label: int
    box: tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class SyntheticTask:
    """The task's settings; all lengths are pixels of the original image."""

    seed: int = 0
    image_side: int = 448
    lesion_side: int = 28
    period: float = 7.0  # of the stripes
    texture_cells: int = 14  # cells of the body's texture along a side
    margin: float = 0.18  # lesion centres keep this share of the side from the border

    def __post_init__(self) -> None:
        if not 0 < self.lesion_side <= self.image_side * (1 - 2 * self.margin):
            raise UserError(
                f"data.synthetic.lesion_side: {self.lesion_side} does not fit; allowed: 1 to "
                f"{int(self.image_side * (1 - 2 * self.margin))} for image_side {self.image_side}"
            )

    def example(self, split: Split, index: int) -> Example:
        """The index-th example of a split, its image as PNG bytes."""
        return self._example(split, index, self.scene(split, index), LESION_WORD)

    def marker_example(self, split: Split, index: int) -> Example:
        """As `example`, with the lesion painted out, a plain bright square elsewhere, and asked about that square."""
        return self._example(split, index, self.scene(split, index, marker=True), MARKER_WORD)

    def scene(self, split: Split, index: int, marker: bool = False) -> Scene:
        """The drawing of one example; with `marker` the square replaces the lesion, at a place of its own."""
        rng = np.random.default_rng((self.seed, SPLITS.index(split), index, int(marker)))
        pixels = self._background(rng)
        low, high = self.margin * self.image_side, (1 - self.margin) * self.image_side
        corner = np.round(rng.uniform(low, high, size=2) - self.lesion_side / 2).astype(int)
        label = int(rng.integers(len(CLASSES)))
        phase = rng.uniform(0, 2 * np.pi)
        x, y = (int(v) for v in corner)
        window = pixels[y : y + self.lesion_side, x : x + self.lesion_side]
        if marker:
            window[:] = rng.integers(160, 240)
        else:
            self._draw_lesion(window, label, phase)
        return Scene(pixels, label, (x, y, x + self.lesion_side, y + self.lesion_side))

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """Dark border, bright body disc with a smooth texture of few grey levels (cheap to compress)."""
        side = self.image_side
        noise = rng.integers(0, 256, size=(self.texture_cells, self.texture_cells), dtype=np.uint8)
        texture = np.asarray(Image.fromarray(noise).resize((side, side), Image.BILINEAR))
        centre = side / 2 + rng.uniform(-0.02, 0.02, size=2) * side
        radius = rng.uniform(0.44, 0.48) * side
        axis = np.arange(side)
        inside = (axis[None, :] - centre[0]) ** 2 + (axis[:, None] - centre[1]) ** 2 < radius**2
        return np.where(inside, 72 + (texture >> 5 << 3), 12).astype(np.uint8)

    def _draw_lesion(self, window: np.ndarray, label: int, phase: float) -> None:
        side = self.lesion_side
        axis = np.arange(side) - (side - 1) / 2
        along = _WAVE_DIRECTIONS[label][0] * axis[None, :] + _WAVE_DIRECTIONS[label][1] * axis[:, None]
        stripes = 178 + 70 * np.sin(2 * np.pi * along / self.period + phase)
        disc = axis[None, :] ** 2 + axis[:, None] ** 2 <= (side / 2) ** 2
        stripes += 178 - stripes[disc].mean()  # every lesion has the same mean, whatever its phase and class
        window[disc] = np.clip(np.round(stripes[disc]), 0, 255).astype(np.uint8)

    def _example(self, split: Split, index: int, scene: Scene, word: str) -> Example:
        return Example(
            id=f"synthetic-{self.seed}-{split}-{index}-{word}",
            images=(encode_png(scene.pixels),),
            question=question(word),
            options=CLASSES,
            answer="ABCD"[scene.label],
            answer_kind="choice",
            modality="synthetic",
            boxes=(tuple(v / self.image_side for v in scene.box),),
        )


def encode_png(pixels: np.ndarray) -> bytes:
    """Grey pixels [side, side] uint8 -> PNG bytes, at the speed of run-length compression."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()
