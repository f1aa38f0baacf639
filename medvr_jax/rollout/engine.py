"""The rollout engine: the device samples until trajectories wait, the host serves their tools, and on it goes.

The engine owns the jitted programs of a rollout (prefill, decode, serve) for one set of static shapes: B is the
caller's, M, T, P, E and the patch buckets are settings, so that nothing is compiled after the first rollout.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from medvr_jax import distributed
from medvr_jax.inputs.batches import PromptBatch, batch_prompts
from medvr_jax.inputs.chat import Encoder, Prompt
from medvr_jax.inputs.tokenizer import make_token_tables
from medvr_jax.models.backbone import PromptCache, PromptInputs, ResponseCache, ResponseInputs
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.features import image_features
from medvr_jax.models.partitioning import Layout, bind
from medvr_jax.models.vision import ImageBatch
from medvr_jax.rollout import loop
from medvr_jax.rollout.evr import EvrSettings
from medvr_jax.rollout.state import RolloutState, initial_fork_state, initial_state
from medvr_jax.rollout.tools import Tool
from medvr_jax.rollout.trajectories import Rollout, TokenArrays, read_decisions
from medvr_jax.rollout.turns import Sampled, Serving, TurnServer


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """Shapes and rules of a rollout; see `configs/base.py`, sections prompt, rollout and evr."""

    trajectories: int
    temperature: float
    max_turns: int
    response_length: int
    observation_length: int
    prompt_bucket: int
    prompt_images: int
    prompt_patches: int
    crop_patches: int
    evr: EvrSettings | None

    @property
    def base_slots(self) -> int:
        """Trajectories that start at once: half of M when there are forks, else all."""
        return self.trajectories // 2 if self.evr else self.trajectories

    @property
    def decision_records(self) -> int:
        """Q: room for every base trajectory's decision in each turn and each pass."""
        return self.base_slots * (self.max_turns + self.evr.max_passes) if self.evr else 0


