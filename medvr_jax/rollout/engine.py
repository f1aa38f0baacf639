"""The rollout engine: the device samples until trajectories wait, the host serves their tools, and on it goes.

The engine owns the jitted programs of a rollout for one set of settings. Their shapes come from short lists (cache
lengths, numbers and sizes of crops), so that nothing is compiled once each has been seen or warmed up.
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
from medvr_jax.inputs.buckets import bucket, halvings
from medvr_jax.inputs.chat import Encoder, Prompt
from medvr_jax.inputs.images import PreparedImage, pack_image_rows
from medvr_jax.inputs.tokenizer import make_token_tables
from medvr_jax.models.backbone import PromptCache, PromptInputs, ResponseCache, ResponseInputs, SamplingWeights
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.features import image_features
from medvr_jax.models.partitioning import Layout, bind
from medvr_jax.models.vision import ImageBatch
from medvr_jax.rollout import loop
from medvr_jax.rollout.evr import EvrSettings
from medvr_jax.rollout.state import RolloutState, initial_fork_state, initial_state
from medvr_jax.rollout.tools import Tool
from medvr_jax.rollout.trajectories import Calls, Rollout, TokenArrays, read_decisions
from medvr_jax.rollout.turns import Sampled, Serving, TurnServer

SHORTEST_CACHE, CACHE_LENGTHS, CROP_COUNTS = 128, 4, 3


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
    smallest_crop: int
    merge_unit: int
    tools: bool
    evr: EvrSettings | None
    surveyed_prompts: tuple[tuple[int, int], ...] = ()

    @property
    def prompt_sizes(self) -> tuple[tuple[int, int], ...]:
        """(tokens, patches of an image) that batches of prompts are padded to, ascending: what a survey of the data
        found, and the most that is allowed."""
        largest = (self.prompt_bucket, self.prompt_patches)
        return self.surveyed_prompts if self.surveyed_prompts[-1:] == (largest,) else (*self.surveyed_prompts, largest)

    def of_prompts(self, tokens: int, patches: int) -> RolloutSettings:
        """The settings with prompts of this size alone."""
        return dataclasses.replace(self, prompt_bucket=tokens, prompt_patches=patches, surveyed_prompts=())

    @property
    def tool_turns(self) -> int:
        """Z: turns after which a crop may come back."""
        return self.max_turns - 1 if self.tools else 0

    @property
    def crop_slots(self) -> int:
        """C: crops that a group may see, all turns together."""
        return self.tool_turns * self.trajectories

    @property
    def crop_features(self) -> int:
        """F: rows of features for each crop."""
        return self.crop_patches // self.merge_unit

    @property
    def cache_lengths(self) -> tuple[int, ...]:
        """Slots of the response cache, which grows from one of these to the next."""
        return halvings(self.response_length, smallest=SHORTEST_CACHE, steps=CACHE_LENGTHS)

    @property
    def crop_counts(self) -> tuple[int, ...]:
        """New crops per group that are encoded in one call."""
        return halvings(self.trajectories, smallest=2, steps=CROP_COUNTS)

    @property
    def observation_sizes(self) -> tuple[tuple[int, int], ...]:
        """(patches of a crop, tokens of an observation) of one call: the largest, and crops of a quarter of it."""
        small = -(-self.crop_patches // (4 * self.merge_unit)) * self.merge_unit
        largest = (self.crop_patches, self.observation_length)
        tokens = self.observation_length - (self.crop_patches - small) // self.merge_unit
        return (largest,) if small < self.smallest_crop or tokens < 1 else ((small, tokens), largest)

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
        self.programs = rollout_programs(graphdef, settings, layout)

    def run(
        self, params: nnx.State, prompts: Sequence[Prompt], key: jax.Array, size: tuple[int, int] | None = None
    ) -> Rollout:
        """One group of M trajectories for each of the B prompts.

        Args:
            params: the backbone's parameters in the sampling layout.
            prompts: this process's share of the B prompts (all, when it is the only one).
            key: random key of this step.
            size: tokens and patches to pad to; the smallest of the settings' sizes that holds all prompts by default.
        """
        settings, programs, clock = self.settings, self.programs, PhaseClock()
        tokens, patches = size or self.prompt_size(prompts)
        with distributed.together():
            batch = batch_prompts(prompts, tokens, settings.prompt_images, patches, self.config.vision)
        device_batch = self._put(batch)
        clock.lap("preprocess")
        features = jax.block_until_ready(programs.encode(params, device_batch.images))
        clock.lap("vision")
        weights = programs.slice(params)
        prompt_inputs, cache, state = jax.block_until_ready(programs.prefill(params, device_batch, features))
        clock.lap("prefill")

        server = self.turn_server(prompts)
        crops, placed, calls = programs.no_crops(features), 0, Calls()
        groups, rows = state.length.shape[0], state.length.size
        for turn in range(settings.tool_turns + 1):
            stop_at = np.int32(self.stop_at(turn))
            state, more = self._decode(params, weights, cache, state, key, device_batch.prompt_ids, stop_at)
            calls += more
            sampled = Sampled(**self._read(_fields(state, Sampled)))
            clock.lap("decode")
            serving = server.serve(sampled, last_turn=turn == settings.tool_turns)
            needs = Needs.of(sampled, serving, server.new_crops())
            clock.lap("tool")
            if not needs.tokens:
                break
            patches, tokens = next(size for size in settings.observation_sizes if needs.fit(*size))
            if needs.crops:
                count = bucket(needs.crops, settings.crop_counts)
                images = pack_image_rows(server.new_crops(), count, patches, self.config.vision)
                clock.lap("tool")
                crops = jax.block_until_ready(programs.encode_crops(params, crops, self._put(images), np.int32(placed)))
                placed += needs.crops
                calls += Calls(crops=((groups * count, patches),))
                clock.lap("vision")
            server.end_turn(needs.crops)
            state = self._grow(state, needs.slots)
            state = jax.block_until_ready(
                programs.extend(params, weights, cache, state, self._put(serving.cut(tokens)), crops)
            )
            calls += Calls(extend=((rows * (tokens + 1), cache_length(state)),))
            clock.lap("extend")

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
            crop_features=crops,
            crops=server.crops,
            seconds=clock.seconds,
            calls=calls,
        )
        clock.lap("tool")
        return rollout

    def prompt_size(self, prompts: Sequence[Prompt]) -> tuple[int, int]:
        """The smallest size that holds the prompts of all processes, or the largest there is."""
        tokens = max(len(prompt.token_ids) - 1 for prompt in prompts)
        patches = max((len(image.patches) for prompt in prompts for image in prompt.images), default=0)
        tokens, patches = distributed.largest(tokens, patches)
        sizes = self.settings.prompt_sizes
        return next((size for size in sizes if tokens <= size[0] and patches <= size[1]), sizes[-1])

    def stop_at(self, turn: int) -> int:
        """Length at which a trajectory is left waiting although its turn goes on; T is never reached by one."""
        return self.settings.response_length

    def _decode(
        self,
        params: nnx.State,
        weights: SamplingWeights,
        cache: PromptCache,
        state: RolloutState,
        key: jax.Array,
        prompt_ids: jax.Array,
        stop_at: np.int32,
    ) -> tuple[RolloutState, Calls]:
        """Samples until the host is needed; in between only for longer caches."""
        fixed = (key, prompt_ids, self.tables, stop_at)
        calls, before = Calls(), int(state.steps)
        while True:
            state, wants_room = self.programs.decode(params, weights, cache, state, *fixed)
            after = int(state.steps)
            calls += Calls(decode=((after - before, state.length.size, cache_length(state)),))
            if not wants_room:
                return state, calls
            before, state = after, self._grow(state, cache_length(state) + 1)

    def _grow(self, state: RolloutState, slots: int) -> RolloutState:
        """The state with a cache of at least so many slots."""
        if cache_length(state) >= slots:
            return state
        return self.programs.grow(state, bucket(slots, self.settings.cache_lengths))

    def _decisions(self, state: RolloutState, groups: int) -> list[list[dict[str, Any]]]:
        if state.forks is None:
            return [[] for _ in range(groups)]
        records, counts = self._read((state.forks.decisions, state.forks.decision_count))
        return [read_decisions(record, int(count)) for record, count in zip(records, counts, strict=True)]

    def turn_server(self, prompts: Sequence[Prompt]) -> TurnServer:
        """What follows the trajectories of one rollout on the host."""
        settings = self.settings
        return TurnServer(
            prompts,
            settings.trajectories,
            self.encoder,
            self.tools,
            observation_length=settings.observation_length,
            response_length=settings.response_length,
            crop_features=settings.crop_features,
        )


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the next calls must have room for, over all processes: new crops of a group, their patches, tokens of an
    observation, slots of the cache. Nothing waits where there are no tokens."""

    crops: int
    patches: int
    tokens: int
    slots: int

    @classmethod
    def of(cls, sampled: Sampled, serving: Serving, new_crops: Sequence[Sequence[PreparedImage]]) -> Needs:
        """The needs of what this process's rows are served."""
        patches = [len(image.patches) for group in new_crops for image in group]
        slots = np.where(serving.counts > 0, sampled.length + serving.counts, 0)
        crops = max(map(len, new_crops), default=0)
        return cls(*distributed.largest(crops, max(patches, default=0), int(serving.counts.max()), int(slots.max())))

    def fit(self, patches: int, tokens: int) -> bool:
        """Whether crops of so many patches and observations of so many tokens hold them."""
        return self.patches <= patches and self.tokens <= tokens


