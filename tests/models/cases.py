"""Groups of random prompts and responses, as our model and as transformers' model take them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from medvr_jax.models.backbone import PromptInputs, ResponseInputs
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.packing import pack_all
from medvr_jax.models.rope import multimodal_positions
from medvr_jax.models.vision import ImageBatch
from medvr_jax.models.vision_geometry import padded_geometry
from tests.torch_reference import IMAGE, VISION_END, VISION_START

Grid = tuple[int, int, int]


@dataclasses.dataclass
class Segment:
    """Tokens with the images among them: pixels [s, patch_dim] in the image processor's order."""

    tokens: list[int]
    grids: list[Grid]
    pixels: list[np.ndarray]


@dataclasses.dataclass
class Group:
    """B prompts with M responses each, padded, and the segments that they were made of."""

    prompts: list[Segment]
    responses: list[list[Segment]]
    prompt: PromptInputs
    response: ResponseInputs
    prompt_images: ImageBatch
    response_images: ImageBatch


def segment(rng: np.random.Generator, config: BackboneConfig, *parts: int | Grid) -> Segment:
    """A number is that many text tokens, a grid is an image between its two marks."""
    made = Segment([], [], [])
    for part in parts:
        if isinstance(part, int):
            made.tokens += rng.integers(0, 490, part).tolist()
        else:
            count = part[1] * part[2]
            made.tokens += [VISION_START, *[IMAGE] * (count // config.vision.merge_unit), VISION_END]
            made.grids.append(part)
            made.pixels.append(rng.normal(size=(count, config.vision.patch_dim)).astype(np.float32))
    return made


def image_batch(segments: list[Segment], count: int, patches: int, config: BackboneConfig) -> ImageBatch:
    """`count` rows of `patches` for each segment; rows without an image are empty."""
    rows = []
    for one in segments:
        for index in range(count):
            grid = one.grids[index] if index < len(one.grids) else None
            pixels = np.zeros((patches, config.vision.patch_dim), np.float32)
            if grid is not None:
                pixels[: len(one.pixels[index])] = one.pixels[index]
            rows.append((pixels, *padded_geometry(grid, patches, config.vision)))
    return ImageBatch(*(jnp.asarray(np.stack(column)) for column in zip(*rows, strict=True)))


def group(
    config: BackboneConfig,
    prompts: list[Segment],
    responses: list[list[Segment]],
    *,
    P: int,
    T: int,
    S: int,
    images: int = 1,
    crops: int = 1,
    crop_S: int | None = None,
) -> Group:
    """Pads everything to the buckets; positions of a response go on from its prompt's. crop_S None is S."""
    crop_S = crop_S or S
    encoded = [_encode(one, 0, P, S, config) for one in prompts]
    tokens, positions, index, valid, following = (np.stack(x) for x in zip(*encoded, strict=True))
    prompt = PromptInputs(*(jnp.asarray(x) for x in (tokens, positions, valid, index)), None)
    encoded = [
        [_encode(one, int(start), T, crop_S, config) for one in row]
        for row, start in zip(responses, following, strict=True)
    ]
    tokens, positions, index = (
        np.stack([np.stack([one[field] for one in row]) for row in encoded]) for field in range(3)
    )
    response = ResponseInputs(*(jnp.asarray(x) for x in (tokens, positions, index)), None)
    flat = [one for row in responses for one in row]
    return Group(
        prompts,
        responses,
        prompt,
        response,
        image_batch(prompts, images, S, config),
        image_batch(flat, crops, crop_S, config),
    )


def with_features(graphdef: nnx.GraphDef, params: nnx.State, group: Group) -> tuple[PromptInputs, ResponseInputs]:
    """The inputs of `prefill` and `score`, their images encoded by the model."""
    B, M, _ = group.response.tokens.shape
    width = nnx.merge(graphdef, params).config.text.hidden_size
    features = encode(graphdef, params, group.prompt_images).reshape(B, -1, width)
    crops = encode(graphdef, params, group.response_images).reshape(B, -1, width)
    # Trajectory m's crops are the m-th part of the group's.
    index = group.response.feature_index
    index = jnp.where(index >= 0, index + crops.shape[1] // M * jnp.arange(M)[:, None], -1)
    return (
        dataclasses.replace(group.prompt, features=features),
        dataclasses.replace(group.response, features=crops, feature_index=index),
    )


@functools.partial(jax.jit, static_argnums=0)
def encode(graphdef: nnx.GraphDef, params: nnx.State, images: ImageBatch) -> jax.Array:
    return nnx.merge(graphdef, params).encode_images(images)


@functools.partial(jax.jit, static_argnums=(0, 4))
def score(
    graphdef: nnx.GraphDef, params: nnx.State, prompt: PromptInputs, response: ResponseInputs, remat: str = "none"
) -> jax.Array:
    """[B, M, T, D] without sharing."""
    shape = response.tokens.shape
    return nnx.merge(graphdef, params).score(prompt, response, pack_all(*shape), remat).reshape(*shape, -1)


def score_logits(graphdef: nnx.GraphDef, params: nnx.State, group: Group, remat: str = "none") -> jax.Array:
    """[B, M, T, V] from one scoring pass."""
    hidden = score(graphdef, params, *with_features(graphdef, params, group), remat)
    return nnx.merge(graphdef, params).logits(hidden)


def reference_inputs(*segments: Segment) -> dict[str, torch.Tensor]:
    """The keyword arguments of transformers' model for one whole sequence."""
    tokens = torch.tensor([[token for one in segments for token in one.tokens]])
    made = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    pixels = [x for one in segments for x in one.pixels]
    if pixels:
        made["pixel_values"] = torch.from_numpy(np.concatenate(pixels))
        made["image_grid_thw"] = torch.tensor([grid for one in segments for grid in one.grids])
        made["mm_token_type_ids"] = (tokens == IMAGE).int()
    return made


def reference_logits(reference: torch.nn.Module, prompt: Segment, response: Segment) -> np.ndarray:
    """[n, V] at the response's tokens."""
    with torch.no_grad():
        logits = reference(**reference_inputs(prompt, response)).logits[0]
    return logits[len(prompt.tokens) :].numpy()


def largest_differences(logits: jax.Array, reference: torch.nn.Module, group: Group) -> list[float]:
    """For each prompt, over all real tokens of its responses."""
    worst = [0.0] * len(group.prompts)
    for b, (prompt, row) in enumerate(zip(group.prompts, group.responses, strict=True)):
        for m, response in enumerate(row):
            ours = np.asarray(logits[b, m, : len(response.tokens)])
            worst[b] = max(worst[b], float(np.abs(ours - reference_logits(reference, prompt, response)).max()))
    return worst


def largest_difference(logits: jax.Array, reference: torch.nn.Module, group: Group) -> float:
    """Over all real response tokens of the group."""
    return max(largest_differences(logits, reference, group))


def _encode(
    one: Segment, start: int, length: int, patches: int, config: BackboneConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """tokens, positions, feature_index and valid, padded to `length`, and the next position."""
    unit, n = config.vision.merge_unit, len(one.tokens)
    assert n <= length
    positions, following = multimodal_positions(
        one.tokens, one.grids, start, image_token_id=IMAGE, merge_size=config.vision.spatial_merge_size
    )
    slots = [i * (patches // unit) + np.arange(h * w // unit) for i, (_, h, w) in enumerate(one.grids)]
    index = np.full(length, -1, np.int32)
    if slots:
        index[:n][np.array(one.tokens) == IMAGE] = np.concatenate(slots)
    tokens = np.zeros(length, np.int32)
    tokens[:n] = one.tokens
    padded = np.zeros((length, 3), np.int32)
    padded[:n] = positions
    return tokens, padded, index, np.arange(length) < n, following
