"""All programs of a run with the arguments that they are going to be called with, to be compiled before the first step.

The shapes come from the settings' short lists: lengths of the response caches, numbers and sizes of crops, sizes of an
update. What a step finds in them, and so which programs it calls, is not known before.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from medvr_jax import assembly
from medvr_jax.programs import Program
from medvr_jax.rollout.engine import RolloutEngine
from medvr_jax.rollout.parts import PartedRollout
from medvr_jax.training import abstract, sharding
from medvr_jax.training.abstract import AbstractRun
from medvr_jax.training.rewarding import RewardSettings, combine, reward_arrays
from medvr_jax.training.update import TrainBatch, update_sizes

_NUMBER, _SHARE = np.int32(0), np.float32(0)  # numbers of the host, whatever they are


def prompt_runs(run: AbstractRun) -> Iterator[AbstractRun]:
    """The run with each size of prompts that its data is known to need; with the largest where nothing is known."""
    settings = run.rollout
    for tokens, patches in settings.surveyed_prompts or settings.prompt_sizes:
        yield dataclasses.replace(run, rollout=settings.of_prompts(tokens, patches))


def rollout_programs(run: AbstractRun, engine: RolloutEngine, groups: int, label: str) -> Iterator[Program]:
    """Those of an engine that rolls out so many groups at a time, in the order of their first use."""
    for number, sized in enumerate(prompt_runs(run)):
        name = f"{label} {sized.rollout.prompt_bucket}:"
        yield from _prompt_programs(sized, engine, groups, name)
        if not number:  # these do not see the prompt
            yield from _crop_programs(sized, engine, groups, label)


def _prompt_programs(run: AbstractRun, engine: RolloutEngine, groups: int, label: str) -> Iterator[Program]:
    settings, programs, layout = engine.settings, engine.programs, run.sampling_layout
    params = abstract.cast(run.params, layout, run.config.model.compute_dtype)
    weights = abstract.sampling_weights(run, params)
    prompts, features = abstract.prompt_batch(run, groups), abstract.features(run, groups)
    crops = abstract.crop_features(run, groups)
    _, cache, first = abstract.prefilled(run, programs.prefill, params, prompts)
    states = [abstract.grown(first, length) for length in settings.cache_lengths]
    key = assembly.run_seed_key(run.config, 0)

    yield Program(f"{label} vision", programs.encode, (params, prompts.images))
    yield Program(f"{label} weights", programs.slice, (params,))
    yield Program(f"{label} prefill", programs.prefill, (params, prompts, features))
    yield Program(f"{label} no crops", programs.no_crops, (features,))
    for length, state in zip(settings.cache_lengths, states, strict=True):
        fixed = (key, prompts.prompt_ids, engine.tables, _NUMBER, _SHARE)
        yield Program(f"{label} decode {length}", programs.decode, (params, weights, cache, state, *fixed))
    if not settings.tool_turns:
        return
    for _, tokens in settings.observation_sizes:
        for length, state in zip(settings.cache_lengths, states, strict=True):
            served = abstract.serving(run, groups, tokens)
            name = f"{label} extend {tokens} in {length}"
            yield Program(name, programs.extend, (params, weights, cache, state, served, crops))


def _crop_programs(run: AbstractRun, engine: RolloutEngine, groups: int, label: str) -> Iterator[Program]:
    settings, programs, layout = engine.settings, engine.programs, run.sampling_layout
    params = abstract.cast(run.params, layout, run.config.model.compute_dtype)
    _, _, first = abstract.prefilled(run, programs.prefill, params, abstract.prompt_batch(run, groups))
    for length, longer in itertools.combinations(settings.cache_lengths, 2):
        state = abstract.grown(first, length)
        yield Program(f"{label} grow {length} to {longer}", programs.grow, (state, longer))
    if not settings.tool_turns:
        return
    crops, vision = abstract.crop_features(run, groups), run.backbone.vision
    for patches, _ in settings.observation_sizes:
        for count in settings.crop_counts:
            images = abstract.images((groups, count), patches, vision)
            images = abstract.laid_out(images, sharding.by_group(run.mesh))
            name = f"{label} crops {count}x{patches}"
            yield Program(name, programs.encode_crops, (params, crops, images, _NUMBER))


def join_programs(run: AbstractRun, engine: RolloutEngine, rollouts: PartedRollout, groups: int) -> Iterator[Program]:
    """What joins the parts of a step, so many groups each, if there are several."""
    if rollouts.parts == 1:
        return
    params = abstract.cast(run.params, run.sampling_layout, run.config.model.compute_dtype)
    for sized in prompt_runs(run):
        prompts = abstract.prompt_batch(sized, groups)
        inputs, _, state = abstract.prefilled(sized, engine.programs.prefill, params, prompts)
        part = {"prompt_inputs": inputs, "crop_features": abstract.crop_features(sized, groups)}
        part |= {name: getattr(state, name) for name in ("tokens", "positions", "feature_index")}
        yield Program(f"join {sized.rollout.prompt_bucket}", rollouts.join, ([part] * rollouts.parts,))


def reward_program(run: AbstractRun, rewards: RewardSettings, groups: int) -> Program:
    """What makes rewards and advantages of so many groups, those of this process."""
    arrays = reward_arrays(groups, run.rollout.trajectories, run.rollout.tool_turns)
    return Program("rewards", combine, (*arrays, rewards))


def train_batches(run: AbstractRun, engine: RolloutEngine) -> Iterator[tuple[str, TrainBatch]]:
    """The batches of a step that differ in shape, with what to call them."""
    groups = run.config.data.prompts_per_step
    params = abstract.cast(run.params, run.sampling_layout, run.config.model.compute_dtype)
    for sized in prompt_runs(run):
        prompts = abstract.prompt_batch(sized, groups)
        inputs, _, state = abstract.prefilled(sized, engine.programs.prefill, params, prompts)
        trajectories = (state.tokens, state.positions, state.feature_index)
        crops = abstract.crop_features(sized, groups)
        for size in update_sizes(engine.settings):
            name = f"{sized.rollout.prompt_bucket} + {size.tokens} of {size.length}"
            yield name, abstract.train_batch(sized, inputs, trajectories, crops, size)
