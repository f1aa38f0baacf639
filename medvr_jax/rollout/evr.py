"""EVR, entropy-guided visual regrounding (MedVR, arXiv 2604.08203): when to fork, and into which slot.

Pure functions of arrays; the sampling loop (`loop.py`) holds the state they work on. In symbols:
`Delta H = H_tool - H_base`; a trajectory with `Delta H` above the threshold forks with `P = P_base + gamma * Delta H`.
The control `random` forks whoever closes a box with `P = P_base`, whatever its entropies.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class EvrSettings:
    """How forks are decided and how the fork budget is spent; static under jit.

    Attributes:
        p_base: P_base, probability of a fork at Delta H = 0, in [0, 1].
        gamma: weight of Delta H in P, >= 0; not used by the gate "random".
        threshold: a fork needs Delta H above this, in the unit of the entropy; likewise.
        base_tokens: H_base is the mean over this many first sampled tokens of the trajectory.
        window: H_tool is the mean over at most this many last coordinate tokens.
        entropy_scale: entropies are multiplied by this: 1 for nats, 1 / log V for the normalised unit.
        repeated: whether eligible base trajectories are asked again until the fork budget is used.
        max_passes: repeated asks stop after this many passes; what is left becomes fresh trajectories.
        gate: "entropy", as above, or "random": every closed box is eligible, and P is P_base.
        position: where a fork begins: at the "first" coordinate token of the box, or at the most "uncertain" one, which
            has the highest entropy (the first of equals); what stands before it is kept.
    """

    p_base: float = 0.5
    gamma: float = 0.5
    threshold: float = 0.0
    base_tokens: int = 20
    window: int = 20
    entropy_scale: float = 1.0
    repeated: bool = True
    max_passes: int = 8
    gate: str = "entropy"
    position: str = "first"

    def eligible(self, delta_h: jax.Array) -> jax.Array:
        """Whether a box with this Delta H may be forked at all: bool, same shape."""
        return jnp.ones(delta_h.shape, bool) if self.gate == "random" else delta_h > self.threshold

    def probability(self, delta_h: jax.Array) -> jax.Array:
        """P of an eligible box, same shape as `delta_h`."""
        return fork_probability(delta_h, self.p_base, 0.0 if self.gate == "random" else self.gamma)


def fork_probability(delta_h: jax.Array, p_base: float, gamma: float) -> jax.Array:
    """P = clip(P_base + gamma * Delta H, 0, 1), same shape as `delta_h`."""
    return jnp.clip(p_base + gamma * delta_h, 0.0, 1.0)


def push(window: jax.Array, count: jax.Array, value: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Adds a value to each ring of the last w values.

    Args:
        window: `[..., w]` float32.
        count: `[...]` int32, values ever added.
        value: `[...]` float32.
        where: `[...]` bool; other rings stay.

    Returns:
        the new window and count.
    """
    width = window.shape[-1]
    here = (jnp.arange(width) == (count % width)[..., None]) & where[..., None]
    return jnp.where(here, value[..., None], window), count + where


def window_mean(window: jax.Array, count: jax.Array) -> jax.Array:
    """Mean `[...]` over the filled part of each ring `[..., w]`; 0 where a ring is empty."""
    width = window.shape[-1]
    filled = jnp.arange(width) < count[..., None]
    return jnp.sum(jnp.where(filled, window, 0.0), axis=-1) / jnp.clip(count, 1, width)


class Assignment(NamedTuple):
    """Who got a slot. `granted [B, M]` bool over askers; `child [B, M]` int32, the slot an asker got or -1;
    `is_child [B, M]` bool over slots; `source [B, M]` int32, the row each slot now holds (its own unless a child)."""

    granted: jax.Array
    child: jax.Array
    is_child: jax.Array
    source: jax.Array


def assign_slots(wants: jax.Array, free: jax.Array) -> Assignment:
    """Gives the k-th asker of each group the k-th free slot of that group.

    Args:
        wants: `[B, M]` bool, trajectories that fork if there is room.
        free: `[B, M]` bool, slots that hold no trajectory.
    """
    asker_rank = jnp.cumsum(wants, axis=1) - 1
    slot_rank = jnp.cumsum(free, axis=1) - 1
    # match[b, s, p]: slot s takes a copy of trajectory p.
    match = free[:, :, None] & wants[:, None, :] & (slot_rank[:, :, None] == asker_rank[:, None, :])
    is_child = match.any(axis=2)
    granted = match.any(axis=1)
    own = jnp.arange(wants.shape[1])[None, :]
    source = jnp.where(is_child, jnp.argmax(match, axis=2), own)
    child = jnp.where(granted, jnp.argmax(match, axis=1), -1)
    return Assignment(granted, child.astype(jnp.int32), is_child, source.astype(jnp.int32))
