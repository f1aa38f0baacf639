"""A run without weights and data: every array that its programs take, by shape, dtype and sharding alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from medvr_jax import assembly, programs
from medvr_jax.inputs.batches import PromptBatch
from medvr_jax.models import vision_geometry
from medvr_jax.models.attention_backend import XLA
from medvr_jax.models.backbone import (
    Backbone,
    PromptCache,
    PromptInputs,
    ResponseCache,
    SamplingWeights,
    with_settings,
)
from medvr_jax.models.config import BackboneConfig, VisionConfig
from medvr_jax.models.packing import Packing
from medvr_jax.models.partitioning import Layout
from medvr_jax.models.vision import ImageBatch
from medvr_jax.rollout.loop import VocabularyTables
from medvr_jax.rollout.programs import crop_feature_sharding, prompt_cache_shardings, state_shardings
from medvr_jax.rollout.settings import RolloutSettings
from medvr_jax.rollout.state import RolloutState
from medvr_jax.rollout.turns import Serving
from medvr_jax.training import sharding
from medvr_jax.training.state import TrainState, optimizer_shardings, split_frozen
from medvr_jax.training.update import TrainBatch, UpdateSize


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """What `trainer.Trainer` holds, without contents.

    Attributes:
        config: the run's configuration.
        backbone: the model's shapes.
        mesh: of the described devices; an abstract one where nothing is going to be compiled.
        graphdef: structure of the backbone.
        params: `jax.ShapeDtypeStruct`s of the parameters in the master dtype, laid out for training.
        rollout: shapes and rules of the rollouts in question, training's or the evaluation's.
    """

    config: Any
    backbone: BackboneConfig
    mesh: Mesh | AbstractMesh
    graphdef: nnx.GraphDef
    params: nnx.State
    rollout: RolloutSettings

    @property
    def training_layout(self) -> Layout:
        """Where masters, optimiser state and the update's activations live."""
        return sharding.make_layout(sharding.TRAINING, self.mesh, self.backbone)

    @property
    def sampling_layout(self) -> Layout:
        """Where the weights and caches of a rollout live."""
        return sharding.make_layout(sharding.SAMPLING, self.mesh, self.backbone)


def abstract_run(config: Any, backbone: BackboneConfig, mesh: Mesh | AbstractMesh) -> AbstractRun:
    """The parts of a run on `mesh`; UserError where the mesh does not divide the parameters."""

    def make() -> Backbone:
        model = config.model
        key = jax.random.key(0)
        return Backbone(backbone, key=key, dtype=model.parameter_dtype, compute_dtype=model.compute_dtype)

    graphdef, params = nnx.split(nnx.eval_shape(make))
    attention = sharding.attention_backend(config.model.attention, mesh) if isinstance(mesh, Mesh) else XLA
    graphdef = with_settings(graphdef, params, attention=attention, images_at_once=config.model.images_at_once)
    layout = sharding.make_layout(sharding.TRAINING, mesh, backbone)
    params = laid_out(params, sharding.parameter_shardings(params, layout))
    return AbstractRun(config, backbone, mesh, graphdef, params, assembly.training_rollout(config, backbone))


def abstract_parts(parts: assembly.Parts, rollout: RolloutSettings) -> AbstractRun:
    """A run whose parts have been read."""
    return AbstractRun(
        parts.config, parts.backbone, parts.mesh, parts.graphdef, programs.abstract(parts.params), rollout
    )


def laid_out(tree: Any, layout: Any) -> Any:
    """Abstract arrays with the shardings of a tree like it, or all with one sharding."""
    if isinstance(layout, NamedSharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout)


def train_state(run: AbstractRun, optimizer: optax.GradientTransformation) -> TrainState:
    """As `training.state.initial_train_state` makes it."""
    trainable, fixed = split_frozen(run.params, assembly.frozen_parts(run.config))
    moments = jax.eval_shape(optimizer.init, trainable)
    moments = laid_out(moments, optimizer_shardings(optimizer, trainable, run.training_layout))
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(run.mesh))
    return TrainState(step, trainable, fixed, moments)


