"""Group-relative advantages: how much better a trajectory did than its group.

Axis letters: B groups, M trajectories.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def group_advantages(
    rewards: jax.Array, *, std_threshold: float = 1e-3, epsilon: float = 1e-4, normalise_by_std: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Rewards [B, M] -> advantages [B, M] float32 and has_spread [B] bool.

    Rewards minus their group's mean, divided by their sample standard deviation (one degree of freedom less) plus
    `epsilon`. Where the standard deviation is below `std_threshold`, and always where all rewards are equal, the
    advantages are 0: a difference of 1e-6 must not count as much as a difference of 1.
    """
    rewards = rewards.astype(jnp.float32)
    size = rewards.shape[-1]
    centred = rewards - rewards.mean(-1, keepdims=True)
    std = jnp.sqrt(jnp.sum(centred**2, -1, keepdims=True) / max(size - 1, 1))
    # Equal rewards are told by comparison: their computed deviation may be a rounding error instead of 0.
    differ = rewards.max(-1, keepdims=True) > rewards.min(-1, keepdims=True)
    has_spread = differ & (std >= std_threshold)
    scaled = centred / (std + epsilon) if normalise_by_std else centred
    return jnp.where(has_spread, scaled, 0.0), has_spread[..., 0]
