"""The programs of a training run with abstract arguments, in the order in which a step executes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from medvr_jax import assembly
from medvr_jax.models.backbone import PromptInputs
from medvr_jax.models.features import image_features
from medvr_jax.planning import abstract
from medvr_jax.planning.abstract import AbstractRun
from medvr_jax.rollout.engine import rollout_programs
from medvr_jax.rollout.state import RolloutState
from medvr_jax.training import sharding
from medvr_jax.training.state import make_optimizer, sampling_layout
from medvr_jax.training.update import TrainBatch, make_scorer, make_update


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and its abstract arguments by name, in order."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]


# Abstract results of a program, laid out as the compiled program leaves them where it compiled, else by group.
Results = Callable[[Program], Any]


def run_programs(run: AbstractRun, results: Results) -> Iterator[Program]:
    """The programs of one training step. `results` is asked for what later programs take from earlier ones."""
    config, mesh = run.config, run.mesh
    optimizer = make_optimizer(assembly.optimizer_settings(config))
    state = abstract.train_state(run, optimizer)

    groups = config.data.prompts_per_step
    to_sampling = sampling_layout(state.params, mesh, config.model.compute_dtype)
    reshard = Program("reshard", to_sampling, {"params": state.params})
    yield reshard
    params = results(reshard)

    prompts = abstract.prompt_batch(run, groups)
    vision = jax.jit(lambda params, images: image_features(nnx.merge(run.graphdef, params), images))
    yield Program("vision", vision, {"params": params, "images": prompts.images})

    layout = sharding.rollout_layout(mesh, run.backbone.text.num_kv_heads)
    programs = rollout_programs(run.graphdef, run.rollout, layout)
    prefill = Program("prefill", programs.prefill, {"params": params, "prompts": prompts})
    yield prefill
    prompt_inputs, cache, rollout_state = results(prefill)

    decode = Program(
        "decode",
        programs.decode,
        {
            "params": params,
            "prompt cache": cache,
            "rollout state": rollout_state,
            "key": abstract.random_key(run),
            "prompt ids": prompts.prompt_ids,
            "tables": abstract.vocabulary_tables(run),
        },
    )
    yield decode
    rollout_state = results(decode)

    crop_features = None
    if config.rollout.tools:
        offset = jax.ShapeDtypeStruct((), np.int32, sharding=sharding.replicated(mesh))
        served = abstract.serving(run, groups)
        serve = Program(
            "serve",
            programs.serve,
            {
                "params": params,
                "prompt cache": cache,
                "rollout state": rollout_state,
                "serving": served,
                "offset": offset,
            },
        )
        yield serve
        rollout_state, crop_features = results(serve)

    reference = params if config.grpo.kl_weight else None
    settings = assembly.update_settings(config, mesh)
    batch = train_batch(run, prompt_inputs, rollout_state, crop_features)
    banned = abstract.banned(run)
    if config.grpo.updates_per_batch > 1:
        scorer = make_scorer(run.graphdef, settings)
        yield Program("score", scorer, {"params": state.params, "batch": batch, "banned": banned})
        batch = batch.replace(old_log_probabilities=batch.log_probabilities)
    update = make_update(run.graphdef, optimizer, settings, state)
    yield Program("update", update, {"state": state, "reference": reference, "batch": batch, "banned": banned})


def train_batch(
    run: AbstractRun, prompt: PromptInputs, state: RolloutState, crop_features: jax.ShapeDtypeStruct | None
) -> TrainBatch:
    """As `training.trainer.Trainer.train_batch` makes it from a rollout."""
    config, settings = run.config, run.rollout
    groups, slots, length = state.tokens.shape
    frozen = config.model.freeze_vision_tower
    turns = settings.max_turns - 1 if config.rollout.tools else 0
    by_group = sharding.by_group(run.mesh)
    vision = run.backbone.vision

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=by_group)

    prompt_images = abstract.images((groups, settings.prompt_images), settings.prompt_patches, vision)
    crops = abstract.images((groups, slots), settings.crop_patches, vision)
    return TrainBatch(
        prompt=prompt,
        tokens=state.tokens,
        positions=state.positions,
        feature_index=state.feature_index,
        crop_features=(crop_features,) * turns if frozen else (),
        sampled=array((groups, slots, length), jnp.bool_),
        log_probabilities=array((groups, slots, length), jnp.float32),
        old_log_probabilities=None,
        advantages=array((groups, slots), jnp.float32),
        counted=array((groups,), jnp.bool_),
        images=None if frozen else abstract.laid_out(prompt_images, by_group),
        crops=None if frozen else (abstract.laid_out(crops, by_group),) * turns,
    )
