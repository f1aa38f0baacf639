"""The programs of a training step with abstract arguments, in the order of execution, and what is alive meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from medvr_jax import assembly
from medvr_jax.rollout.programs import rollout_programs
from medvr_jax.training import abstract, sharding
from medvr_jax.training.abstract import AbstractRun
from medvr_jax.training.state import make_cast, make_optimizer
from medvr_jax.training.update import make_scorer, make_update, update_sizes

# What memory is used for, beside a program's own results and temporaries.
USES = ("parameters", "optimiser", "caches", "batch")


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a step.

    Attributes:
        name: as the tables have it.
        function: the jitted function that a run calls.
        arguments: its abstract arguments, in order.
        alive: all arrays that exist while it runs, its arguments among them, by use.
        produced: what it makes that is not written over an argument.
        runs: executions in one step; for decode, tokens of the longest response, each one round of its loop.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    alive: dict[str, Any]
    produced: Any
    runs: int = 1


def step_programs(run: AbstractRun) -> list[Program]:
    """All programs of one training step."""
    config, mesh, settings = run.config, run.mesh, run.rollout
    groups, slots = assembly.groups_at_once(config), settings.trajectories
    parts = config.data.prompts_per_step // groups
    turns = settings.max_turns - 1 if config.rollout.tools else 0
    whole, by_group = sharding.replicated(mesh), sharding.by_group(mesh)
    layout = run.sampling_layout

    optimizer = make_optimizer(assembly.optimizer_settings(config))
    state = abstract.train_state(run, optimizer)
    dtype = config.model.compute_dtype
    to_sampling = make_cast(state.params, layout, dtype)
    params = abstract.cast(state.params, layout, dtype)
    reference = abstract.cast(state.params, run.training_layout, dtype) if config.grpo.kl_weight else None
    trained = {"parameters": (state.trainable, state.frozen, reference), "optimiser": (state.optimizer, state.step)}

    prompts = abstract.prompt_batch(run, groups)
    tables, key = abstract.vocabulary_tables(run), abstract.random_key(run)
    rollout = rollout_programs(run.graphdef, settings, layout)
    weights = abstract.sampling_weights(run, params)
    features = abstract.features(run, groups)
    made = inputs, cache, first_state = abstract.prefilled(run, rollout.prefill, params, prompts)
    # With the longest caches and the most crops, which is what memory must hold.
    rollout_state = abstract.grown(first_state, settings.cache_lengths[-1])
    crops = abstract.crop_features(run, groups)
    # What the update reads of all parts stays.
    trajectories = (rollout_state.tokens, rollout_state.positions, rollout_state.feature_index)
    left = abstract.of_all_parts((inputs, crops, trajectories), config.data.prompts_per_step)
    rolling = trained | {"parameters": (trained["parameters"], params)}
    sampling = trained | {"parameters": (trained["parameters"], params, weights)}
    sampled = {"caches": (cache, rollout_state), "batch": (left, prompts, tables)}
    number, share = (jax.ShapeDtypeStruct((), kind, sharding=whole) for kind in (np.int32, np.float32))

    programs = [
        Program("reshard", to_sampling, (state.params,), trained, params),
        Program(
            "vision",
            rollout.encode,
            (params, prompts.images),
            rolling | {"batch": (left, prompts)},
            features,
            runs=parts,
        ),
        Program("slice", rollout.slice, (params,), rolling | {"batch": (left, prompts)}, weights, runs=parts),
        Program(
            "prefill",
            rollout.prefill,
            (params, prompts, features),
            sampling | {"batch": (left, prompts)},
            made,
            runs=parts,
        ),
        Program(
            "decode",
            rollout.decode,
            (params, weights, cache, rollout_state, key, prompts.prompt_ids, tables, number, share),
            sampling | sampled,
            None,
            runs=parts * (settings.response_length - 1),
        ),
    ]
    if turns:
        images = abstract.laid_out(
            abstract.images((groups, slots), settings.crop_patches, run.backbone.vision), by_group
        )
        served = abstract.serving(run, groups, settings.observation_length)
        alive = sampling | sampled | {"batch": (left, prompts, tables, images, served)}
        programs += [
            Program("crops", rollout.encode_crops, (params, crops, images, number), alive, None, runs=parts * turns),
            Program(
                "extend",
                rollout.extend,
                (params, weights, cache, rollout_state, served, crops),
                alive,
                None,
                runs=parts * turns,
            ),
        ]

    updating = assembly.update_settings(config, mesh)
    inputs, crop_features, trajectories = left
    batch = abstract.train_batch(run, inputs, trajectories, crop_features, update_sizes(settings)[-1])
    banned = abstract.banned(run)
    # The rollout keeps the crops' features until the step is over, whether or not the update reads them.
    alive = trained | {"batch": (batch.replace(crop_features=crop_features), banned)}
    updates = config.grpo.updates_per_batch
    if updates > 1:
        scorer = make_scorer(run.graphdef, updating, run.training_layout)
        old = batch.log_probabilities
        programs.append(Program("score", scorer, (state.params, batch, banned), alive, old))
        batch = batch.replace(old_log_probabilities=old)
        alive = trained | {"batch": (alive["batch"], old)}
    update = make_update(run.graphdef, optimizer, updating, state, run.training_layout)
    programs.append(Program("update", update, (state, reference, batch, banned), alive, None, runs=updates))
    return programs
