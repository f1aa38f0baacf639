"""The update on eight devices, whatever the mesh, gives what one device gives; frozen parts; dtypes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from medvr_jax.errors import UserError
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.partitioning import Layout, bind
from medvr_jax.models.weights import random_backbone
from medvr_jax.training import sharding
from medvr_jax.training.sharding import SAMPLING, TRAINING, MeshShape, make_layout, make_mesh
from medvr_jax.training.state import (
    Frozen,
    OptimizerSettings,
    initial_train_state,
    make_cast,
    make_optimizer,
    split_frozen,
)
from medvr_jax.training.update import TrainBatch, loss_and_gradient, make_update
from tests import torch_reference as reference
from tests.training.test_group_gradient import SETTINGS, largest_difference, make_batch

OPTIMIZER = OptimizerSettings(
    learning_rate=1e-3, schedule="constant", warmup_steps=0, weight_decay=0.1, b1=0.9, b2=0.999, epsilon=1e-8,
    max_grad_norm=1.0, moment_dtype="float32", steps=10,
)  # fmt: skip


@dataclasses.dataclass
class Case:
    config: BackboneConfig
    graphdef: nnx.GraphDef
    params: nnx.State
    reference: nnx.State
    batch: TrainBatch
    banned: np.ndarray


@functools.cache
def case(kv_heads: int, tied: bool = False) -> Case:
    """Eight groups, and a model whose heads divide by four; its key/value heads may not."""
    hf = reference.small_config(
        {"num_hidden_layers": 2, "num_key_value_heads": kv_heads, "initializer_range": 0.15},
        {"depth": 2, "fullatt_block_indexes": [1], "num_heads": 4, "initializer_range": 0.15},
        tied=tied,
    )
    config = BackboneConfig.from_json_dict(hf.to_dict())
    graphdef, params = random_backbone(config, 0)
    _, other = random_backbone(config, 1)
    near = jax.tree.map(lambda mine, its: mine + 0.02 * (its - mine), params, other)
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(4, 24, config.vision.patch_dim)).astype(np.float32)
    halves = [make_batch(config, patches, rng)[0] for _ in range(2)]
    batch = jax.tree.map(lambda *parts: np.concatenate(parts), *halves)
    banned = np.zeros(config.text.vocab_size, bool)
    banned[500:] = True
    return Case(config, graphdef, params, near, batch, banned)


def gradient_on(case: Case, mesh: MeshShape, devices: int, **changes: object) -> tuple[dict[str, Any], nnx.State]:
    layout = make_layout(TRAINING, make_mesh(mesh, jax.devices()[:devices]), case.config)
    settings = dataclasses.replace(SETTINGS, data_shards=sharding.data_shards(layout.mesh), **changes)
    place = functools.partial(sharding.parameter_shardings, layout=layout)
    params, near = (jax.device_put(tree, place(tree)) for tree in (case.params, case.reference))
    trainable, frozen = split_frozen(params, Frozen())
    run = jax.jit(bind(layout, lambda *values: loss_and_gradient(case.graphdef, *values, settings)))
    batch = jax.device_put(case.batch, sharding.by_group(layout.mesh))
    return jax.device_get(run(trainable, frozen, near, batch, case.banned))


@functools.cache
def single(kv_heads: int) -> tuple[dict[str, Any], nnx.State]:
    return gradient_on(case(kv_heads), MeshShape(), 1)


@pytest.mark.parametrize(
    ("data", "fsdp", "tensor", "kv_heads"),
    [(8, 1, 1, 2), (1, 8, 1, 2), (2, 2, 2, 2), (1, 2, 4, 4), (1, 2, 4, 2), (4, 1, 2, 4)],
)
def test_eight_devices_give_what_one_gives(data: int, fsdp: int, tensor: int, kv_heads: int) -> None:
    metrics, gradient = gradient_on(case(kv_heads), MeshShape(data, fsdp, tensor), 8)
    expected, expected_gradient = single(kv_heads)
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], atol=1e-5, rtol=1e-5, err_msg=name)
    assert largest_difference(gradient, expected_gradient) < 1e-5


def test_micro_batches_on_eight_devices() -> None:
    case_ = case(2)
    twice = dataclasses.replace(case_, batch=jax.tree.map(lambda x: np.concatenate([x, x[::-1]]), case_.batch))
    whole = gradient_on(twice, MeshShape(2, 2, 2), 8)
    parts = gradient_on(twice, MeshShape(2, 2, 2), 8, micro_batch_groups=4)
    np.testing.assert_allclose(parts[0]["loss"], whole[0]["loss"], atol=1e-5)
    assert largest_difference(parts[1], whole[1]) < 1e-5


def updated(case: Case, frozen: Frozen, dtype: str = "float32", **changes: str) -> tuple[Any, Any, Layout]:
    """The state before and after one update on eight devices."""
    layout = make_layout(TRAINING, make_mesh(MeshShape(2, 2, 2), jax.devices()), case.config)
    optimizer = make_optimizer(dataclasses.replace(OPTIMIZER, **changes))
    params = jax.tree.map(lambda x: x.astype(dtype), case.params)
    state = initial_train_state(params, optimizer, layout, frozen)
    before = jax.device_get(state)
    settings = dataclasses.replace(SETTINGS, kl_weight=0.0, data_shards=4)
    update = make_update(case.graphdef, optimizer, settings, state, layout)
    after, _ = update(state, None, jax.device_put(case.batch, sharding.by_group(layout.mesh)), case.banned)
    return before, after, layout


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_parts_stay_and_have_no_optimiser_state(tied: bool) -> None:
    case_ = case(2, tied)
    before, after, _ = updated(case_, Frozen(vision_tower=True, embeddings=True))
    kept = {path[0] for path, _ in nnx.to_flat_state(after.frozen)}
    assert kept == {"vision", "embedding"}
    for first, second in zip(jax.tree.leaves(before.frozen), jax.tree.leaves(after.frozen), strict=True):
        np.testing.assert_array_equal(first, second)
    trained = jax.tree.leaves(after.trainable)
    assert all(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before.trainable), trained, strict=True))
    moments = [leaf for leaf in jax.tree.leaves(after.optimizer) if leaf.ndim]
    assert len(moments) == 2 * len(trained)
    assert sum(leaf.size for leaf in moments) == 2 * sum(leaf.size for leaf in trained)


def test_dtypes_of_masters_and_moments() -> None:
    case_ = case(2)
    _, after, _ = updated(case_, Frozen(), "bfloat16", moment_dtype="bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(after.trainable)} == {"bfloat16"}
    (adam,) = (x for x in jax.tree.leaves(after.optimizer, is_leaf=_is_adam) if _is_adam(x))
    assert {x.dtype.name for x in jax.tree.leaves(adam.mu)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(adam.nu)} == {"float32"}


def _is_adam(value: object) -> bool:
    return isinstance(value, optax.ScaleByAdamState)


def test_state_is_split_over_fsdp_and_tensor() -> None:
    """Each device holds an eighth of a matrix and of both its moments, and half of it in the sampler's copy."""
    case_ = case(4)
    layout = make_layout(TRAINING, make_mesh(MeshShape(1, 4, 2), jax.devices()), case_.config)
    state = initial_train_state(case_.params, make_optimizer(OPTIMIZER), layout, Frozen())
    (adam,) = (x for x in jax.tree.leaves(state.optimizer, is_leaf=_is_adam) if _is_adam(x))
    for tree in (state.trainable, adam.mu, adam.nu):
        for name in ("embedding", "head"):
            array = tree[name].get_value()
            assert array.addressable_shards[0].data.size * 8 == array.size, name
    sampling = make_layout(SAMPLING, layout.mesh, case_.config)
    copy = make_cast(case_.params, sampling, "bfloat16")(state.params)
    head = copy["head"].get_value()
    assert head.dtype == jnp.bfloat16 and head.addressable_shards[0].data.size * 2 == head.size


def test_refusals_propose_what_divides() -> None:
    config = case(2).config
    mesh = AbstractMesh((1, 1, 8), sharding.MESH_AXES)
    with pytest.raises(UserError, match=r"mesh.tensor: found 8, num_attention_heads = 4 .* allowed: 1, 2, 4"):
        make_layout(TRAINING, mesh, config)
    layout = make_layout(TRAINING, AbstractMesh((1, 48, 1), sharding.MESH_AXES), config)
    with pytest.raises(UserError, match=r"mesh.fsdp: found 48, parameter .* has 64 .*; mesh.fsdp=16 divides it"):
        sharding.parameter_shardings(case(2).params, layout)
    twice = Layout(layout.mesh, {"vocabulary": "fsdp", "embed": "fsdp"})
    with pytest.raises(UserError, match=r"parameter embedding would use one mesh axis twice"):
        sharding.parameter_shardings(nnx.State({"embedding": case(2).params["embedding"]}), twice)