def cast(params: nnx.State, layout: Layout, dtype: str) -> nnx.State:
    """What `training.state.make_cast`'s function returns."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)
    return laid_out(shapes, sharding.parameter_shardings(shapes, layout))


def banned(run: AbstractRun) -> jax.ShapeDtypeStruct:
    """`[V]` bool on every device."""
    size = run.backbone.text.vocab_size
    return jax.ShapeDtypeStruct((size,), jnp.bool_, sharding=sharding.replicated(run.mesh))


def vocabulary_tables(run: AbstractRun) -> VocabularyTables:
    """The sampling loop's tables on every device."""
    return VocabularyTables(*(banned(run) for _ in dataclasses.fields(VocabularyTables)))


def random_key(run: AbstractRun) -> jax.ShapeDtypeStruct:
    """A step's key."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(run.mesh))


def images(lead: tuple[int, ...], patches: int, vision: VisionConfig) -> ImageBatch:
    """An image batch `[*lead, ...]` with bucket S = `patches`."""
    blocks, capacity = vision_geometry.window_blocks(patches, vision), vision.window_patches
    return ImageBatch(
        patches=jax.ShapeDtypeStruct((*lead, patches, vision.patch_dim), jnp.float32),
        positions=jax.ShapeDtypeStruct((*lead, patches, 2), jnp.int32),
        valid=jax.ShapeDtypeStruct((*lead, patches), jnp.bool_),
        window_slots=jax.ShapeDtypeStruct((*lead, blocks, capacity), jnp.int32),
        slot_of_patch=jax.ShapeDtypeStruct((*lead, patches), jnp.int32),
    )


def prompt_batch(run: AbstractRun, groups: int) -> PromptBatch:
    """B prompts as `inputs.batches.batch_prompts` packs them, split by group."""
    settings = run.rollout
    P = settings.prompt_bucket

    def whole(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((groups, *shape), jnp.int32)

    batch = PromptBatch(
        tokens=whole(P),
        positions=whole(P, 3),
        valid=jax.ShapeDtypeStruct((groups, P), jnp.bool_),
        feature_index=whole(P),
        last_token=whole(),
        last_position=whole(3),
        next_position=whole(),
        images=images((groups, settings.prompt_images), settings.prompt_patches, run.backbone.vision),
        prompt_ids=jax.ShapeDtypeStruct((groups,), jnp.uint32),
    )
    return laid_out(batch, sharding.by_group(run.mesh))


def serving(run: AbstractRun, groups: int, tokens: int) -> Serving:
    """What the host hands back after a turn, E = `tokens`, split by group."""
    slots, E = run.rollout.trajectories, tokens

    def whole(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((groups, slots, *shape), jnp.int32)

    arrays = Serving(
        status=whole(),
        tokens=whole(E),
        positions=whole(E, 3),
        feature_index=whole(E),
        counts=whole(),
        next_position=whole(),
    )
    return laid_out(arrays, sharding.by_group(run.mesh))


def sampling_weights(run: AbstractRun, params: nnx.State) -> SamplingWeights:
    """What decode reads, cut from abstract parameters in the sampling layout."""
    backbone = nnx.merge(run.graphdef, params)
    shapes = jax.eval_shape(lambda params: nnx.merge(run.graphdef, params).sampling_weights(), params)
    axes = backbone.sampling_axes()
    layers = tuple(
        {name: _placed(x, run.sampling_layout, places[name]) for name, x in layer.items()}
        for layer, places in zip(shapes.layers, axes.layers, strict=True)
    )
    return SamplingWeights(
        layers,
        _placed(shapes.embedding, run.sampling_layout, axes.embedding),
        None if shapes.head is None else _placed(shapes.head, run.sampling_layout, axes.head),
    )


def _placed(x: jax.ShapeDtypeStruct, layout: Layout, axes: tuple[str | None, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.fitting(x.shape, *axes))


def features(run: AbstractRun, groups: int) -> jax.ShapeDtypeStruct:
    """`[B, I * F, D]`, the prompts' image features."""
    settings, config = run.rollout, run.config
    rows = settings.prompt_images * settings.prompt_patches // settings.merge_unit
    shape = (groups, rows, run.backbone.text.hidden_size)
    return jax.ShapeDtypeStruct(shape, config.model.compute_dtype, sharding=run.sampling_layout.sharding("groups"))