class RolloutPrograms(NamedTuple):
    """The jitted programs of a rollout:

    - `slice(params) -> SamplingWeights`, what decode reads
    - `encode(params, images [B, I, ...]) -> features [B, I * F, D]`
    - `prefill(params, prompt batch, features) -> (prompt inputs, prompt cache, state)`
    - `decode(params, weights, prompt cache, state, key, prompt ids, tables, stop_at) -> (state, is the cache full)`
    - `grow(state, slots) -> state` with a longer cache
    - `no_crops(features) -> [B, C, F, D]` of zeros
    - `encode_crops(params, crops' features, images [B, U, ...], place) -> crops' features` with these from `place` on
    - `extend(params, weights, prompt cache, state, serving, crops' features) -> state`

    decode, encode_crops and extend take over the buffers of what they change.
    """

    slice: Callable[..., SamplingWeights]
    encode: Callable[..., jax.Array]
    prefill: Callable[..., tuple[PromptInputs, PromptCache, RolloutState]]
    decode: Callable[..., tuple[RolloutState, jax.Array]]
    grow: Callable[..., RolloutState]
    no_crops: Callable[..., jax.Array]
    encode_crops: Callable[..., jax.Array]
    extend: Callable[..., RolloutState]


def rollout_programs(graphdef: nnx.GraphDef, settings: RolloutSettings, layout: Layout) -> RolloutPrograms:
    """The programs for one set of settings.

    What they return is laid out here: the compiler would keep arrays that begin as zeros whole on every device.
    """
    groups, whole, features = layout.sharding("groups"), layout.sharding(), crop_feature_sharding(layout)
    cache, state = prompt_cache_shardings(layout), state_shardings(layout)

    def jitted(function: Callable[..., Any], results: Any, **options: Any) -> Callable[..., Any]:
        return jax.jit(bind(layout, function), out_shardings=results, **options)

    def no_crops(like: jax.Array) -> jax.Array:
        return jnp.zeros((like.shape[0], settings.crop_slots, settings.crop_features, like.shape[-1]), like.dtype)

    return RolloutPrograms(
        slice=jitted(functools.partial(_slice, graphdef), None),  # laid out in the function
        encode=jitted(functools.partial(_encode, graphdef), groups),
        prefill=jitted(functools.partial(_prefill, graphdef, settings), (groups, cache, state)),
        decode=jitted(functools.partial(_decode, graphdef, settings), (state, whole), donate_argnums=3),
        grow=jitted(_grow, state, static_argnums=1),
        no_crops=jitted(no_crops, features),
        encode_crops=jitted(functools.partial(_encode_crops, graphdef), features, donate_argnums=1),
        extend=jitted(functools.partial(_extend, graphdef), state, donate_argnums=3),
    )


