"""Groups spread over devices: same numbers, no traffic but the gradient's sum."""

from __future__ import annotations

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medvr_jax.models.packing import pack_rows
from tests.models import cases
from tests.models.test_backbone import part, three_turn_group


@pytest.fixture(scope="module")
def spread(pair):
    """A mesh of two, the group's inputs spread over B, the parameters on both."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    group = three_turn_group(np.random.default_rng(8), pair.config)
    over_groups, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    prompt, response = cases.with_features(pair.graphdef, pair.params, group)
    return (
        jax.device_put(pair.params, everywhere),
        *jax.device_put((prompt, response, group.prompt_images), over_groups),
        over_groups,
    )


def collectives(function, *arguments) -> collections.Counter:
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return collections.Counter(
        re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text)
    )


def test_nothing_moves_between_devices_but_the_gradient(pair, spread):
    params, prompt, response, images, over_groups = spread
    B, M, T = response.tokens.shape

    def merged(params):
        return nnx.merge(pair.graphdef, params)

    prompt_cache = jax.jit(lambda p, x: merged(p).prefill(x))(params, prompt)
    cache = jax.device_put(pair.model.init_response_cache(B, M, T), over_groups)
    starts, counts = jax.device_put((jnp.full((B, M), 2), jnp.full((B, M), 5)), over_groups)

    def extend(params, prompt_cache, cache, new, starts, counts):
        return merged(params).extend(prompt_cache, cache, new, starts, counts)

    def decode(params, prompt_cache, cache, new, starts, counts):
        return jax.lax.fori_loop(0, 3, lambda _, c: extend(params, prompt_cache, c, new, starts, counts)[1], cache)

    def score(params, prompt, response, packing):
        return merged(params).score(prompt, response, packing)

    def total(params, prompt, response, packing):
        return jnp.sum(score(params, prompt, response, packing) ** 2)

    # The last row of each group is a fork of the first.
    fork = np.where(np.arange(M) == M - 1, 3, -1) + np.zeros((B, 1), int)
    parent = np.where(fork >= 0, 0, -1)
    packing = pack_rows(np.full((B, M), T), parent, fork, np.ones((B, M, T), bool), M * T)
    packing = jax.device_put(packing, over_groups)

    several, one = (jax.device_put(part(response, starts, n), over_groups) for n in (5, 1))
    assert not collectives(lambda p, x: merged(p).encode_images(x), params, images)
    assert not collectives(lambda p, x: merged(p).prefill(x), params, prompt)
    assert not collectives(extend, params, prompt_cache, cache, several, starts, counts)
    assert not collectives(decode, params, prompt_cache, cache, one, starts, counts)
    assert not collectives(score, params, prompt, response, packing)
    assert set(collectives(jax.grad(total), params, prompt, response, packing)) == {"all-reduce"}

    hidden, cache = jax.jit(extend)(params, prompt_cache, cache, several, starts, counts)
    assert cache.keys[0].sharding.spec[0] == "data" and hidden.sharding.spec[0] == "data"


def test_two_devices_give_what_one_gives(pair, spread):
    params, prompt, response, _, _ = spread

    def score(params, prompt, response):
        return cases.score.__wrapped__(pair.graphdef, params, prompt, response)

    both = np.asarray(jax.jit(score)(params, prompt, response))
    one = jax.device_put((params, prompt, response), jax.devices()[0])
    np.testing.assert_allclose(both, np.asarray(jax.jit(score)(*one)), atol=1e-5)