def crop_features(run: AbstractRun, groups: int) -> jax.ShapeDtypeStruct:
    """`[B, C, F, D]`, room for all crops of the groups."""
    settings = run.rollout
    shape = (groups, settings.crop_slots, settings.crop_features, run.backbone.text.hidden_size)
    place = crop_feature_sharding(run.sampling_layout)
    return jax.ShapeDtypeStruct(shape, run.config.model.compute_dtype, sharding=place)


def grown(state: RolloutState, length: int) -> RolloutState:
    """The state with a cache of this length."""

    def longer(x: jax.ShapeDtypeStruct, axis: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*x.shape[:axis], length, *x.shape[axis + 1 :]), x.dtype, sharding=x.sharding)

    keys = tuple(longer(x, 4) for x in state.cache.keys)
    return state.replace(cache=ResponseCache(keys, tuple(longer(x, 3) for x in state.cache.values)))


def prefilled(
    run: AbstractRun, prefill: Any, params: nnx.State, prompts: PromptBatch
) -> tuple[PromptInputs, PromptCache, RolloutState]:
    """What the program `prefill` returns, laid out as it does."""
    shapes = jax.eval_shape(prefill, params, prompts, features(run, prompts.tokens.shape[0]))
    layout = run.sampling_layout
    layouts = (sharding.by_group(run.mesh), prompt_cache_shardings(layout), state_shardings(layout))
    inputs, cache, state = (
        laid_out(tree, jax.tree.broadcast(where, tree)) for tree, where in zip(shapes, layouts, strict=True)
    )
    return inputs, cache, state


def of_all_parts(tree: Any, groups: int) -> Any:
    """Abstract arrays of one part of a rollout as they are for all groups."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((groups, *x.shape[1:]), x.dtype, sharding=x.sharding), tree)


def train_batch(
    run: AbstractRun,
    prompt: PromptInputs,
    trajectories: tuple[jax.ShapeDtypeStruct, ...],
    crop_features: jax.ShapeDtypeStruct,
    size: UpdateSize,
) -> TrainBatch:
    """As `trainer.Trainer.train_batch` makes it from a rollout's tokens, positions and feature indices, which fit into
    this size."""
    settings, vision = run.rollout, run.backbone.vision
    tokens, positions, feature_index = trajectories
    groups, slots, length = tokens.shape
    frozen = run.config.model.freeze_vision_tower
    pictures = crops = None
    if not frozen:
        pictures = images((groups, settings.prompt_images), settings.prompt_patches, vision)
        crops = images((groups, size.crops), settings.crop_patches, vision)
    arrays = {
        "packing": packing(groups, slots, size, forks=settings.evr is not None),
        "sampled": jax.ShapeDtypeStruct((groups, slots, length), jnp.bool_),
        "log_probabilities": jax.ShapeDtypeStruct((groups, slots, length), jnp.float32),
        "advantages": jax.ShapeDtypeStruct((groups, slots), jnp.float32),
        "counted": jax.ShapeDtypeStruct((groups,), jnp.bool_),
        "images": pictures,
        "crops": crops,
    }
    return TrainBatch(
        prompt=prompt,
        tokens=tokens,
        positions=positions,
        feature_index=feature_index,
        crop_features=crop_features if frozen else None,
        old_log_probabilities=None,
        **laid_out(arrays, sharding.by_group(run.mesh)),
    )


def packing(groups: int, slots: int, size: UpdateSize, *, forks: bool) -> Packing:
    """Of rows of T = `size.length` slots with N = `size.tokens` distinct tokens."""
    whole = jax.ShapeDtypeStruct((groups, slots, size.length), jnp.int32)
    flags = jax.ShapeDtypeStruct(whole.shape, jnp.bool_)
    return Packing(
        slots=jax.ShapeDtypeStruct((groups, size.tokens), jnp.int32),
        places=whole,
        own=flags,
        owner=jax.ShapeDtypeStruct((groups, slots), jnp.int32) if forks else None,
        shared=flags if forks else None,
    )