def crop_feature_sharding(layout: Layout) -> NamedSharding:
    """Where crops' features [B, C, F, D] wait for extend and the update."""
    return layout.sharding("groups", None, None, "waiting_features")


def cache_length(state: RolloutState) -> int:
    """Slots of the response cache as it is now."""
    return state.cache.values[0].shape[3]


def prompt_cache_shardings(layout: Layout) -> PromptCache:
    """Where a prompt cache lives, leaves standing for all layers."""
    heads = layout.sharding("groups", "kv_heads")
    return PromptCache(heads, heads, layout.sharding("groups"))


def state_shardings(layout: Layout) -> RolloutState:
    """Where a rollout's state lives, leaves standing for everything below them."""
    heads, groups = layout.sharding("groups", None, "kv_heads"), layout.sharding("groups")
    leading = {field.name: groups for field in dataclasses.fields(RolloutState)}
    return RolloutState(**leading | {"cache": ResponseCache(heads, heads), "steps": layout.sharding()})


def _slice(graphdef: nnx.GraphDef, params: nnx.State) -> SamplingWeights:
    return nnx.merge(graphdef, params).sampling_weights()


def _encode(graphdef: nnx.GraphDef, params: nnx.State, images: ImageBatch) -> jax.Array:
    return image_features(nnx.merge(graphdef, params), images)


