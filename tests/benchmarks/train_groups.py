"""A group ready for an update, as ours and as M full sequences."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from medvr_jax.inputs.batches import batch_prompts
from medvr_jax.inputs.chat import Observation, encode_observation
from medvr_jax.inputs.images import pack_image_rows
from medvr_jax.models.backbone import PromptInputs
from medvr_jax.models.packing import pack_rows
from medvr_jax.training.update import TrainBatch
from tests.benchmarks.models import Model, make_encoder
from tests.benchmarks.peers import Picture
from tests.benchmarks.prompts import make_crops, make_prompt


@dataclasses.dataclass(frozen=True)
class GroupOfWork:
    """One prompt with M responses of T tokens, all sampled but the prompt's last and an observation's.

    Attributes:
        batch: for our update, host arrays.
        sequences: `[M, n]` int32, whole sequences.
        pictures: per trajectory, the prompt's image and its crop; none for a text prompt.
        sampled: `[M, n - prompt_length]` bool.
        advantages: `[M]` float32.
        prompt_length: tokens of the prompt, its last one included.
        observed: tokens of each observation; 0 without crops.
        tokens_processed: that our update's decoder sees, padding included.
    """

    batch: TrainBatch
    sequences: np.ndarray
    pictures: list[list[Picture]]
    sampled: np.ndarray
    advantages: np.ndarray
    prompt_length: int
    observed: int
    tokens_processed: int

    @functools.cached_property
    def distinct_tokens(self) -> int:
        """Tokens that there are, counted in the whole sequences: different beginnings of one or several of them.

        Responses that happen to begin alike have one token less than they would have by P + M T.
        """
        places: dict[tuple[int, int], int] = {}
        for row in self.sequences.tolist():
            place = 0
            for token in row:
                place = places.setdefault((place, token), len(places) + 1)
        return len(places)

    def loss(self) -> float:
        """Of an update that samples and scores with one policy: the ratio is 1, the objective each token's advantage.

        By hand, of the tokens that count in the whole sequences: `-sum_m A_m n_m / sum_m n_m`.
        """
        counts = self.sampled.sum(axis=1)
        return float(-(self.advantages.astype(np.float64) * counts).sum() / counts.sum())


def make_group(
    model: Model,
    *,
    prompt_tokens: int,
    response: int,
    slots: int,
    observation: int,
    image_side: int,
    crop_side: int,
    images: int = 1,
) -> GroupOfWork:
    """Random responses of T = `response` slots, the first of which holds the prompt's last token.

    With an `image_side` the prompt has `images`, and in the middle of each response stands an observation with a crop
    of its own of at most `observation` tokens.
    """
    rng = np.random.default_rng(0)
    encoder = make_encoder(model.folder, prompt_side=image_side or 28, crop_side=crop_side)
    vision, images = model.config.vision, images if image_side else 0
    prompt = make_prompt(encoder, prompt_tokens, images=images)
    patches = (image_side // vision.patch_size) ** 2 or vision.merge_unit
    packed = batch_prompts([prompt], prompt_tokens - 1, max(images, 1), patches, vision)
    shape = (1, slots, response)
    crop_patches = (crop_side // vision.patch_size) ** 2
    crop_features = crop_patches // vision.merge_unit
    tokens = rng.integers(0, 256, shape).astype(np.int32)
    sampled = np.ones(shape, bool)
    tokens[..., 0], sampled[..., 0] = packed.last_token[0], False
    positions = np.zeros((*shape, 3), np.int32)
    positions[..., 0, :] = packed.last_position[0]
    positions[..., 1:, :] = (packed.next_position[0] + np.arange(response - 1))[:, None]
    feature_index = np.full(shape, -1, np.int32)
    pictures: list[list[Picture]] = []
    prepared, count = [], 0
    if images:
        for m, crop in enumerate(make_crops(slots, crop_side)):
            before = (response - observation) // 2
            start = int(packed.next_position[0]) + before - 1
            seen = encode_observation(encoder, start, crop=crop)
            count = len(seen.token_ids)
            assert count <= observation
            here = slice(before, before + count)
            tokens[0, m, here], sampled[0, m, here] = seen.token_ids, False
            positions[0, m, here], feature_index[0, m, here] = seen.positions, _shifted(seen, m * crop_features)
            positions[0, m, before + count :] = (seen.next_position + np.arange(response - before - count))[:, None]
            prepared.append(seen.image)
            whole = [*prompt.images, seen.image]
            pictures.append([(image.patches, image.grid) for image in whole])
    advantages = rng.normal(size=(1, slots)).astype(np.float32)
    none = np.full((1, slots), -1)
    width = model.config.text.hidden_size
    batch = TrainBatch(
        prompt=PromptInputs(
            packed.tokens,
            packed.positions,
            packed.valid,
            packed.feature_index,
            np.zeros((1, max(images, 1) * patches // vision.merge_unit, width), np.float32),
        ),
        tokens=tokens,
        positions=positions,
        feature_index=feature_index,
        packing=pack_rows(np.full((1, slots), response), none, none, sampled, slots * response, forks=False),
        crop_features=None if images else np.zeros((1, 0, crop_features, width), np.float32),
        sampled=sampled,
        log_probabilities=np.zeros(shape, np.float32),
        old_log_probabilities=None,
        advantages=advantages,
        counted=np.ones(1, bool),
        images=packed.images if images else None,
        crops=pack_image_rows([prepared], slots, crop_patches, vision) if images else None,
    )
    sequences = np.concatenate([np.tile(prompt.token_ids, (slots, 1)), tokens[0, :, 1:]], axis=1)
    return GroupOfWork(
        batch=batch,
        sequences=sequences,
        pictures=pictures,
        sampled=sampled[0, :, 1:],
        advantages=advantages[0],
        prompt_length=prompt_tokens,
        observed=count,
        tokens_processed=packed.tokens.size + batch.packing.slots.size,
    )


def _shifted(observation: Observation, places: int) -> np.ndarray:
    """Its feature index with the features so many places further back."""
    return np.where(observation.feature_index >= 0, observation.feature_index + places, -1)
