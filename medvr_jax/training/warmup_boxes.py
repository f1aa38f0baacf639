"""What a policy that zooms learns from.

A lesion asked for and a random box zoomed in on; a lesion asked for, the zoom on it, only the reading trained; a marker
asked for, the box on it. No trajectory whose box is trained shows where a lesion is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from medvr_jax.evaluation.grounding import hit
from medvr_jax.inputs.boxes import Box, check_zoom_box, normalise_box
from medvr_jax.inputs.chat import Encoder, Prompt
from medvr_jax.inputs.images import load_image
from medvr_jax.rollout.tools.zoom import ZoomIn
from medvr_jax.training.tiny_folder import LOOK_THOUGHTS
from medvr_jax.training.warmup_data import Row, RowMaker


@dataclasses.dataclass(frozen=True)
class Lattice:
    """The boxes that the warm-up speaks of: squares of one side on a lattice, in pixels of a square overview."""

    overview: int
    side: int
    step: int

    @functools.cached_property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        starts = range(0, self.overview - self.side + 1, self.step)
        return [(x, y, x + self.side, y + self.side) for y in starts for x in starts]

    def random(self, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """A box whatever the image shows; along each axis the two outermost positions are twice as likely."""
        starts = range(0, self.overview - self.side + 1, self.step)
        shares = np.array([2.0 if start in (starts[0], starts[-1]) else 1.0 for start in starts])
        x, y = (int(v) for v in rng.choice(starts, size=2, p=shares / shares.sum()))
        return (x, y, x + self.side, y + self.side)

    def nearest(self, true: Box) -> tuple[int, int, int, int]:
        """The box whose centre is nearest to that of the normalised box."""
        x, y = ((a + b) / 2 * self.overview for a, b in ((true[0], true[2]), (true[1], true[3])))
        half = self.side / 2
        return min(self.boxes, key=lambda box: (box[0] + half - x) ** 2 + (box[1] + half - y) ** 2)

    def hitting(self, true: Box) -> list[tuple[int, int, int, int]]:
        """All boxes that hit the normalised box."""
        return [box for box in self.boxes if hit(normalise_box(box, (self.overview, self.overview)), true)]


class BoxRowMaker(RowMaker):
    """Trajectories that zoom, or point."""

    def __init__(self, encoder: Encoder, lattice: Lattice, *, answer_weight: float, random_box_weight: float) -> None:
        """The weights are of the tokens that name the class, and of coordinates; all others weigh 1."""
        super().__init__(encoder, answer_weight=answer_weight)
        self.lattice, self._random_box_weight = lattice, random_box_weight

    def hitting_box(self, true: Box, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """One of the boxes that hit the normalised box."""
        hitting = self.lattice.hitting(true)
        return hitting[rng.integers(len(hitting))]

    def zoom(self, prompt: Prompt, rng: np.random.Generator, *, on_lesion: bool) -> Row:
        """Zoom and answer. A box on the lesion carries no loss; a random box does, and misses more often than not."""
        if on_lesion:
            call, crop = self._seen_in(prompt, self.hitting_box(prompt.example.boxes[0], rng), rng, weight=0.0)
            return self.look(prompt, call, crop, answer_weight=self._answer_weight)
        call, crop = self._seen_in(prompt, self.lattice.random(rng), rng, weight=1.0)
        return self.look(prompt, call, crop, answer_weight=1.0)

    def point(self, prompt: Prompt, rng: np.random.Generator, box_weight: float) -> Row:
        """The first turn alone, its box on what the prompt asks for: only for markers."""
        box = self.lattice.nearest(prompt.example.boxes[0])
        return self._row(prompt, *self._zoom(box, self._marker_thought(rng), weight=1.0, box_weight=box_weight))

    def _thought(self, rng: np.random.Generator) -> str:
        """Before a zoom on a lesion …"""
        return LOOK_THOUGHTS[rng.integers(len(LOOK_THOUGHTS))]

    def _marker_thought(self, rng: np.random.Generator) -> str:
        """… and on a marker."""
        return self._thought(rng)

    def _seen_in(
        self, prompt: Prompt, box: Sequence[int], rng: np.random.Generator, *, weight: float
    ) -> tuple[tuple[np.ndarray, np.ndarray], Image.Image]:
        """The first turn with this box, and the crop that comes back."""
        call = self._zoom(box, self._thought(rng), weight=weight, box_weight=self._random_box_weight)
        return call, self.crop(prompt, box)

    def crop(self, prompt: Prompt, box: Sequence[int]) -> Image.Image:
        """What the tool returns for the box."""
        image = prompt.images[0]
        zoom = check_zoom_box(list(box), image.resized_size, image.original_size)
        return load_image(prompt.example.images[0]).crop(zoom.original)

    def _zoom(
        self, box: Sequence[int], thought: str, *, weight: float, box_weight: float
    ) -> tuple[np.ndarray, np.ndarray]:
        opening = f'<think>{thought}</think><tool_call>{{"name": "{ZoomIn.name}", "arguments": {{"bbox_2d": ['
        return self._call(opening, ", ".join(map(str, box)), weight=weight, argument_weight=box_weight)