def _prefill(
    graphdef: nnx.GraphDef, settings: RolloutSettings, params: nnx.State, batch: PromptBatch, features: jax.Array
) -> tuple[PromptInputs, PromptCache, RolloutState]:
    """Fills the prompt caches and sets up the state: once per group."""
    backbone = nnx.merge(graphdef, params)
    prompt = PromptInputs(batch.tokens, batch.positions, batch.valid, batch.feature_index, features)
    groups, slots = batch.tokens.shape[0], settings.trajectories
    forks = None
    if settings.evr:
        forks = initial_fork_state(groups, slots, settings.evr.window, settings.decision_records)
    state = initial_state(
        batch.last_token,
        batch.last_position[:, 0],
        batch.next_position,
        backbone.init_response_cache(groups, slots, settings.cache_lengths[0]),
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
    weights: SamplingWeights,
    cache: PromptCache,
    state: RolloutState,
    key: jax.Array,
    prompt_ids: jax.Array,
    tables: loop.VocabularyTables,
    stop_at: jax.Array,
) -> tuple[RolloutState, jax.Array]:
    """Samples until the host is needed."""
    rules = loop.LoopSettings(settings.temperature, settings.base_slots, settings.evr)
    backbone = nnx.merge(graphdef, params)
    return loop.decode(backbone, weights, cache, state, key, prompt_ids, tables, stop_at, rules)


def _grow(state: RolloutState, slots: int) -> RolloutState:
    """Longer caches: zeros behind what is there."""
    more = slots - cache_length(state)
    longer = ResponseCache(
        tuple(jnp.pad(x, [(0, 0)] * 4 + [(0, more)]) for x in state.cache.keys),
        tuple(jnp.pad(x, [(0, 0)] * 3 + [(0, more), (0, 0)]) for x in state.cache.values),
    )
    return state.replace(cache=longer)


def _encode_crops(
    graphdef: nnx.GraphDef, params: nnx.State, features: jax.Array, crops: ImageBatch, place: jax.Array
) -> jax.Array:
    """Encodes new crops; crops smaller than the largest leave the end of their rows as it is."""
    new = image_features(nnx.merge(graphdef, params), crops)
    new = new.reshape(*crops.valid.shape[:2], -1, new.shape[-1]).astype(features.dtype)
    return jax.lax.dynamic_update_slice(features, new, (0, place, 0, 0))


def _extend(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    weights: SamplingWeights,
    cache: PromptCache,
    state: RolloutState,
    serving: Serving,
    features: jax.Array,
) -> RolloutState:
    """Appends the observations to the rows that were served."""
    backbone = nnx.merge(graphdef, params)
    # The last sampled token of a row that ended in the loop's last step has not been fed yet: it goes first.
    token, positions = loop.last_token(state)
    new = ResponseInputs(
        tokens=jnp.concatenate([token, serving.tokens], axis=2),
        positions=jnp.concatenate([positions, serving.positions], axis=2),
        feature_index=jnp.concatenate([jnp.full_like(token, -1), serving.feature_index], axis=2),
        features=features.reshape(features.shape[0], -1, features.shape[-1]),
    )
    counts = jnp.where(serving.counts > 0, serving.counts + 1, 0)
    _, cache = backbone.extend(cache, state.cache, new, state.length - 1, counts, weights)
    return loop.append_observation(state.replace(cache=cache), serving)


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
