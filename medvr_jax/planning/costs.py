"""Work of each program of a run per device, from shapes alone: operations and the bytes that must cross its memory."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from medvr_jax import assembly
from medvr_jax.models import operations
from medvr_jax.training.abstract import AbstractRun


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one execution (of one token for decode) on one device: floating-point operations, and bytes of memory read
    and written at the least."""

    operations: float
    bytes: float


def device_bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree of abstract arrays with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(_plain(leaf.dtype)).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _plain(dtype: Any) -> Any:
    return jnp.uint32 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype


def costs(run: AbstractRun) -> dict[str, Cost]:
    """By the name of the program; shared evenly by all devices."""
    config, settings, backbone = run.config, run.rollout, run.backbone
    sizes = operations.matrices(run.params, backbone)
    devices = run.mesh.size
    width = jnp.dtype(config.model.compute_dtype).itemsize
    B, M, sampled = config.data.prompts_per_step, settings.trajectories, assembly.groups_at_once(config)
    P, T, E = settings.prompt_bucket, settings.response_length, settings.observation_length
    groups = sampled / devices * run.mesh.shape["tensor"]  # of one device
    turns = settings.max_turns - 1 if config.rollout.tools else 0

    weights = width * (sizes.decoder + sizes.head) / run.mesh.shape["tensor"]
    tower = width * (sizes.vision + sizes.merger) / run.mesh.shape["tensor"]
    slot = 2 * width * backbone.text.num_layers * backbone.text.num_kv_heads * backbone.text.head_width
    slot /= run.mesh.shape["tensor"] if backbone.text.num_kv_heads % run.mesh.shape["tensor"] == 0 else 1
    cache = groups * (P + M * T) * slot

    share = sampled / B  # of the step's groups, in one execution of a program of the rollout
    picture, crop = (operations.padded_image(backbone, n) for n in (settings.prompt_patches, settings.crop_patches))
    prompt_images = B * settings.prompt_images * operations.forward(sizes, backbone, picture)
    crops = B * M * operations.forward(sizes, backbone, crop)
    prompts = B * operations.prompt_forward(sizes, backbone, P)
    step = B * M * (operations.response_forward(sizes, backbone, 1, P + T) + operations.head_forward(sizes, 1))
    observation = B * M * operations.response_forward(sizes, backbone, E + 1, P + T)

    group = operations.Work(tokens=P + M * T, pairs=P * P + M * T * (P + T), logits=M * (T - 1))
    if not config.model.freeze_vision_tower:
        group += picture.times(settings.prompt_images) + crop.times(turns * M)
    scored = operations.forward(sizes, backbone, group.times(B))
    update = operations.training(sizes, backbone, group.times(B), config.model.remat)
    update += scored if config.grpo.kl_weight else 0.0
    micro = B // config.grpo.micro_batch_groups if config.grpo.micro_batch_groups else 1
    passes = micro * (operations.weight_passes(config.model.remat) + bool(config.grpo.kl_weight))
    masters = device_bytes(run.params)
    hidden = width * backbone.text.hidden_size * groups * B / sampled * (P + M * T)
    activations = 2 * hidden * backbone.text.num_layers

    return {
        "reshard": Cost(0.0, masters + weights + tower),
        "vision": Cost(share * prompt_images / devices, tower),
        "slice": Cost(0.0, 2 * weights),
        "prefill": Cost(share * prompts / devices, weights + groups * P * slot),
        "decode": Cost(share * step / devices, weights + cache),
        "crops": Cost(share * crops / devices, tower),
        "extend": Cost(share * observation / devices, weights + cache),
        "score": Cost(scored / devices, micro * (weights + tower)),
        # Masters and both moments are read and written.
        "update": Cost(update / devices, passes * (weights + tower) + 6 * masters + activations),
    }
