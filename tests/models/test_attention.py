"""Every attention back end against float64 NumPy over whole sequences, and against the XLA reference's gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from medvr_jax.models import attention, attention_fused, attention_splash, attention_xla
from medvr_jax.models.attention_backend import XLA, AttentionBackend
from medvr_jax.models.backbone import with_settings
from medvr_jax.models.partitioning import Layout, bind
from tests.models import cases
from tests.models.test_backbone import three_turn_group

SPLASH = AttentionBackend("splash", interpreted=True)
FUSED = AttentionBackend("fused", interpreted=True)
ONE = Layout(None, {})  # a layout that splits nothing


def random_group(B: int, M: int, P: int, T: int, N: int, K: int, H: int, seed: int = 0) -> tuple[jax.Array, ...]:
    """The arguments of `group_attention`, with prompts of different lengths."""
    rng = np.random.default_rng(seed)
    shapes = [(B, P, N, H), (B, K, H, P), (B, K, P, H), (B, M, T, N, H), (B, M, K, H, T), (B, M, K, T, H)]
    prompt_queries, prompt_keys, prompt_values, queries, keys, values = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes
    )
    lengths = rng.integers(P // 2, P, B)
    valid = jnp.asarray(np.arange(P) < lengths[:, None])
    return prompt_queries, prompt_keys, prompt_values, valid, queries, keys, values


def plain(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, *, causal: bool = True) -> np.ndarray:
    """Softmax attention in float64 of the last X of Y tokens: queries [X, N, H], keys and values [Y, K, H]."""
    (X, N, H), (Y, K, _) = queries.shape, keys.shape
    mixed = np.zeros((X, N, H))
    for n in range(N):
        scores = queries[:, n].astype(np.float64) @ keys[:, n * K // N].astype(np.float64).T / np.sqrt(H)
        if causal:
            scores[np.arange(Y)[None] > np.arange(Y - X, Y)[:, None]] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed[:, n] = weights / weights.sum(axis=1, keepdims=True) @ values[:, n * K // N]
    return mixed


def assert_group(arrays: tuple[jax.Array, ...], prompt: jax.Array | None, responses: jax.Array, atol: float) -> None:
    """Each prompt, and each prompt with each of its responses, as a sequence without padding."""
    prompt_queries, prompt_keys, prompt_values, valid, queries, keys, values = (np.asarray(x) for x in arrays)
    for b, m in np.ndindex(queries.shape[:2]):
        p = valid[b].sum()
        k, v = prompt_keys[b, :, :, :p].transpose(2, 0, 1), prompt_values[b, :, :p].swapaxes(0, 1)
        if prompt is not None and m == 0:
            np.testing.assert_allclose(prompt[b, :p], plain(prompt_queries[b, :p], k, v), atol=atol)
        k, v = np.concatenate([k, keys[b, m].transpose(2, 0, 1)]), np.concatenate([v, values[b, m].swapaxes(0, 1)])
        np.testing.assert_allclose(responses[b, m], plain(queries[b, m], k, v), atol=atol)


def gradient(
    arrays: tuple[jax.Array, ...], backend: AttentionBackend, last: bool = False, layout: Layout = ONE
) -> tuple[jax.Array, ...]:
    """Of a random sum of what is no padding, with respect to everything but `valid`."""
    rng = np.random.default_rng(1)
    real = arrays[3][:, :, None, None]
    directions = [jnp.asarray(rng.normal(size=arrays[i].shape), jnp.float32) for i in (0, 4)]

    def total(prompt_queries, prompt_keys, prompt_values, queries, keys, values):
        rest = (prompt_keys, prompt_values, arrays[3], queries, keys, values)
        prompt, responses = attention.group_attention(None if last else prompt_queries, *rest, backend)
        total = jnp.sum(responses.astype(jnp.float32) * directions[1])
        return total if last else total + jnp.sum(jnp.where(real, prompt * directions[0], 0.0))

    return jax.jit(bind(layout, jax.grad(total, argnums=tuple(range(6)))))(*arrays[:3], *arrays[4:])


def assert_close(found: tuple[jax.Array, ...], expected: tuple[jax.Array, ...], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        scale = max(float(jnp.abs(other).max()), 1e-3)
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=tolerance * scale)


GROUPS = {  # B, M, P, T, N, K, H: lengths around the block of 128, heads 1, 2 and 7 to one
    "whole blocks": (1, 3, 128, 128, 2, 2, 16),
    "shorter than a block": (2, 3, 20, 9, 2, 1, 16),
    "responses across blocks": (1, 3, 130, 100, 7, 1, 16),
    "larger blocks": (1, 3, 700, 150, 2, 1, 8),
}


@pytest.mark.parametrize("name, last", [*((name, False) for name in GROUPS), ("responses across blocks", True)])
@pytest.mark.parametrize("backend", [XLA, SPLASH, FUSED], ids=lambda backend: backend.kind)
def test_group_equals_whole_sequences(backend, name, last):
    arrays = random_group(*GROUPS[name])
    run = jax.jit(functools.partial(attention.group_attention, backend=backend))
    prompt, responses = run(None if last else arrays[0], *arrays[1:])
    assert (prompt is None) == last
    assert_group(arrays, prompt, responses, atol=1e-5)


@pytest.mark.parametrize("name, last", [*((name, False) for name in GROUPS), ("responses across blocks", True)])
def test_splash_gradient_equals_xla(name, last):
    arrays = random_group(*GROUPS[name])
    assert_close(gradient(arrays, SPLASH, last), gradient(arrays, XLA, last), 1e-5)


def test_fused_gradient_equals_xla():
    arrays = random_group(*GROUPS["shorter than a block"])
    assert_close(gradient(arrays, FUSED), gradient(arrays, XLA), 1e-5)


def test_splash_in_bfloat16():
    arrays = random_group(1, 3, 130, 100, 4, 2, 128)
    short = tuple(x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x for x in arrays)
    prompt, responses = attention.group_attention(*short, SPLASH)
    assert responses.dtype == jnp.bfloat16
    assert_group(short, prompt.astype(jnp.float32), responses.astype(jnp.float32), atol=2e-2)


@pytest.mark.parametrize("P, M, T, first", [(128, 2, 128, 0), (130, 3, 100, 0), (5, 7, 60, 5), (300, 1, 1, 0)])
def test_group_mask_by_blocks(P, M, T, first):
    keys = P + M * T + -(P + M * T) % 128
    queries = keys - first + -(keys - first) % 128
    mask = attention_splash.GroupMask(P, T, queries=queries, keys=keys, first_query=first)
    q, k = np.arange(first, first + queries)[:, None], np.arange(keys)[None]
    expected = (k <= q) & ((k < P) | ((q - P) // T == (k - P) // T))
    for i, j in np.ndindex(queries // 64, keys // 64):
        rows, columns = slice(i * 64, i * 64 + 64), slice(j * 64, j * 64 + 64)
        np.testing.assert_array_equal(mask[rows, columns], expected[rows, columns])


def test_kernel_skips_what_the_mask_hides():
    P, M, T, block = 512, 8, 512, 512
    length = P + M * T
    sizes = attention_splash._block_sizes(block, block)
    kernel = attention_splash._group_kernel(P, T, 0, 1, length, length, sizes, True)
    # the prompt sees its block; each response the prompt's and its own
    assert int(np.count_nonzero(kernel.fwd_mask_info.block_mask)) == 1 + 2 * M
    assert kernel.fwd_mask_info.partial_mask_blocks is None
    largest = max(x.size for x in jax.tree.leaves(kernel))
    assert largest <= max(length, (length // block) ** 2)


def two_by_four() -> Layout:
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    return Layout(mesh, {"groups": ("a",), "heads": "b"})


@pytest.mark.parametrize("kind, K", [("splash", 2), ("splash", 4), ("fused", 2)])
def test_spread_over_devices(kind, K):
    """Two by four devices: groups and heads are split, two key heads for four devices are repeated."""
    layout, backend = two_by_four(), AttentionBackend(kind, interpreted=True)
    arrays = random_group(2, 3, 40, 30, 8, K, 16)
    placed = jax.device_put(arrays, layout.sharding("groups"))
    run = jax.jit(bind(layout, functools.partial(attention.group_attention, backend=backend)))
    assert_group(arrays, *run(*placed), atol=1e-5)
    assert_close(gradient(placed, backend, layout=layout), gradient(arrays, XLA), 1e-5)


def test_what_does_not_divide_stays_whole():
    layout = two_by_four()
    arrays = random_group(1, 2, 20, 9, 3, 1, 16)
    placed = jax.device_put(arrays, layout.sharding())
    run = jax.jit(bind(layout, functools.partial(attention.group_attention, backend=SPLASH)))
    assert_group(arrays, *run(*placed), atol=1e-5)
    assert_close(gradient(placed, SPLASH, layout=layout), gradient(arrays, XLA), 1e-5)


@pytest.mark.parametrize("backend", [XLA, SPLASH, FUSED], ids=lambda backend: backend.kind)
def test_whole_rows_of_images(backend, monkeypatch):
    """XLA's queries in three blocks, the last one filled up."""
    monkeypatch.setattr(attention_xla, "QUERY_BLOCK", 48)
    rng = np.random.default_rng(2)
    q, k, v = (jnp.asarray(rng.normal(size=(3, 140, 2, 80)), jnp.float32) for _ in range(3))
    lengths = (140, 61, 0)  # the last row is wholly empty
    valid = jnp.asarray(np.arange(140) < np.array(lengths)[:, None])

    def run(q, k, v, backend):
        return attention.full_attention(q, k, v, valid, backend)

    mixed = jax.jit(functools.partial(run, backend=backend))(q, k, v)
    for row, length in enumerate(lengths):
        one = (np.asarray(x[row, :length]) for x in (q, k, v))
        if length:
            np.testing.assert_allclose(mixed[row, :length], plain(*one, causal=False), atol=1e-5)
    assert np.isfinite(mixed).all()

    def total(q, k, v, backend):
        return jnp.sum(jnp.where(valid[..., None, None], run(q, k, v, backend), 0.0) ** 2)

    found, expected = (
        jax.jit(jax.grad(functools.partial(total, backend=b), argnums=(0, 1, 2)))(q, k, v) for b in (backend, XLA)
    )
    assert_close(found, expected, 1e-5)