class RolloutEngine:
    """Rolls out groups of prompts. Weights are an argument of `run`: the engine keeps none."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        config: BackboneConfig,
        encoder: Encoder,
        tools: Mapping[str, Tool],
        settings: RolloutSettings,
        put: Callable[[Any], Any],
        read: Callable[[Any], Any],
        layout: Layout,
    ) -> None:
        """Prepares the programs; they are compiled at the first `run`.

        Args:
            graphdef: structure of the backbone.
            config: its shapes.
            encoder: tokenizer and image processor.
            tools: tools by name; with none, the first turn is the last.
            settings: static shapes and rules.
            put: takes a tree of host arrays, this process's rows of the leading axis B, to the devices.
            read: brings a tree of device arrays back, this process's rows of them.
            layout: that of sampling.
        """
        self.settings, self.config, self.encoder, self.tools = settings, config, encoder, tools
        self._put, self._read = put, read
        tables = make_token_tables(encoder.tokenizer, config.text.vocab_size)
        self.tables = loop.VocabularyTables.from_tokenizer(tables)
        self.tool_turns = settings.max_turns - 1 if tools else 0  # Z: turns after which a crop may come back
        self.crop_features = settings.crop_patches // config.vision.merge_unit  # F: feature rows per crop
        self._prefill, self._decode, self._serve = rollout_programs(graphdef, settings, layout)
        self._no_features = jax.jit(
            _no_features, static_argnums=(1, 2), out_shardings=crop_feature_sharding(layout, settings.trajectories)
        )

    def run(self, params: nnx.State, prompts: Sequence[Prompt], key: jax.Array) -> Rollout:
        """One group of M trajectories for each of the B prompts.

        Args:
            params: the backbone's parameters in the sampling layout.
            prompts: this process's share of the B prompts (all, when it is the only one).
            key: random key of this step.
        """
        settings, clock = self.settings, PhaseClock()
        with distributed.together():
            batch = batch_prompts(
                prompts, settings.prompt_bucket, settings.prompt_images, settings.prompt_patches, self.config.vision
            )
        device_batch = self._put(batch)
        clock.lap("preprocess")
        prompt_inputs, cache, state = jax.block_until_ready(self._prefill(params, device_batch))
        clock.lap("prefill")

        server = self._turn_server(prompts)
        features: list[jax.Array] = []
        crops: list[ImageBatch] = []
        for turn in range(self.tool_turns + 1):
            state = self._decode(params, cache, state, key, device_batch.prompt_ids, self.tables)
            sampled = Sampled(**self._read(_fields(state, Sampled)))
            clock.lap("decode")
            serving = server.serve(sampled, last_turn=turn == self.tool_turns)
            clock.lap("tool")
            if not distributed.any_process(bool(serving.counts.any())):
                break
            offset = np.int32(self.crop_features * turn)
            state, crop = jax.block_until_ready(self._serve(params, cache, state, self._put(serving), offset))
            features.append(crop)
            crops.append(serving.crops)
            clock.lap("extend")

        nothing = server.no_crops()
        while len(features) < self.tool_turns:
            features.append(self._no_features(prompt_inputs.features, settings.trajectories, self.crop_features))
            crops.append(nothing)
        rollout = Rollout(
            prompts=list(prompts),
            trajectories=server.trajectories(sampled),
            host=TokenArrays(**self._read(_fields(state, TokenArrays))),
            decisions=self._decisions(state, len(prompts)),
            prompt_inputs=prompt_inputs,
            prompt_batch=batch,
            tokens=state.tokens,
            positions=state.positions,
            feature_index=state.feature_index,
            crop_features=tuple(features),
            crops=tuple(crops),
            seconds=clock.seconds,
            decode_steps=int(state.steps),
        )
        clock.lap("tool")
        return rollout

    def _decisions(self, state: RolloutState, groups: int) -> list[list[dict[str, Any]]]:
        if state.forks is None:
            return [[] for _ in range(groups)]
        records, counts = self._read((state.forks.decisions, state.forks.decision_count))
        return [read_decisions(record, int(count)) for record, count in zip(records, counts, strict=True)]

    def _turn_server(self, prompts: Sequence[Prompt]) -> TurnServer:
        settings = self.settings
        return TurnServer(
            prompts,
            settings.trajectories,
            self.encoder,
            self.tools,
            observation_length=settings.observation_length,
            response_length=settings.response_length,
            crop_patches=settings.crop_patches,
            vision=self.config.vision,
        )


class RolloutPrograms(NamedTuple):
    """The jitted programs of a rollout: `prefill(params, prompt batch) -> (prompt inputs, prompt cache, state)`,
    `decode(params, prompt cache, state, key, prompt ids, tables) -> state` and
    `serve(params, prompt cache, state, serving, feature offset) -> (state, crop features)`."""

    prefill: Callable[..., tuple[PromptInputs, PromptCache, RolloutState]]
    decode: Callable[..., RolloutState]
    serve: Callable[..., tuple[RolloutState, jax.Array]]


def rollout_programs(graphdef: nnx.GraphDef, settings: RolloutSettings, layout: Layout) -> RolloutPrograms:
    """The programs for one set of static shapes; decode and serve take over the buffers of the state.

    What they return is laid out here: the compiler would keep arrays that begin as zeros whole on every device.
    """
    groups, features = layout.sharding("groups"), crop_feature_sharding(layout, settings.trajectories)
    cache, state = prompt_cache_shardings(layout), state_shardings(layout)

    def jitted(function: Callable[..., Any], results: Any, **options: Any) -> Callable[..., Any]:
        return jax.jit(bind(layout, function), out_shardings=results, **options)

    return RolloutPrograms(
        prefill=jitted(functools.partial(_prefill, graphdef, settings), (groups, cache, state)),
        decode=jitted(functools.partial(_decode, graphdef, settings), state, donate_argnums=2),
        serve=jitted(functools.partial(_serve, graphdef), (state, features), donate_argnums=2),
    )


def crop_feature_sharding(layout: Layout, trajectories: int) -> NamedSharding:
    """Where crops' features [B, M, F, D] wait for the update."""
    groups = layout.shards("groups")
    return layout.fitting((groups, trajectories), "groups", "waiting_trajectories")


