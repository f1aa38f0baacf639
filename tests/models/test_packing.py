"""Packed tokens of a group against the rows they come from, forwards and backwards."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvr_jax.models.packing import Packing, distinct_tokens, pack, pack_all, pack_rows, unpack

B, M, T, D = 3, 6, 9, 4


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lengths, parents, fork positions and tokens [B, M, T] of which a fork's first are its parent's."""
    rng = np.random.default_rng(0)
    length = rng.integers(3, T + 1, (B, M))
    parent, fork = np.full((B, M), -1), np.full((B, M), -1)
    tokens = rng.integers(0, 1000, (B, M, T))
    for b in range(B):
        for m, of in ((4, 1), (5, 1)) if b else ((3, 0),):
            parent[b, m], fork[b, m] = of, rng.integers(1, min(length[b, of], length[b, m]))
            tokens[b, m, : fork[b, m]] = tokens[b, of, : fork[b, m]]
    return length, parent, fork, tokens


@pytest.fixture
def packing(rows: tuple) -> Packing:
    length, parent, fork, tokens = rows
    first = tokens % 2 == 0
    count = int(distinct_tokens(length, fork).max())
    return pack_rows(length, parent, fork, first, count + 3)


def test_every_distinct_token_is_packed_once(rows: tuple, packing: Packing) -> None:
    length, parent, fork, tokens = rows
    packed = np.asarray(pack(jnp.asarray(tokens), packing))
    for b in range(B):
        used = packing.slots[b] < M * T
        own = [(m, t) for m in range(M) for t in range(max(fork[b, m], 0), length[b, m])]
        assert used.sum() == len(own) == distinct_tokens(length, fork)[b]
        assert sorted(packing.slots[b][used].tolist()) == sorted(m * T + t for m, t in own)
        assert not packed[b][~used].any()
        even = (packed[b][used] % 2 == 0).tolist()
        assert even == sorted(even, reverse=True)  # the `first` ones lead
    seen = np.asarray(unpack(jnp.asarray(packed), packing))
    real = np.arange(T) < length[..., None]
    np.testing.assert_array_equal(seen[real], tokens[real])


def test_gradients_are_those_of_plain_indexing(rows: tuple, packing: Packing) -> None:
    """JAX's own derivative of the gathers, in which shared slots add up by a scatter."""
    length = rows[0]
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(B, packing.slots.shape[1], D)), jnp.float32)
    x = jnp.where((packing.slots < M * T)[..., None], x, 0)
    real = (np.arange(T) < length[..., None])[..., None]
    upstream = jnp.asarray(rng.normal(size=(B, M, T, D)) * real, jnp.float32)
    mixing = jnp.asarray(rng.normal(size=(T, T)), jnp.float32)

    def plain_unpack(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, jnp.asarray(packing.places).reshape(B, -1, 1), axis=1).reshape(B, M, T, D)

    def plain_pack(y: jax.Array) -> jax.Array:
        flat = jnp.concatenate([y.reshape(B, M * T, D), jnp.zeros((B, 1, D))], axis=1)
        return jnp.take_along_axis(flat, jnp.asarray(packing.slots)[..., None], axis=1)

    def total(x: jax.Array, out: object, back: object) -> jax.Array:
        rows = jnp.where(real, out(x), 0)
        rows = jnp.sin(jnp.einsum("st,bmtd->bmsd", mixing, rows)) * real
        again = out(back(rows) ** 2)
        return jnp.sum(jnp.where(real, again, 0) * upstream)

    ours = jax.grad(lambda x: total(x, lambda y: unpack(y, packing), lambda y: pack(y, packing)))(x)
    plain = jax.grad(lambda x: total(x, plain_unpack, plain_pack))(x)
    used = (packing.slots < M * T)[..., None]
    np.testing.assert_allclose(np.where(used, ours, 0), np.where(used, plain, 0), atol=1e-5, rtol=1e-5)
    assert np.abs(ours).max() > 0.1


def test_the_identity() -> None:
    x = jnp.arange(B * M * T, dtype=jnp.float32).reshape(B, M, T)
    packing = pack_all(B, M, T)
    np.testing.assert_array_equal(pack(x, packing), x.reshape(B, M * T))
    np.testing.assert_array_equal(unpack(pack(x, packing), packing), x)


def test_too_many_tokens_are_refused(rows: tuple) -> None:
    length, parent, fork, tokens = rows
    with pytest.raises(ValueError, match="do not fit"):
        pack_rows(length, parent, fork, tokens > 0, int(distinct_tokens(length, fork).max()) - 1)