def test_backbone_with_each_back_end(pair):
    """Image features, prefill and scores, where they mean something."""
    group = three_turn_group(np.random.default_rng(9), pair.config)
    prompt, response = cases.with_features(pair.graphdef, pair.params, group)
    lengths = jnp.array([[len(one.tokens) for one in row] for row in group.responses])
    real = jnp.arange(response.tokens.shape[2]) < lengths[..., None]

    def run(graphdef, params):
        model = nnx.merge(graphdef, params)
        features = model.encode_images(group.prompt_images)
        shown = group.prompt_images.valid.reshape(*features.shape[:2], -1).any(axis=-1)
        keys = model.prefill(prompt).keys[-1]
        pairs = (shown[..., None], features), (prompt.valid[:, None, None], keys)
        pairs += ((real[..., None], cases.score.__wrapped__(graphdef, params, prompt, response)),)
        return tuple(jnp.where(where, x, 0.0) for where, x in pairs)

    expected, *found = (
        jax.jit(functools.partial(run, with_settings(pair.graphdef, pair.params, attention=backend)))(pair.params)
        for backend in (XLA, SPLASH, FUSED)
    )
    for one in found:
        assert_close(one, expected, 1e-5)


def test_fused_kernels_take_16_bit_and_whole_eighths():
    assert attention_fused.fits(jnp.zeros((1, 1, 1, 128), jnp.bfloat16))
    assert not attention_fused.fits(jnp.zeros((1, 1, 1, 128), jnp.float32))
    assert not attention_fused.fits(jnp.zeros((1, 1, 1, 12), jnp.bfloat16))
    assert not attention_fused.fits(jnp.zeros((1, 1, 1, 256), jnp.bfloat16))