def prompt_cache_shardings(layout: Layout) -> PromptCache:
    """Where a prompt cache lives, leaves standing for all layers."""
    heads = layout.sharding("groups", "kv_heads")
    return PromptCache(heads, heads, layout.sharding("groups"))


def state_shardings(layout: Layout) -> RolloutState:
    """Where a rollout's state lives, leaves standing for everything below them."""
    heads, groups = layout.sharding("groups", None, "kv_heads"), layout.sharding("groups")
    leading = {field.name: groups for field in dataclasses.fields(RolloutState)}
    return RolloutState(**leading | {"cache": ResponseCache(heads, heads), "steps": layout.sharding()})


def _prefill(
    graphdef: nnx.GraphDef, settings: RolloutSettings, params: nnx.State, batch: PromptBatch
) -> tuple[PromptInputs, PromptCache, RolloutState]:
    """Encodes the prompts' images, fills the prompt caches, and sets up the state: once per group."""
    backbone = nnx.merge(graphdef, params)
    prompt = PromptInputs(
        batch.tokens, batch.positions, batch.valid, batch.feature_index, image_features(backbone, batch.images)
    )
    groups, slots = batch.tokens.shape[0], settings.trajectories
    forks = None
    if settings.evr:
        forks = initial_fork_state(groups, slots, settings.evr.window, settings.decision_records)
    state = initial_state(
        batch.last_token,
        batch.last_position[:, 0],
        batch.next_position,
        backbone.init_response_cache(groups, slots, settings.response_length),
        slots=slots,
        length=settings.response_length,
        base_slots=settings.base_slots,
        forks=forks,
    )
    return prompt, backbone.prefill(prompt), state


def _decode(
    graphdef: nnx.GraphDef,
    settings: RolloutSettings,
    params: nnx.State,
    cache: PromptCache,
    state: RolloutState,
    key: jax.Array,
    prompt_ids: jax.Array,
    tables: loop.VocabularyTables,
) -> RolloutState:
    """Samples until the host is needed."""
    rules = loop.LoopSettings(settings.temperature, settings.base_slots, settings.evr)
    return loop.decode(nnx.merge(graphdef, params), cache, state, key, prompt_ids, tables, rules)


def _no_features(like: jax.Array, trajectories: int, count: int) -> jax.Array:
    """`[B, M, F, D]` of zeros for F = `count`, like prompts' features `[B, ..., D]`."""
    return jnp.zeros((like.shape[0], trajectories, count, like.shape[-1]), like.dtype)


def _serve(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    cache: PromptCache,
    state: RolloutState,
    serving: Serving,
    feature_offset: jax.Array,
) -> tuple[RolloutState, jax.Array]:
    """Encodes the crops and appends the observations to the rows that were served.

    Returns:
        the state, and the crops' features `[B, M, F, D]`, which stand at `feature_offset` in the trajectory's own.
    """
    backbone = nnx.merge(graphdef, params)
    features = image_features(backbone, serving.crops)
    features = features.reshape(*serving.counts.shape, -1, features.shape[-1])
    # The last sampled token of a row that ended in the loop's last step has not been fed yet: it goes first.
    token, positions = loop.last_token(state)
    new = ResponseInputs(
        tokens=jnp.concatenate([token, serving.tokens], axis=2),
        positions=jnp.concatenate([positions, serving.positions], axis=2),
        feature_index=jnp.concatenate([jnp.full_like(token, -1), serving.feature_index], axis=2),
        features=features,
    )
    counts = jnp.where(serving.counts > 0, serving.counts + 1, 0)
    _, cache = backbone.extend(cache, state.cache, new, state.length - 1, counts)
    return loop.append_observation(state.replace(cache=cache), serving, feature_offset), features


def _fields(state: RolloutState, kind: type[Sampled] | type[TokenArrays]) -> dict[str, jax.Array]:
    """The state's arrays that `kind` holds host copies of."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(kind)}


class PhaseClock:
    """Seconds by phase; `lap(name)` books the time since the last lap under that name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends a phase."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
