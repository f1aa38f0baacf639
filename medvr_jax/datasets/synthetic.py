"""The embedded task: a lesion that the overview shows as a spot, and whose class only a tool can tell.

A grey image with a dark border and a textured body holds one disc lesion with stripes; the class is the direction of
the stripes. All classes are equally bright. Either the stripes are too fine for the overview, and a zoom shows them; or
they are too faint for it, less than half of one of its 256 grey values in a 16-bit file, and a window around the
lesion's own grey value shows them, which is another one from image to image. Every example is a pure function of (seed,
split, index); splits and indices never share a random stream.

For experiments, lesions may lie only where the boxes of a habit miss them, or only where they hit, there may be fewer
classes, a first option may say that nothing is visible, which is never right, and a part of the training questions may
have the first class: what a guess is worth is then known.
"""

from __future__ import annotations

import dataclasses
import io
import zlib
from typing import Literal

import numpy as np
from PIL import Image

from medvr_jax.datasets.example import LETTERS, Example
from medvr_jax.errors import UserError

Split = Literal["train", "test", "warmup"]
SPLITS: tuple[Split, ...] = ("train", "test", "warmup")
CLASSES = ("level stripes", "upright stripes", "rising stripes", "falling stripes")
# Per class the direction (x, y) along which the brightness oscillates; y points downwards.
_WAVE_DIRECTIONS = np.array([[0.0, 1.0], [1.0, 0.0], [0.70710678, 0.70710678], [0.70710678, -0.70710678]])
# Of lesions with faint stripes: the grey value may be one less or more, the stripes' amplitude stays under half of one.
FAINT_LEVELS = (56, 88, 120, 152, 184, 216)
FAINT_AMPLITUDE, FAINT_LIMIT = 0.45, 0.49
DEEP = 257  # values of a 16-bit file for each of an overview's 256 grey values
# Where a policy with a habit looks (configs/tiny_warmup.py:habit), normalised: a strip across the middle.
HABIT_BOXES: dict[str, tuple[float, float, float, float]] = {
    "centre": (0.3125, 0.3125, 0.6875, 0.6875),
    "left": (0.0, 0.3125, 0.375, 0.6875),
    "right": (0.625, 0.3125, 1.0, 0.6875),
}
NOTHING = "nothing visible"
LESION_WORD = "lesion"
MARKER_WORD = "square"


def question(word: str) -> str:
    return f"What is in the {word}?"


@dataclasses.dataclass(frozen=True)
class Scene:
    """A drawn image [side, side] uint8, or uint16 with faint stripes; the class of its lesion; the true box in pixels
    (x1, y1, x2, y2); of a faint lesion which of FAINT_LEVELS it has."""

    pixels: np.ndarray
    label: int
    box: tuple[int, int, int, int]
    level: int | None = None


