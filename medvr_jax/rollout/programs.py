"""The jitted programs of a rollout, where what they make lives, and nothing of the order in which they are called."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from medvr_jax.inputs.batches import PromptBatch
from medvr_jax.models.backbone import PromptCache, PromptInputs, ResponseCache, ResponseInputs, SamplingWeights
from medvr_jax.models.features import image_features
from medvr_jax.models.partitioning import Layout, bind
from medvr_jax.models.vision import ImageBatch
from medvr_jax.rollout import loop
from medvr_jax.rollout.settings import RolloutSettings
from medvr_jax.rollout.state import RolloutState, initial_fork_state, initial_state
from medvr_jax.rollout.turns import Serving


class RolloutPrograms(NamedTuple):
    """The jitted programs of a rollout:

    - `slice(params) -> SamplingWeights`, what decode reads
    - `encode(params, images [B, I, ...]) -> features [B, I * F, D]`
    - `prefill(params, prompt batch, features) -> (prompt inputs, prompt cache, state)`
    - `decode(params, weights, prompt cache, state, key, prompt ids, tables, stop_at, share) -> (state, its Pause)`
    - `grow(state, slots) -> state` with a longer cache
    - `no_crops(features) -> [B, C, F, D]` of zeros
    - `encode_crops(params, crops' features, images [B, U, ...], place) -> crops' features` with these from `place` on
    - `extend(params, weights, prompt cache, state, serving, crops' features) -> state`

    decode, encode_crops and extend take over the buffers of what they change.
    """

    slice: Callable[..., SamplingWeights]
    encode: Callable[..., jax.Array]
    prefill: Callable[..., tuple[PromptInputs, PromptCache, RolloutState]]
    decode: Callable[..., tuple[RolloutState, loop.Pause]]
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
    share: jax.Array,
) -> tuple[RolloutState, loop.Pause]:
    """Samples until the host is needed, or could begin to work."""
    rules = loop.LoopSettings(settings.temperature, settings.base_slots, settings.evr)
    backbone = nnx.merge(graphdef, params)
    return loop.decode(backbone, weights, cache, state, key, prompt_ids, tables, stop_at, share, rules)


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
