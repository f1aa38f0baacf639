"""Distinct tokens of a group's responses, packed: what does not depend on other tokens is computed once for each.

A response of M trajectories and T slots holds padding, and the tokens that a fork shares with its parent. Packed, the
group is N tokens `[B, N, ...]`; attention works on `[B, M, T, ...]`, where a fork's first slots show its parent's
tokens. Gradients go the same ways back: what a fork's shared slots receive is added to the parent's.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packing:
    """Which slot each packed token is of, and which packed token each slot shows.

    Attributes:
        slots: `[B, N]` int32, m*T + t of each packed token; M*T = none.
        places: `[B, M, T]` int32 in 0..N-1, the packed token that a slot shows; padding shows any.
        own: `[B, M, T]` bool, slots whose token was packed for their own row.
        owner: `[B, M]` int32, the row that a row shares its first slots with; None without forks.
        shared: `[B, M, T]` bool, these slots; None without forks.
    """

    slots: jax.Array
    places: jax.Array
    own: jax.Array
    owner: jax.Array | None
    shared: jax.Array | None


def distinct_tokens(length: np.ndarray, fork_position: np.ndarray) -> np.ndarray:
    """Tokens `[B]` that a packing of these rows holds; length and fork_position `[B, M]`, the latter -1 for no fork."""
    return (length - np.maximum(fork_position, 0)).sum(axis=1)


def pack_rows(
    length: np.ndarray,
    parent: np.ndarray,
    fork_position: np.ndarray,
    first: np.ndarray,
    tokens: int,
    *,
    forks: bool = True,
) -> Packing:
    """The packing of B groups on the host.

    Args:
        length: `[B, M]`, tokens of each row.
        parent, fork_position: `[B, M]`, the row whose tokens a fork shows before its fork position; -1 for no fork. A
            parent is not a fork.
        first: `[B, M, T]` bool, tokens that are packed in front of all others.
        tokens: N, at least `distinct_tokens` of every group.
        forks: whether rows may share slots at all.
    """
    B, M, T = first.shape
    slot = np.arange(T)
    start = np.maximum(fork_position, 0)
    own = (slot >= start[..., None]) & (slot < length[..., None])
    shared = slot < start[..., None]
    flat = own.reshape(B, M * T)
    # 0 = own and in front, 1 = own, 2 = none: a stable sort keeps each row's tokens in order.
    order = np.argsort(np.where(flat, np.where(first.reshape(B, M * T), 0, 1), 2), axis=1, kind="stable")
    counts = flat.sum(axis=1)
    if counts.max(initial=0) > tokens:
        raise ValueError(f"{counts.max()} tokens do not fit a packing of {tokens}")
    order = np.pad(order, ((0, 0), (0, max(tokens - M * T, 0))))[:, :tokens]
    slots = np.where(np.arange(tokens) < counts[:, None], order, M * T).astype(np.int32)
    places = np.zeros((B, M * T + 1), np.int32)
    np.put_along_axis(
        places, slots.astype(np.int64), np.broadcast_to(np.arange(tokens, dtype=np.int32), slots.shape), 1
    )
    places = np.where(own, places[:, :-1].reshape(B, M, T), 0)
    owner = np.where(parent >= 0, parent, np.arange(M)).astype(np.int32)
    places = np.where(shared, np.take_along_axis(places, owner[..., None].astype(np.int64), axis=1), places)
    if not forks:
        return Packing(slots, places, own, None, None)
    return Packing(slots, places, own, owner, shared)


def pack_all(B: int, M: int, T: int) -> Packing:
    """The packing in which every slot, padding too, is a token of its own: N = M*T, in the slots' order."""
    slots = np.broadcast_to(np.arange(M * T, dtype=np.int32), (B, M * T))
    return Packing(slots, slots.reshape(B, M, T), np.ones((B, M, T), bool), None, None)


@jax.custom_vjp
def pack(x: jax.Array, packing: Packing) -> jax.Array:
    """`[B, M, T, ...]` -> `[B, N, ...]`; where there is no token, zeros."""
    flat = x.reshape(x.shape[0], -1, *x.shape[3:])
    return jax.vmap(lambda rows, slots: rows.at[slots].get(mode="fill", fill_value=0))(flat, packing.slots)


@jax.custom_vjp
def unpack(x: jax.Array, packing: Packing) -> jax.Array:
    """`[B, N, ...]` -> `[B, M, T, ...]`; padding shows anything."""
    B, M, T = packing.places.shape
    rows = jax.vmap(lambda tokens, places: tokens.at[places].get(mode="promise_in_bounds"))(
        x, packing.places.reshape(B, M * T)
    )
    return rows.reshape(B, M, T, *x.shape[2:])


def _pack_forward(x: jax.Array, packing: Packing) -> tuple[jax.Array, Packing]:
    return pack(x, packing), packing


def _pack_backward(packing: Packing, gradient: jax.Array) -> tuple[jax.Array, None]:
    own = packing.own.reshape(packing.own.shape + (1,) * (gradient.ndim - 2))
    return jnp.where(own, unpack(gradient, packing), 0), None


def _unpack_backward(packing: Packing, gradient: jax.Array) -> tuple[jax.Array, None]:
    if packing.owner is not None:
        B, M, T = packing.places.shape
        flat = gradient.reshape(B, M, T, -1)
        of_parent = jax.nn.one_hot(packing.owner, M, dtype=flat.dtype)  # [B, M, M]
        lent = jnp.where(packing.shared[..., None], flat, 0)
        flat = flat + jnp.einsum("bmp,bmtd->bptd", of_parent, lent)
        gradient = flat.reshape(gradient.shape)
    return pack(gradient, packing), None


pack.defvjp(_pack_forward, _pack_backward)
unpack.defvjp(lambda x, packing: (unpack(x, packing), packing), _unpack_backward)
