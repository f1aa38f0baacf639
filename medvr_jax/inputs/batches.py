"""Prompts of one step -> one padded batch of arrays, without the last prompt token.

That token is slot 0 of every trajectory's response: feeding it is the first decode step.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from medvr_jax.errors import UserError
from medvr_jax.inputs.chat import Prompt
from medvr_jax.inputs.images import pack_image_rows
from medvr_jax.models.config import VisionConfig
from medvr_jax.models.vision import ImageBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """B prompts, right-padded. feature_index points into the group's flattened, padded features [I * S // merge²]."""

    tokens: np.ndarray  # [B, P] int32, all but the last prompt token
    positions: np.ndarray  # [B, P, 3] int32
    valid: np.ndarray  # [B, P] bool
    feature_index: np.ndarray  # [B, P] int32, -1 = text
    last_token: np.ndarray  # [B] int32
    last_position: np.ndarray  # [B, 3] int32
    next_position: np.ndarray  # [B] int32
    images: ImageBatch  # every leaf [B, I, …]
    prompt_ids: np.ndarray  # [B] uint32, a stable hash of the example's id


def prompt_id(example_id: str) -> int:
    """A stable 32-bit hash, for random keys."""
    return int.from_bytes(hashlib.blake2s(example_id.encode(), digest_size=4).digest(), "little")


def batch_prompts(
    prompts: Sequence[Prompt], prompt_bucket: int, images: int, patches: int, vision: VisionConfig
) -> PromptBatch:
    """P = prompt_bucket tokens (the last one not counted), I = images per prompt, S = patches per image."""
    count = len(prompts)
    tokens = np.zeros((count, prompt_bucket), np.int32)
    positions = np.zeros((count, prompt_bucket, 3), np.int32)
    valid = np.zeros((count, prompt_bucket), bool)
    feature_index = np.full((count, prompt_bucket), -1, np.int32)
    for row, prompt in enumerate(prompts):
        n = len(prompt.token_ids) - 1
        largest = max((len(image.patches) for image in prompt.images), default=0)
        check_room(prompt.example.id, n, largest, len(prompt.images), prompt_bucket, images, patches)
        tokens[row, :n] = prompt.token_ids[:-1]
        positions[row, :n] = prompt.positions[:-1]
        valid[row, :n] = True
        feature_index[row, :n] = pad_feature_index(
            prompt.feature_index[:-1],
            [image.features(vision.spatial_merge_size) for image in prompt.images],
            patches // vision.merge_unit,
        )
    return PromptBatch(
        tokens=tokens,
        positions=positions,
        valid=valid,
        feature_index=feature_index,
        last_token=np.array([prompt.token_ids[-1] for prompt in prompts], np.int32),
        last_position=np.stack([prompt.positions[-1] for prompt in prompts]).astype(np.int32),
        next_position=np.array([prompt.next_position for prompt in prompts], np.int32),
        images=pack_image_rows([prompt.images for prompt in prompts], images, patches, vision),
        prompt_ids=np.array([prompt_id(prompt.example.id) for prompt in prompts], np.uint32),
    )


def pad_feature_index(index: np.ndarray, features_per_image: Sequence[int], slots_per_image: int) -> np.ndarray:
    """Indices counted through the images -> indices when every image takes `slots_per_image` places."""
    starts = np.concatenate([[0], np.cumsum(features_per_image)]).astype(np.int64)
    image = np.searchsorted(starts, index, side="right") - 1
    padded = image * slots_per_image + index - starts[image]
    return np.where(index >= 0, padded, -1).astype(np.int32)


def check_room(
    example: str, tokens: int, largest: int, count: int, prompt_bucket: int, images: int, patches: int
) -> None:
    """UserError unless a prompt's tokens, its largest image's patches and its number of images are within the limits.

    tokens: the last one not counted. The last three arguments are the limits.
    """
    name = f"example {example}"
    if tokens > prompt_bucket:
        raise UserError(
            f"{name}: a prompt of {tokens} tokens, the last one not counted; prompt.bucket allows {prompt_bucket}"
        )
    if count > images:
        raise UserError(f"{name}: {count} images; prompt.images allows {images}")
    if largest > patches:
        raise UserError(f"{name}: an image of {largest} patches; prompt.patches allows {patches}")
