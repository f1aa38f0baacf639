"""The vision tower block by block against transformers, its windows, and what padding may not do."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from transformers.vision_utils import get_vision_window_index

from medvr_jax.models import vision
from medvr_jax.models.backbone import with_settings
from medvr_jax.models.features import image_features
from medvr_jax.models.layers import layer_of, linear, weights_of
from medvr_jax.models.vision_geometry import image_geometry, padded_geometry, window_blocks
from tests.models import cases

# in patches; a window is 8 × 8: smaller, exact, larger in one direction, larger in both, thin
GRIDS = [(1, 4, 6), (1, 8, 8), (1, 4, 22), (1, 20, 26), (1, 26, 12), (1, 2, 40), (1, 24, 16)]
S = 640


@pytest.mark.parametrize("grid", GRIDS)
def test_windows_are_those_of_transformers(pair, grid):
    tower, geometry = pair.config.vision, image_geometry(grid, pair.config.vision)
    order, borders = get_vision_window_index(torch.tensor([grid]), 2, tower.window_size, tower.patch_size)
    patches = (order[:, None] * 4 + torch.arange(4)).reshape(-1).numpy()
    expected = {frozenset(part.tolist()) for part in np.split(patches, borders[1:-1].numpy())}

    found: dict[tuple, set[int]] = {}
    for block, slots in enumerate(geometry.window_slots):
        for patch in slots[slots < len(geometry.positions)]:
            cell = tuple(geometry.positions[patch] // 8)
            found.setdefault((block, *cell), set()).add(int(patch))
    assert {frozenset(x) for x in found.values()} == expected
    flat = geometry.window_slots.reshape(-1)
    np.testing.assert_array_equal(flat[geometry.slot_of_patch], np.arange(len(geometry.positions)))


def test_every_image_fits_the_blocks_of_its_bucket(pair):
    tower = pair.config.vision
    for cells in (1, 3, 4, 16, 17, 33, 64, 100, 150):
        needed = [
            len(image_geometry((1, 2 * h, 2 * w), tower).window_slots)
            for h in range(1, cells + 1)
            for w in range(1, cells // h + 1)
        ]
        assert max(needed) == window_blocks(4 * cells, tower)
    assert window_blocks(64, tower) == 1


def test_without_windows_there_are_no_blocks(qwen2_pair, pair):
    tower, other = qwen2_pair.config.vision, pair.config.vision
    positions, valid, window_slots, slot_of_patch = padded_geometry((1, 20, 26), 640, tower)
    assert window_slots.shape == (0, 0) and slot_of_patch.shape == (0,) and window_blocks(640, tower) == 0
    expected = padded_geometry((1, 20, 26), 640, other)
    np.testing.assert_array_equal(positions, expected[0])
    np.testing.assert_array_equal(valid, expected[1])
    assert dataclasses.replace(other, full_attention_blocks=(0, 1, 2, 3)).has_windows is False


def test_refuses_what_is_no_image(pair):
    with pytest.raises(ValueError, match="must be"):
        image_geometry((2, 4, 4), pair.config.vision)
    with pytest.raises(ValueError, match="multiples of 2"):
        image_geometry((1, 5, 4), pair.config.vision)
    with pytest.raises(ValueError, match="does not fit"):
        padded_geometry((1, 8, 8), 32, pair.config.vision)
    with pytest.raises(ValueError, match="bucket"):
        window_blocks(63, pair.config.vision)


@pytest.fixture(scope="module")
def images(sibling) -> tuple[vision.ImageBatch, list[np.ndarray]]:
    """All grids in one batch, an empty row in the middle."""
    rng = np.random.default_rng(1)
    one = cases.segment(rng, sibling.config, *GRIDS[:3])
    two = cases.segment(rng, sibling.config, *GRIDS[3:])
    batch = cases.image_batch([one, two], 4, S, sibling.config)
    return batch, [*one.pixels, *two.pixels]


ROWS = [0, 1, 2, 4, 5, 6, 7]  # row 3 is empty


def test_each_block_equals_transformers(sibling, images):
    pair = sibling
    batch, pixels = images
    tower = pair.reference.model.visual
    captured: list[np.ndarray] = []

    def capture(_, __, output):
        captured.append((output[0] if isinstance(output, tuple) else output).numpy())

    hooks = [module.register_forward_hook(capture) for module in (tower.patch_embed, *tower.blocks)]
    with torch.no_grad():
        features = tower(torch.from_numpy(np.concatenate(pixels)), torch.tensor(GRIDS)).pooler_output.numpy()
    for hook in hooks:
        hook.remove()
    patches = np.arange(len(features) * 4)
    if pair.config.vision.has_windows:  # their patches are reordered by window from the first block on
        order, _ = get_vision_window_index(torch.tensor(GRIDS), 2, 112, 14)
        patches = (order[:, None] * 4 + torch.arange(4)).reshape(-1).numpy()

    def rows(x: jax.Array, unit: int = 1) -> np.ndarray:
        x = np.asarray(x)
        return np.concatenate([x[row, : len(one) // unit] for row, one in zip(ROWS, pixels, strict=True)])

    ours, config = pair.model.vision, sibling.config.vision
    x = linear(batch.patches, ours.patch_kernel[...])
    np.testing.assert_allclose(rows(x), captured[0], rtol=1e-5, atol=5e-5)
    stack = weights_of(ours.blocks)
    views = {True: vision._whole_rows(batch, config)}
    if config.has_windows:
        views[False] = vision._windows(batch, config)
    for block in range(config.depth):
        full = block in config.full_attention_blocks
        x = vision.vision_block(x, layer_of(stack, block), views[full], config)
        expected = np.empty_like(captured[block + 1])
        expected[patches] = captured[block + 1]
        np.testing.assert_allclose(rows(x), expected, rtol=1e-5, atol=1e-4, err_msg=f"block {block}")
    np.testing.assert_allclose(rows(ours.merge(x), 4), features, atol=1e-4)
    np.testing.assert_allclose(rows(ours(batch), 4), features, atol=1e-4)


def test_images_of_groups_may_lie_on_several_devices(sibling, images):
    """Without windows some arrays of a batch have no elements; they are spread like the others."""
    batch, _ = images
    grouped = jax.tree.map(lambda leaf: leaf.reshape(2, 4, *leaf.shape[1:]), batch)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    spread = jax.device_put(grouped, NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(sibling.params, NamedSharding(mesh, PartitionSpec()))
    features = jax.jit(lambda params, x: image_features(nnx.merge(sibling.graphdef, params), x))(params, spread)
    plain = cases.encode(sibling.graphdef, sibling.params, batch)
    assert features.shape == (2, 4 * S // 4, plain.shape[-1])
    np.testing.assert_allclose(features.reshape(plain.shape), plain, atol=1e-4)  # features reach 10


def test_scanned_and_recomputed_towers_agree(sibling, images, monkeypatch):
    pair, (batch, _) = sibling, images
    plain = cases.encode(pair.graphdef, pair.params, batch)
    recomputed = jax.jit(lambda batch: pair.model.encode_images(batch, remat="block"))(batch)
    np.testing.assert_allclose(recomputed, plain, atol=1e-5)
    tower = pair.model.vision
    if tower.config.has_windows:
        tower.config = dataclasses.replace(tower.config, full_attention_blocks=(3,))  # a run of three
    unrolled = jax.jit(lambda batch: tower(batch))(batch)
    monkeypatch.setattr(vision, "SCAN_FROM", 1)
    np.testing.assert_allclose(jax.jit(lambda batch: tower(batch))(batch), unrolled, atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_images_two_at_a_time_give_the_same_features_and_gradient(sibling, images, remat):
    """Of two groups with three images each: the last part holds one image and one that is empty."""
    pair, (batch, _) = sibling, images
    several = jax.tree.map(lambda leaf: leaf[:6].reshape(2, 3, *leaf.shape[1:]), batch)
    direction = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3 * S // 4, pair.config.text.hidden_size)))

    def outcome(at_once: int):
        graphdef = with_settings(pair.graphdef, pair.params, images_at_once=at_once)

        def total(params):
            features = image_features(nnx.merge(graphdef, params), several, remat)
            return jnp.sum(features * direction), features

        return jax.jit(jax.grad(total, has_aux=True))(pair.params)

    (gradient, features), (expected_gradient, expected) = outcome(2), outcome(0)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1.0, float(jnp.abs(theirs).max())))


def test_padding_changes_nothing_and_has_no_gradient(sibling, images):
    pair, (batch, pixels) = sibling, images
    junk = np.array(batch.patches)
    junk[~np.asarray(batch.valid)] = 1e3
    larger = padded_geometry(GRIDS[0], 64, pair.config.vision)

    def total(patches):
        features = pair.model.encode_images(dataclasses.replace(batch, patches=patches))
        keep = jnp.asarray(np.asarray(batch.valid)[:, ::4])
        return jnp.sum(jnp.where(keep[..., None], features, 0) ** 2), features

    (_, features), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.asarray(junk))
    plain = cases.encode(pair.graphdef, pair.params, batch)
    keep = np.asarray(batch.valid)[:, ::4]
    np.testing.assert_allclose(np.asarray(features)[keep], np.asarray(plain)[keep], atol=1e-5)
    assert np.isfinite(np.asarray(features)).all() and np.isfinite(np.asarray(gradient)).all()
    assert not np.asarray(gradient)[~np.asarray(batch.valid)].any()
    assert np.asarray(gradient)[np.asarray(batch.valid)].any()

    alone = vision.ImageBatch(
        jnp.asarray(np.pad(pixels[0], ((0, 64 - len(pixels[0])), (0, 0))))[None],
        *(jnp.asarray(x)[None] for x in larger),
    )
    np.testing.assert_allclose(
        cases.encode(pair.graphdef, pair.params, alone)[0, :6], np.asarray(plain)[0, :6], atol=1e-5
    )