@dataclasses.dataclass(frozen=True)
class SyntheticTask:
    """The task's settings; all lengths are pixels of the original image."""

    seed: int = 0
    image_side: int = 448
    lesion_side: int = 28
    period: float = 7.0  # of the stripes
    texture_cells: int = 14  # cells of the body's texture along a side
    margin: float = 0.18  # lesion centres keep this share of the side from the border
    hidden_by: str = "size"  # size | contrast: what keeps the stripes from being seen in the overview
    classes: int = len(CLASSES)  # the first ones
    nothing_visible: bool = False  # whether a first option says so; it is never right
    prior: float = 0.0  # share of the training questions whose class is the first; the others are drawn as ever
    lesions: str = "anywhere"  # anywhere | outside_habits | inside_habits: of HABIT_BOXES

    @property
    def options(self) -> tuple[str, ...]:
        """What a question lets choose from."""
        return (NOTHING,) * self.nothing_visible + CLASSES[: self.classes]

    def __post_init__(self) -> None:
        if not 0 < self.lesion_side <= self.image_side * (1 - 2 * self.margin):
            raise UserError(
                f"data.synthetic.lesion_side: {self.lesion_side} does not fit; allowed: 1 to "
                f"{int(self.image_side * (1 - 2 * self.margin))} for image_side {self.image_side}"
            )
        if self.lesions != "anywhere" and not self._wanted_places().any():
            raise UserError(
                f"data.synthetic.lesions: found {self.lesions!r}, but with margin {self.margin} and lesion_side"
                f" {self.lesion_side} of image_side {self.image_side} no lesion lies there; allowed is a smaller margin"
            )

    def example(self, split: Split, index: int) -> Example:
        """The index-th example of a split, its image as PNG bytes."""
        return self._example(split, index, self.scene(split, index), LESION_WORD)

    def marker_example(self, split: Split, index: int) -> Example:
        """As `example`, with the lesion painted out, a plain square elsewhere, and asked about that square: a bright
        one or, among faint lesions, one of their grey values."""
        return self._example(split, index, self.scene(split, index, marker=True), MARKER_WORD)

    def scene(self, split: Split, index: int, marker: bool = False) -> Scene:
        """The drawing of one example; with `marker` the square replaces the lesion, at a place of its own."""
        rng = np.random.default_rng((self.seed, SPLITS.index(split), index, int(marker)))
        pixels = self._background(rng)
        low, high = self.margin * self.image_side, (1 - self.margin) * self.image_side
        corner = np.round(rng.uniform(low, high, size=2) - self.lesion_side / 2).astype(int)
        while not (marker or self._wanted(corner)):
            corner = np.round(rng.uniform(low, high, size=2) - self.lesion_side / 2).astype(int)
        label = int(rng.integers(self.classes))
        if split == "train" and self.prior and rng.random() < self.prior:
            label = 0
        phase = rng.uniform(0, 2 * np.pi)
        x, y = (int(v) for v in corner)
        box = (x, y, x + self.lesion_side, y + self.lesion_side)
        if self.hidden_by == "contrast":
            level, shift = int(rng.integers(len(FAINT_LEVELS))), int(rng.integers(-1, 2))
            amplitude = 0.0 if marker else FAINT_AMPLITUDE
            stripes, disc = self._stripes(label, phase, FAINT_LEVELS[level] + shift, amplitude)
            return Scene(self._faint(pixels, box, stripes, disc | marker), label, box, level)
        window = pixels[y : y + self.lesion_side, x : x + self.lesion_side]
        if marker:
            window[:] = rng.integers(160, 240)
        else:
            self._draw_lesion(window, label, phase)
        return Scene(pixels, label, box)

    def _wanted(self, corner: np.ndarray) -> bool:
        """Whether a lesion may lie there: the whole of it in one of the habit's boxes, or none of it in any."""
        if self.lesions == "anywhere":
            return True
        low = corner / self.image_side
        high = (corner + self.lesion_side) / self.image_side
        boxes = np.array(list(HABIT_BOXES.values()))
        if self.lesions == "inside_habits":
            return bool(((boxes[:, :2] <= low) & (high <= boxes[:, 2:])).all(axis=1).any())
        return not ((low < boxes[:, 2:]) & (boxes[:, :2] < high)).all(axis=1).any()

    def _wanted_places(self) -> np.ndarray:
        """Of a grid of the corners that the margin allows, which are wanted, bool."""
        first, last = (share * self.image_side - self.lesion_side / 2 for share in (self.margin, 1 - self.margin))
        corners = np.linspace(first, last, 33).round()
        return np.array([self._wanted(np.array([x, y])) for x in corners for y in corners])

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
        stripes, disc = self._stripes(label, phase, 178, 70)
        window[disc] = np.clip(np.round(stripes[disc]), 0, 255).astype(np.uint8)

    def _faint(
        self, background: np.ndarray, box: tuple[int, int, int, int], stripes: np.ndarray, inside: np.ndarray
    ) -> np.ndarray:
        """[side, side] uint16: the background darker than every lesion, and a mark in a corner, as radiographs have;
        black and white are in it, so that the overview is the file's values divided by DEEP, and rounded."""
        level = np.round(stripes.mean())
        darker = np.where(background > 12, 16 + (background - np.uint8(72)) // 2, 0).astype(np.uint16) * DEEP
        darker[: self.image_side // 28, : self.image_side // 28] = 255 * DEEP
        values = np.round(np.clip(stripes, level - FAINT_LIMIT, level + FAINT_LIMIT) * DEEP).astype(np.uint16)
        darker[box[1] : box[3], box[0] : box[2]][inside] = values[inside]
        return darker

    def _stripes(self, label: int, phase: float, mean: float, amplitude: float) -> tuple[np.ndarray, np.ndarray]:
        """Brightness of a lesion's square [lesion_side, lesion_side] float64, and the disc of it that is lesion."""
        side = self.lesion_side
        axis = np.arange(side) - (side - 1) / 2
        along = _WAVE_DIRECTIONS[label][0] * axis[None, :] + _WAVE_DIRECTIONS[label][1] * axis[:, None]
        stripes = mean + amplitude * np.sin(2 * np.pi * along / self.period + phase)
        disc = axis[None, :] ** 2 + axis[:, None] ** 2 <= (side / 2) ** 2
        return stripes + (mean - stripes[disc].mean()), disc  # the same mean, whatever the phase and the class

    def _example(self, split: Split, index: int, scene: Scene, word: str) -> Example:
        faint = "faint-" if self.hidden_by == "contrast" else ""
        where = "" if self.lesions == "anywhere" else f"{self.lesions}-".replace("_", "-")
        prior = f"prior-{self.prior:g}-" if self.prior and split == "train" else ""
        return Example(
            id=f"synthetic-{self.seed}-{split}-{index}-{faint}{where}{prior}{word}",
            images=(encode_png(scene.pixels),),
            question=question(word),
            options=self.options,
            answer=LETTERS[scene.label + self.nothing_visible],
            answer_kind="choice",
            modality="synthetic",
            # With a contrast there is nowhere to zoom in on.
            boxes=(tuple(v / self.image_side for v in scene.box),) if self.hidden_by == "size" else (),
        )


def encode_png(pixels: np.ndarray) -> bytes:
    """Grey pixels [side, side] uint8 or uint16 -> PNG bytes, at the speed of run-length compression."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()
