"""What the supervised warm-up learns from: trajectories with exactly the rollout's token layout.

Kinds of trajectories: a lesion asked for and a random box zoomed in on; a lesion asked for, the zoom on it, only the
reading trained; a marker asked for, the box on it; a lesion asked for and answered at once, at random. No trajectory
whose box is trained shows where a lesion is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.synthetic import CLASSES
from medvr_jax.evaluation.grounding import hit
from medvr_jax.inputs.batches import PromptBatch, batch_prompts
from medvr_jax.inputs.boxes import Box, check_zoom_box, normalise_box
from medvr_jax.inputs.chat import Encoder, Prompt, encode_observation, encode_prompt
from medvr_jax.inputs.images import PreparedImage, load_image, pack_images
from medvr_jax.models.config import VisionConfig
from medvr_jax.models.vision import ImageBatch
from medvr_jax.rollout.tools.zoom import ZoomIn
from medvr_jax.training.tiny_folder import LOOK_THOUGHTS, seen_thought


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


@dataclasses.dataclass(frozen=True)
class Row:
    """One trajectory of T slots, slot 0 being the prompt's last token. weights [T]: of predicting the slot's token."""

    tokens: np.ndarray  # [T] int32
    positions: np.ndarray  # [T, 3] int32
    feature_index: np.ndarray  # [T] int32
    weights: np.ndarray  # [T] float32
    image: PreparedImage | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowBatch:
    """B prompts with M trajectories of T slots each. images: every leaf [B, M, …], or None where no row has a crop."""

    prompts: PromptBatch
    tokens: np.ndarray  # [B, M, T]
    positions: np.ndarray  # [B, M, T, 3]
    feature_index: np.ndarray  # [B, M, T]
    weights: np.ndarray  # [B, M, T]
    images: ImageBatch | None


class RowMaker:
    """Builds trajectories. Everything random comes from the generator that each call is given."""

    def __init__(
        self,
        encoder: Encoder,
        lattice: Lattice,
        *,
        answer_weight: float,
        random_box_weight: float,
    ) -> None:
        """The weights are of the tokens that name the class, and of coordinates; all others weigh 1."""
        self.encoder, self.lattice = encoder, lattice
        self._answer_weight = answer_weight
        self._random_box_weight = random_box_weight
        self._tokens = functools.lru_cache(maxsize=None)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.encoder.tokenizer.encode(text, add_special_tokens=False))

    def prompt(self, example: Example) -> Prompt:
        return encode_prompt(example, self.encoder)

    def zoom(self, prompt: Prompt, rng: np.random.Generator, *, on_lesion: bool) -> Row:
        """Zoom and answer. A box on the lesion carries no loss; a random box does, and misses more often than not."""
        example = prompt.example
        hitting = self.lattice.hitting(example.boxes[0])
        box = hitting[rng.integers(len(hitting))] if on_lesion else self.lattice.random(rng)
        call, call_weights = self._call(box, rng, weight=0.0 if on_lesion else 1.0, box_weight=self._random_box_weight)
        answer, answer_weights = self._answer(example.answer, weight=self._answer_weight if on_lesion else 1.0)
        image = prompt.images[0]
        zoom = check_zoom_box(list(box), image.resized_size, image.original_size)
        crop = load_image(example.images[0]).crop(zoom.original)
        seen = encode_observation(self.encoder, prompt.next_position + len(call), crop=crop)
        silent = np.zeros(len(seen.token_ids), np.float32)
        return self._row(
            prompt,
            np.concatenate([call, seen.token_ids, answer]),
            np.concatenate([call_weights, silent, answer_weights]),
            seen.positions,
            seen.feature_index,
            after=len(call),
            following=seen.next_position,
            image=seen.image,
        )

    def point(self, prompt: Prompt, rng: np.random.Generator, box_weight: float) -> Row:
        """The first turn alone, its box on what the prompt asks for: only for markers."""
        call, weights = self._call(self.lattice.nearest(prompt.example.boxes[0]), rng, box_weight=box_weight)
        return self._row(prompt, call, weights)

    def direct(self, prompt: Prompt, rng: np.random.Generator) -> Row:
        """An answer without a zoom, at random: the overview is not to be read."""
        letter = "ABCD"[rng.integers(len(CLASSES))]
        return self._row(prompt, *self._answer(letter, weight=1.0))

    def _call(
        self, box: Sequence[int], rng: np.random.Generator, *, weight: float = 1.0, box_weight: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        thought = LOOK_THOUGHTS[rng.integers(len(LOOK_THOUGHTS))]
        opening = f'<think>{thought}</think><tool_call>{{"name": "{ZoomIn.name}", "arguments": {{"bbox_2d": ['
        parts = [self._tokens(text) for text in (opening, ", ".join(map(str, box)), "]}}</tool_call><|im_end|>")]
        whole = parts[0] + parts[1] + parts[2]
        weights = np.full(len(whole), weight, np.float32)
        weights[len(parts[0]) : len(parts[0]) + len(parts[1])] *= box_weight
        return np.asarray(whole, np.int32), weights

    def _answer(self, letter: str, *, weight: float) -> tuple[np.ndarray, np.ndarray]:
        name = CLASSES["ABCD".index(letter)]
        whole = self._tokens(f"<think>{seen_thought(name)}</think><answer>{letter}</answer><|im_end|>")
        naming = {self._tokens(f" {name}")[0], self._tokens(f">{letter}")[0]}
        return np.asarray(whole, np.int32), np.array([weight if t in naming else 1.0 for t in whole], np.float32)

    def _row(
        self,
        prompt: Prompt,
        tokens: np.ndarray,
        weights: np.ndarray,
        seen_positions: np.ndarray | None = None,
        seen_features: np.ndarray | None = None,
        *,
        after: int = 0,
        following: int = 0,
        image: PreparedImage | None = None,
    ) -> Row:
        """Slot 0 in front; an observation of len(seen_positions) tokens lies `after` tokens into the response."""
        count = len(tokens)
        positions = np.repeat(prompt.next_position + np.arange(count)[:, None], 3, axis=1)
        features = np.full(count, -1, np.int32)
        if seen_positions is not None:
            end = after + len(seen_positions)
            positions[after:end], features[after:end] = seen_positions, seen_features
            positions[end:] = following + np.arange(count - end)[:, None]
        return Row(
            tokens=np.concatenate([prompt.token_ids[-1:], tokens]).astype(np.int32),
            positions=np.concatenate([prompt.positions[-1:], positions]).astype(np.int32),
            feature_index=np.concatenate([[-1], features]).astype(np.int32),
            weights=np.concatenate([[0.0], weights]).astype(np.float32),
            image=image,
        )


def batch_rows(
    prompts: Sequence[Prompt], rows: Sequence[Sequence[Row]], *, P: int, T: int, S: int, vision: VisionConfig
) -> RowBatch:
    """B prompts and M rows each -> padded arrays."""
    B, M = len(rows), len(rows[0])
    tokens, positions = np.zeros((B, M, T), np.int32), np.zeros((B, M, T, 3), np.int32)
    feature_index, weights = np.full((B, M, T), -1, np.int32), np.zeros((B, M, T), np.float32)
    for b, group in enumerate(rows):
        for m, row in enumerate(group):
            n = len(row.tokens)
            tokens[b, m, :n], positions[b, m, :n] = row.tokens, row.positions
            feature_index[b, m, :n], weights[b, m, :n] = row.feature_index, row.weights
    crops = [row.image for group in rows for row in group]
    images = None
    if any(crop is not None for crop in crops):
        packed = pack_images(crops, S, vision)
        images = jax.tree.map(lambda leaf: leaf.reshape(B, M, *leaf.shape[1:]), packed)
    return RowBatch(batch_prompts(prompts, P, 1, S, vision), tokens, positions, feature_index, weights, images)
