"""Logits of groups against transformers' model on every flat sequence, and the four ways to compute them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medvr_jax.models import backbone as backbone_module
from medvr_jax.models import layers
from medvr_jax.models.config import BackboneConfig
from tests.models import cases
from tests.models.conftest import make_pair

TOLERANCE = 2e-4


def text_group(rng: np.random.Generator, config: BackboneConfig) -> cases.Group:
    def make(*sizes):
        return [cases.segment(rng, config, size) for size in sizes]

    prompts, responses = make(9, 1), [make(12, 1, 7), make(3, 8, 10)]
    return cases.group(config, prompts, responses, P=11, T=13, S=4)


def image_group(rng: np.random.Generator, config: BackboneConfig) -> cases.Group:
    prompts = [cases.segment(rng, config, 4, (1, 12, 8), 5)]
    responses = [[cases.segment(rng, config, 9), cases.segment(rng, config, 5)]]
    return cases.group(config, prompts, responses, P=40, T=9, S=96)


def two_image_group(rng: np.random.Generator, config: BackboneConfig) -> cases.Group:
    """Non-square, of different sizes; (20, 26) is larger than a window of 8 × 8 patches in both directions."""
    prompts = [cases.segment(rng, config, 3, (1, 20, 26), 2, (1, 6, 12), 4), cases.segment(rng, config, (1, 10, 24), 6)]
    responses = [[cases.segment(rng, config, 6)], [cases.segment(rng, config, 8)]]
    return cases.group(config, prompts, responses, P=170, T=8, S=520, images=2)


def three_turn_group(rng: np.random.Generator, config: BackboneConfig) -> cases.Group:
    """An image in the prompt, a crop in each of two observations; the other trajectory looks once."""
    prompts = [cases.segment(rng, config, 5, (1, 14, 18), 7), cases.segment(rng, config, 3, (1, 8, 8), 2)]
    responses = [
        [cases.segment(rng, config, 9, (1, 8, 12), 11, (1, 14, 4), 8), cases.segment(rng, config, 12, (1, 10, 10), 6)],
        [cases.segment(rng, config, 4, (1, 4, 4), 3, (1, 12, 10), 2), cases.segment(rng, config, 17)],
    ]
    return cases.group(config, prompts, responses, P=80, T=72, S=252, crops=2)


GROUPS = {"text": text_group, "image": image_group, "two images": two_image_group, "three turns": three_turn_group}


@pytest.mark.parametrize("name", GROUPS)
def test_logits_equal_transformers(pair, name):
    group = GROUPS[name](np.random.default_rng(2), pair.config)
    logits = cases.score_logits(pair.graphdef, pair.params, group)
    assert logits.dtype == jnp.float32
    assert cases.largest_difference(logits, pair.reference, group) <= TOLERANCE


@pytest.mark.parametrize(
    "overrides",
    [
        {"tied": True, "text": {"num_key_value_heads": 1, "num_hidden_layers": 1}},
        {
            "text": {"num_key_value_heads": 4, "num_hidden_layers": 9},
            "vision": {"depth": 10, "fullatt_block_indexes": [9]},
        },
        {
            "text": {
                "hidden_size": 96,
                "num_attention_heads": 6,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [4, 2, 2]},
            },
            "vision": {"out_hidden_size": 96, "window_size": 56, "num_heads": 4, "fullatt_block_indexes": [0]},
        },
    ],
    ids=["tied, one kv head, one layer", "deep: scanned layers and blocks", "other widths, sections, windows"],
)
def test_other_shapes_equal_transformers(tmp_path, overrides):
    pair = make_pair(tmp_path, **overrides)
    group = three_turn_group(np.random.default_rng(3), pair.config)
    logits = cases.score_logits(pair.graphdef, pair.params, group)
    assert cases.largest_difference(logits, pair.reference, group) <= TOLERANCE


@pytest.fixture(scope="module")
def scored(pair):
    """The three-turn group, its inputs with features, and the scored hidden values [B, M, T, D]."""
    group = three_turn_group(np.random.default_rng(4), pair.config)
    prompt, response = cases.with_features(pair.graphdef, pair.params, group)
    return group, prompt, response, cases.score(pair.graphdef, pair.params, prompt, response)


def lengths(group: cases.Group) -> np.ndarray:
    return np.array([[len(one.tokens) for one in row] for row in group.responses], np.int32)


def part(response, starts: np.ndarray, width: int):
    """The tokens at starts … starts + width - 1 of each trajectory [B, M]."""
    slots = jnp.minimum(jnp.asarray(starts, jnp.int32)[..., None] + jnp.arange(width), response.tokens.shape[2] - 1)

    def take(x):
        return jnp.take_along_axis(x, slots if x.ndim == 3 else slots[..., None], axis=2)

    return dataclasses.replace(
        response,
        tokens=take(response.tokens),
        positions=take(response.positions),
        feature_index=take(response.feature_index),
    )


@pytest.mark.parametrize("how", ["without weights", "with weights", "scanned", "turned kernels"])
def test_decode_and_extend_equal_score(pair, scored, how, monkeypatch):
    """Rows of different lengths, alternately one token and several, with a rewind and a copied row in between."""
    if how == "scanned":
        monkeypatch.setattr(backbone_module, "SCAN_FROM", 1)
    if how == "turned kernels":  # of few rows and of many
        monkeypatch.setattr(layers, "LARGE_KERNEL", 1)
        monkeypatch.setattr(layers, "FEW_ROWS", 4)
    group, prompt, response, hidden = scored
    model, ends = pair.model, lengths(group)
    B, M, T = response.tokens.shape
    cache, prompt_cache = model.init_response_cache(B, M, T), model.prefill(prompt)
    weights = None if how == "without weights" else model.sampling_weights()
    if how == "turned kernels":
        assert sum(name.endswith("_transposed") for name in weights.layers[0]) == 7
    extend = jax.jit(lambda cache, new, starts, counts: model.extend(prompt_cache, cache, new, starts, counts, weights))
    done, found, step = np.zeros((B, M), np.int32), np.zeros(hidden.shape, np.float32), 0
    while (done < ends).any():
        width = (1, 5)[step % 2]
        counts = np.minimum(width, ends - done)
        if step % 3 == 2:
            counts[0] = 0  # these wait
        outputs, cache = extend(cache, part(response, done, width), jnp.asarray(done), jnp.asarray(counts))
        for b, m in np.ndindex(B, M):
            found[b, m, done[b, m] : done[b, m] + counts[b, m]] = outputs[b, m, : counts[b, m]]
        done += counts
        step += 1
        if step == 6:
            done = np.maximum(done - 4, 0)  # go over some slots again
        if step == 9:  # another row's content in the cache is overwritten by feeding the row anew
            cache = jax.tree.map(lambda leaf: leaf.at[:, 1].set(leaf[:, 0]), cache)
            done[:, 1] = 0
    real = np.arange(T) < ends[..., None]
    np.testing.assert_allclose(found[real], np.asarray(hidden)[real], atol=2e-5)
    logits = model.logits(hidden)
    np.testing.assert_allclose(model.logits(hidden, model.sampling_weights()), logits, atol=1e-5)


def test_copied_row_goes_on_as_its_parent(pair, scored):
    group, prompt, response, hidden = scored
    model = pair.model
    names = ("tokens", "positions", "feature_index")
    first = {name: getattr(response, name)[:, :1] for name in names}
    M = response.tokens.shape[1]
    same = dataclasses.replace(response, **{name: jnp.repeat(x, M, axis=1) for name, x in first.items()})
    B, M, T = response.tokens.shape
    fork = 6
    prompt_cache, cache = model.prefill(prompt), model.init_response_cache(B, M, T)
    first = jnp.asarray([[fork, 0]] * B)
    _, cache = model.extend(
        prompt_cache, cache, part(same, np.zeros((B, M)), fork), jnp.zeros((B, M), jnp.int32), first
    )
    cache = jax.tree.map(lambda leaf: leaf.at[:, 1].set(leaf[:, 0]), cache)
    starts = np.full((B, M), fork, np.int32)
    outputs, _ = model.extend(prompt_cache, cache, part(same, starts, 3), jnp.asarray(starts), jnp.full((B, M), 3))
    np.testing.assert_array_equal(outputs[:, 0], outputs[:, 1])
    np.testing.assert_allclose(outputs[:, 1], hidden[:, 0, fork : fork + 3], atol=2e-5)


def test_padding_and_neighbours_change_nothing(pair, scored):
    """Larger buckets, junk in every padded place and fewer groups leave the real tokens as they are."""
    group, _, _, hidden = scored
    ends, T = lengths(group), group.response.tokens.shape[2]
    larger = cases.group(pair.config, group.prompts, group.responses, P=96, T=T + 20, S=280, images=2, crops=3)
    junk = np.random.default_rng(5)

    def spoil(inputs, real):
        noise = jnp.asarray(junk.integers(0, 400, real.shape), jnp.int32)
        return dataclasses.replace(
            inputs,
            tokens=jnp.where(real, inputs.tokens, noise),
            positions=jnp.where(real[..., None], inputs.positions, 77),
            feature_index=jnp.where(real, inputs.feature_index, noise % 3),
        )

    prompt, response = cases.with_features(pair.graphdef, pair.params, larger)
    prompt = spoil(prompt, larger.prompt.valid)
    response = spoil(response, jnp.arange(T + 20) < jnp.asarray(ends)[..., None])
    found = np.asarray(cases.score(pair.graphdef, pair.params, prompt, response))[:, :, :T]
    real = np.arange(T) < ends[..., None]
    np.testing.assert_allclose(found[real], np.asarray(hidden)[real], atol=2e-5)

    alone = cases.group(pair.config, group.prompts[1:], [group.responses[1][:1]], P=80, T=T, S=252, crops=2)
    inputs = cases.with_features(pair.graphdef, pair.params, alone)
    found = np.asarray(cases.score(pair.graphdef, pair.params, *inputs))
    np.testing.assert_allclose(found[0, 0, : ends[1, 0]], np.asarray(hidden)[1, 0, : ends[1, 0]], atol=2e-5)


def test_scan_and_remat_change_nothing(pair, scored, monkeypatch):
    _, prompt, response, hidden = scored
    recomputed = cases.score(pair.graphdef, pair.params, prompt, response, "block")
    np.testing.assert_allclose(recomputed, hidden, atol=2e-5)
    monkeypatch.setattr(backbone_module, "SCAN_FROM", 1)
    scanned = jax.jit(lambda params: cases.score.__wrapped__(pair.graphdef, params, prompt, response))(pair.params)
    np.testing.assert_allclose(scanned, hidden, atol=2e-5)


def test_empty_prompts_and_padding_have_finite_gradients(pair):
    """A group that is wholly padding, as the last batch of an evaluation has them."""
    group = text_group(np.random.default_rng(6), pair.config)
    no_features = jnp.zeros((2, 0, pair.config.text.hidden_size))
    valid = group.prompt.valid.at[1].set(False)
    prompt = dataclasses.replace(group.prompt, valid=valid, features=no_features)
    response = dataclasses.replace(group.response, features=no_features)

    def total(params):
        return jnp.sum(cases.score(pair.graphdef, params, prompt, response) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(total))(pair.params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_bfloat16_stays_near_float32(pair, scored):
    _, prompt, response, hidden = scored
    model = pair.model
    model.compute_dtype = model.vision.dtype = jnp.dtype(jnp.bfloat16)
    graphdef, params = nnx.split(model)
    narrow = cases.score(graphdef, params, prompt, response)
    assert narrow.dtype == jnp.bfloat16 and model.logits(narrow).dtype == jnp.float32
    error = np.abs(np.asarray(narrow, np.float32) - np.asarray(hidden))
    assert error.mean() < 0.05 * np.abs(hidden).mean()
    cache = model.init_response_cache(2, 2, response.tokens.shape[2])
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype(jnp.bfloat16)}
    starts, counts = jnp.zeros((2, 2), jnp.int32), jnp.full((2, 2), 4)
    outputs, _ = model.extend(model.prefill(prompt), cache, part(response, np.zeros((2, 2)), 4), starts, counts)
    error = np.abs(np.asarray(outputs, np.float32) - np.asarray(narrow, np.float32)[:, :, :4])
    assert error.mean() < 0.05 * np.abs(hidden).mean()


def test_parameters_carry_logical_axes(pair):
    for path, parameter in nnx.to_flat_state(pair.params):
        axes = parameter.get_metadata()["axes"]
        assert len(axes) == parameter[...].ndim, path
        assert set(axes) <= {
            *("layers", "vocabulary", "embed", "heads", "kv_heads", "mlp"),
            *("vision_embed", "vision_heads", "vision_mlp", "patch", None),
        }
