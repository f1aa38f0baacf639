"""Temporaries of each program by arithmetic, for devices that nothing is compiled for and for trying other fields.

A model of what XLA keeps at the same time, not a bound: the largest of a program's phases, added where they overlap.
Axis letters: B groups (here of one device), M trajectories, P prompt tokens, T response tokens, E tokens fed at once.
"""

from __future__ import annotations

import jax.numpy as jnp

from medvr_jax import assembly
from medvr_jax.models import operations
from medvr_jax.planning.costs import device_bytes
from medvr_jax.training.abstract import AbstractRun

FLOAT = 4


def temporaries(run: AbstractRun) -> dict[str, float]:
    """Bytes per device by the name of the program."""
    config, settings, text, vision = run.config, run.rollout, run.backbone.text, run.backbone.vision
    width = jnp.dtype(config.model.compute_dtype).itemsize
    tensor = run.mesh.shape["tensor"]
    shards = run.mesh.size // tensor
    groups, M = assembly.groups_at_once(config) / shards, settings.trajectories
    P, T, E = settings.prompt_bucket, settings.response_length, settings.observation_length
    heads, vocabulary = text.num_heads / tensor, text.vocab_size / tensor
    sizes = operations.matrices(run.params, run.backbone)

    def at_once(images: int) -> int:
        """Of a group's images, those that the tower sees together."""
        return min(images, config.model.images_at_once or images)

    def tower(images: float, patches: int) -> float:
        """Encoding images at once: scores of whole rows in float32, twice, and a few rows of activations."""
        scores = 2 * FLOAT * vision.num_heads / tensor * patches * patches if vision.full_attention_blocks else 0
        return images * (scores + patches * width * (4 * vision.hidden_size + 3 * vision.intermediate_size / tensor))

    layer = width * (8 * text.hidden_size + 3 * text.intermediate_size / tensor)  # activations of a token in one layer
    saved = width * text.hidden_size
    products = width * (3 * text.hidden_size + 2 * text.intermediate_size / tensor)
    # What is kept between layers is split over `tensor`, too.
    kept = {"none": layer, "dots": saved / tensor + products, "block": saved / tensor}[config.model.remat]
    decode = groups * M * (3 * FLOAT * vocabulary + layer + 2 * FLOAT * heads * (P + T))
    slot = 2 * width * text.num_layers * text.num_kv_heads * text.head_width / tensor
    caches = groups * (P + M * T) * slot  # stacked, where layers are scanned
    extend = caches + groups * (M * (E + 1) * layer + 2 * FLOAT * heads * (E + 1) * (P + T))
    prefill = groups * (P * layer + 2 * FLOAT * heads * P * P)

    part = (config.grpo.micro_batch_groups or config.data.prompts_per_step) / shards
    tokens = P + M * T
    logits = 3 * FLOAT * max(config.grpo.logit_chunk, part * M) * vocabulary
    scores = 2 * FLOAT * heads * max(P * P, T * (P + T))
    scored = part * (tokens * layer + scores) + logits
    micro_batches = (
        bool(config.grpo.micro_batch_groups) and config.grpo.micro_batch_groups < config.data.prompts_per_step
    )
    trained = device_bytes(run.params)
    gradients = trained * (2 if micro_batches else 1)
    images = 0.0
    if not config.model.freeze_vision_tower:
        turns = settings.max_turns - 1 if config.rollout.tools else 0
        seen = at_once(settings.prompt_images), at_once(M) if turns else 0
        everything = settings.prompt_images, turns * M
        # Where images go by portions, each portion is encoded anew in the backward pass: one portion's blocks are kept.
        count = seen if config.model.images_at_once else everything
        rows = part * (count[0] * settings.prompt_patches + count[1] * settings.crop_patches)
        block = width * (8 * vision.hidden_size + 3 * vision.intermediate_size / tensor)
        per_row = {"none": block, "dots": block / 2, "block": width * vision.hidden_size}[config.model.remat]
        images = rows * vision.depth * per_row + max(
            tower(part * seen[0], settings.prompt_patches), tower(part * seen[1], settings.crop_patches)
        )
    layers = text.num_layers
    # The layers' weights are gathered one at a time, embedding and head whole.
    gathered = width * (2 * sizes.decoder / layers + 2 * sizes.head) / tensor
    update = gradients + gathered + part * tokens * layers * kept + scored + images
    return {
        "reshard": device_bytes(run.params) / 2,
        "vision": tower(groups * at_once(settings.prompt_images), settings.prompt_patches),
        "slice": 0.0,
        "prefill": prefill,
        "decode": decode,
        "crops": tower(groups * at_once(M), settings.crop_patches),
        "extend": extend,
        "score": gathered + scored,
        "update": update,
    }
