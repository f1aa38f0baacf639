"""The programs and the state of a GRPO run: roll out, reward, update. The order of events is in `loop.py`."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from medvr_jax import assembly, devices, distributed
from medvr_jax.datasets.example import Example
from medvr_jax.errors import UserError
from medvr_jax.evaluation.greedy import Prediction, predict
from medvr_jax.inputs.chat import Prompt, encode_prompts
from medvr_jax.inputs.images import pack_image_rows
from medvr_jax.inputs.prefetch import Prefetcher
from medvr_jax.models.packing import Packing, distinct_tokens, pack_rows
from medvr_jax.models.vision import ImageBatch
from medvr_jax.programs import Program
from medvr_jax.rollout.parts import PartedRollout
from medvr_jax.rollout.trajectories import Rollout
from medvr_jax.training import abstract, ahead, sharding
from medvr_jax.training.rewarding import Rewards, reward_rollout
from medvr_jax.training.state import TrainState, initial_train_state, make_cast, make_copy, make_optimizer
from medvr_jax.training.throughput import Passed
from medvr_jax.training.update import TrainBatch, make_scorer, make_update, update_sizes


class Step(NamedTuple):
    """What one step of training produced: rollout, rewards, the update's metrics, seconds by phase, and what it took.

    Rollout and rewards are those of this process's groups, which `rows` names.
    """

    rows: distributed.Rows
    rollout: Rollout
    rewards: Rewards
    metrics: dict[str, float]
    seconds: dict[str, float]
    passed: Passed


class Trainer:
    """Holds the training state; every method that changes it says so."""

    def __init__(self, parts: assembly.Parts) -> None:
        config = self.config = parts.config
        self.parts = parts
        self.state, optimizer = make_train_state(parts)
        self._copy = make_copy(self.state)
        self._to_sampling = make_cast(parts.params, parts.sampling_layout, config.model.compute_dtype)
        self._settings = assembly.update_settings(config, parts.mesh)
        self._update = make_update(parts.graphdef, optimizer, self._settings, self.state, parts.training_layout)
        self._scorer = make_scorer(parts.graphdef, self._settings, parts.training_layout)
        self._rewards = assembly.reward_settings(config)
        sizes = assembly.survey_prompts(parts, training=True)
        self._engine = parts.engine(assembly.training_rollout(config, parts.backbone, sizes))
        groups, at_once = config.data.prompts_per_step, assembly.groups_at_once(config)
        self._rollouts = PartedRollout(self._engine, parts.sampling_layout, groups, at_once)
        self._evaluator = parts.engine(assembly.greedy_rollout(config, parts.backbone, sizes))
        # The reference is the policy before training, kept only when the loss asks for it.
        self._reference = None
        if config.grpo.kl_weight:
            to_reference = make_cast(parts.params, parts.training_layout, config.model.compute_dtype)
            self._reference = to_reference(self.state.params)
        self._banned = jax.device_put(self._engine.tables.banned, sharding.replicated(parts.mesh))
        self.prompts = Prefetcher(self._prepare, config.steps)
        # What the figures of a step's speed are made with.
        self.policy = assembly.priced_policy(config, parts.params, parts.backbone)
        self.limits = devices.limits(list(parts.mesh.devices.flat))
        self.copies = parts.mesh.size // parts.mesh.shape["tensor"]  # of the weights, while sampling

    def programs(self) -> list[Program]:
        """Everything that `predict` and `step` call, in this order, with the arguments to come."""
        config = self.config
        run = abstract.abstract_parts(self.parts, self._engine.settings)
        evaluation = dataclasses.replace(run, rollout=self._evaluator.settings)
        found = [Program("weights", self._to_sampling, (self.state.params,))]
        found += ahead.rollout_programs(evaluation, self._evaluator, config.data.evaluation_batch, "evaluate")
        at_once = assembly.groups_at_once(config)
        found += ahead.rollout_programs(run, self._engine, at_once, "sample")
        found += ahead.join_programs(run, self._engine, self._rollouts, at_once)
        found.append(ahead.reward_program(run, self._rewards, len(self.parts.rows(config.data.prompts_per_step).here)))
        for name, batch in ahead.train_batches(run, self._engine):
            if config.grpo.updates_per_batch > 1:
                found.append(Program(f"score {name}", self._scorer, (self.state.params, batch, self._banned)))
                batch = batch.replace(old_log_probabilities=batch.log_probabilities)
            found.append(Program(f"update {name}", self._update, (self.state, self._reference, batch, self._banned)))
        return found

    def sampling_params(self) -> nnx.State:
        """The current policy in the sampling layout."""
        return self._to_sampling(self.state.params)

    def predict(self, progress: Any = None) -> list[Prediction]:
        """The current policy's greedy answers to the held-out questions."""
        config = self.config
        return predict(
            self._evaluator,
            self.sampling_params(),
            self.parts.encoder,
            self.parts.source.test(config.data.test_examples),
            self.parts.rows(config.data.evaluation_batch),
            progress,
        )

    def snapshot(self) -> TrainState:
        """A copy of the state, which no update takes over."""
        return self._copy(self.state)

    def restart(self, start: TrainState, seed: int) -> None:
        """Changes the state: to that of `snapshot`, at step 0 of a run with another seed. Programs, encoder, the sizes
        of prompts and the reference stay; data order and random numbers are those of the seed."""
        self.prompts.close()
        self.parts = assembly.with_seed(self.parts, seed)
        self.config = self.parts.config
        self.state = self._copy(start)
        self.prompts = Prefetcher(self._prepare, self.config.steps)

    def examples(self, number: int, rows: Iterable[int]) -> list[Example]:
        """The examples of these rows of a step's batch."""
        start = number * self.config.data.prompts_per_step
        return [example for row in rows for example in self.parts.source.train(start + int(row), 1)]

    def _prepare(self, number: int) -> list[Prompt]:
        """This process's prompts of a step; the host's work alone."""
        rows = self.parts.rows(self.config.data.prompts_per_step)
        return encode_prompts(self.examples(number, rows.here), self.parts.encoder)

    def step(self, number: int) -> Step:
        """Rolls out the step's prompts with the current policy, rewards them, and updates the state."""
        config, seconds = self.config, {}
        started = time.perf_counter()
        rows = self.parts.rows(config.data.prompts_per_step)
        with distributed.together():
            prompts = self.prompts.take(number)
        seconds["preprocess"] = time.perf_counter() - started

        started = time.perf_counter()
        params = jax.block_until_ready(self.sampling_params())
        seconds["reshard"] = time.perf_counter() - started
        rollout = self._rollouts.run(params, prompts, assembly.run_seed_key(config, number))
        del params
        for name, value in rollout.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value

        started = time.perf_counter()
        rewards = jax.block_until_ready(reward_rollout(rollout, self._engine.settings.tool_turns, self._rewards))
        seconds["reward"] = time.perf_counter() - started

        started = time.perf_counter()
        batch = self.train_batch(rollout, rewards)
        metrics = self._update_on(batch)
        seconds["update"] = time.perf_counter() - started
        return Step(rows, rollout, rewards, metrics, seconds, self._passed(rollout, batch))

    def _passed(self, rollout: Rollout, batch: TrainBatch) -> Passed:
        """What the devices were given in a step."""
        settings = self._engine.settings
        groups, slots, length = batch.packing.places.shape
        crops = math.prod(batch.crops.valid.shape[:2]) if batch.crops else 0
        return Passed(
            groups=groups,
            prompt=rollout.prompt_batch.tokens.shape[1],
            rollout=rollout.calls,
            images=(groups * settings.prompt_images, rollout.prompt_batch.images.valid.shape[2]),
            rows=groups * slots,
            response=length,
            packed=batch.packing.slots.size,
            update_crops=(crops, settings.crop_patches),
        )

    def train_batch(self, rollout: Rollout, rewards: Rewards) -> TrainBatch:
        """The rollout as the update takes it. A frozen tower's features are used again; else it encodes anew."""
        config, mesh = self.config, self.parts.mesh
        frozen = config.model.freeze_vision_tower
        counted = (
            np.asarray(rewards.has_spread) if config.grpo.skip_zero_spread else np.ones(len(rollout.prompts), bool)
        )
        packing, crops = self._pack(rollout)
        arrays = {
            "packing": packing,
            "sampled": rollout.host.sampled,
            "log_probabilities": rollout.host.log_probabilities,
            "advantages": np.asarray(rewards.advantages),
            "counted": counted,
            "images": None if frozen else rollout.prompt_batch.images,
            "crops": crops,
        }
        return TrainBatch(
            prompt=rollout.prompt_inputs,
            tokens=rollout.tokens,
            positions=rollout.positions,
            feature_index=rollout.feature_index,
            crop_features=rollout.crop_features if frozen else None,
            old_log_probabilities=None,
            **distributed.put_rows(arrays, sharding.by_group(mesh)),
        )

    def _pack(self, rollout: Rollout) -> tuple[Packing, ImageBatch | None]:
        """The distinct tokens of the responses, and a trained tower's crops, in the smallest size that holds both."""
        length, settings = rollout.host.length, self._engine.settings
        parent, fork = (
            np.array(
                [
                    [-1 if getattr(t, name) is None else getattr(t, name) for t in group]
                    for group in rollout.trajectories
                ]
            )
            for name in ("parent", "fork_position")
        )
        frozen = self.config.model.freeze_vision_tower
        used = 0 if frozen else max(map(len, rollout.crops))
        longest, distinct, used = distributed.largest(int(length.max()), int(distinct_tokens(length, fork).max()), used)
        size = next(size for size in update_sizes(settings) if size.holds(longest, distinct, used))
        first = rollout.host.sampled[:, :, : size.length]
        packing = pack_rows(length, parent, fork, first, size.tokens, forks=settings.evr is not None)
        if frozen:
            return packing, None
        vision = self._engine.config.vision
        return packing, pack_image_rows(rollout.crops, size.crops, settings.crop_patches, vision)

    def _update_on(self, batch: TrainBatch) -> dict[str, float]:
        """Changes the state: `updates_per_batch` optimiser steps on one batch; returns the means of their metrics."""
        updates = self.config.grpo.updates_per_batch
        if updates > 1:
            old = self._scorer(self.state.params, batch, self._banned)
            batch = batch.replace(old_log_probabilities=old)
        history = []
        for _ in range(updates):
            self.state, metrics = self._update(self.state, self._reference, batch, self._banned)
            history.append(jax.device_get(metrics))
            refuse_broken(history[-1])
        # Drift compares the sampler with the very policy it sampled from: the first update's.
        means = {name: float(np.mean([m[name] for m in history])) for name in history[0]}
        return means | {"sampler_drift": float(history[0]["sampler_drift"])}


def refuse_broken(metrics: dict[str, Any]) -> None:
    """UserError where an update came to no finite number: training on would destroy the policy."""
    for name in ("loss", "grad_norm"):
        if not np.isfinite(metrics[name]):
            raise UserError(
                f"optimizer.learning_rate: the update's {name} is {float(metrics[name])}, a finite number is needed;"
                " try a smaller rate, or see whether the weights in model.path are sound (the last checkpoint is kept)"
            )


def make_train_state(parts: assembly.Parts) -> tuple[TrainState, Any]:
    """The state at step 0 and its optimiser."""
    optimizer = make_optimizer(assembly.optimizer_settings(parts.config))
    frozen = assembly.frozen_parts(parts.config)
    return initial_train_state(parts.params, optimizer, parts.training_layout, frozen), optimizer
