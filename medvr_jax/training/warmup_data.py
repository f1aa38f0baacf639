"""What a supervised warm-up learns from: trajectories with exactly the rollout's token layout.

Here is what those of all tools have in common, and the one without a tool: a lesion asked for and answered at once, at
random. A tool's own are in `warmup_boxes.py` and `warmup_window.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from medvr_jax.datasets.example import LETTERS, Example
from medvr_jax.datasets.synthetic import NOTHING
from medvr_jax.inputs.batches import PromptBatch, batch_prompts
from medvr_jax.inputs.chat import Encoder, Prompt, encode_observation, encode_prompt
from medvr_jax.inputs.images import PreparedImage, pack_images
from medvr_jax.models.config import VisionConfig
from medvr_jax.models.vision import ImageBatch
from medvr_jax.training.tiny_folder import seen_thought


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

    def __init__(self, encoder: Encoder, *, answer_weight: float) -> None:
        """`answer_weight` is that of the tokens that name the class; others weigh 1."""
        self.encoder = encoder
        self._answer_weight = answer_weight
        self._tokens = functools.lru_cache(maxsize=None)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.encoder.tokenizer.encode(text, add_special_tokens=False))

    def prompt(self, example: Example) -> Prompt:
        return encode_prompt(example, self.encoder)

    def direct(self, prompt: Prompt, rng: np.random.Generator) -> Row:
        """An answer without a look, at random among the classes: the overview is not to be read."""
        return self._row(prompt, *self._answer(prompt.example, self._guess(prompt.example, rng), weight=1.0))

    def _guess(self, example: Example, rng: np.random.Generator) -> str:
        """A class's letter; that nothing is visible is no guess."""
        first = int(example.options[0] == NOTHING)
        return LETTERS[first + rng.integers(len(example.options) - first)]

    def look(
        self,
        prompt: Prompt,
        call: tuple[np.ndarray, np.ndarray],
        image: Image.Image,
        *,
        answer_weight: float,
        letter: str = "",
    ) -> Row:
        """A first turn's tokens and weights, the image that comes back, and the answer: by default the true one."""
        tokens, weights = call
        letter = letter or prompt.example.answer
        answer, answer_weights = self._answer(prompt.example, letter, weight=answer_weight)
        seen = encode_observation(self.encoder, prompt.next_position + len(tokens), crop=image)
        silent = np.zeros(len(seen.token_ids), np.float32)
        return self._row(
            prompt,
            np.concatenate([tokens, seen.token_ids, answer]),
            np.concatenate([weights, silent, answer_weights]),
            seen.positions,
            seen.feature_index,
            after=len(tokens),
            following=seen.next_position,
            image=seen.image,
        )

    def _call(
        self, opening: str, arguments: str, *, weight: float, argument_weight: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and weights of a first turn whose arguments' list stands between its `opening` and the end."""
        parts = [self._tokens(text) for text in (opening, arguments, "]}}</tool_call><|im_end|>")]
        whole = parts[0] + parts[1] + parts[2]
        weights = np.full(len(whole), weight, np.float32)
        weights[len(parts[0]) : len(parts[0]) + len(parts[1])] *= argument_weight
        return np.asarray(whole, np.int32), weights

    def _answer(self, example: Example, letter: str, *, weight: float) -> tuple[np.ndarray, np.ndarray]:
        name = example.options[LETTERS.index(letter)]
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
