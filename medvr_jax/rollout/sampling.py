"""From logits to a sampled token, its log-probability and its entropy: pure functions of arrays.

The scorer (`training/losses.py`) uses the same distribution: banned ids out, then divided by the temperature.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# The largest share of the total probability that a draw may reach: keeps rounding from selecting past the last token.
_TOP_OF_CDF = 1.0 - 1e-6
_BANNED = -1e30  # as a logit: finite, and exp(it - any maximum) is 0
_BLOCK = 128  # ids of a block, if they divide the vocabulary


def sample(
    logits: jax.Array, banned: jax.Array, temperature: float, uniform: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One token per row, by an inverse cumulative sum in two steps: first among blocks of ids, then within one.

    No array of log-probabilities is made: three passes over the logits find their maximum, the blocks' sums and the
    entropy, `H = log Z - sum_j p_j (l_j - max)` with Z the sum of exp(l - max).

    Args:
        logits: `[..., V]`, any float dtype.
        banned: `[V]` bool; these ids have probability zero.
        temperature: in logits per nat; 0 takes the most probable token, log-probability and entropy are then those at
            temperature 1.
        uniform: `[...]` float32 in [0, 1), not used at temperature 0.

    Returns:
        token ids `[...]` int32, their log-probabilities `[...]` and the entropies `[...]`, float32 in nats.
    """
    with jax.named_scope("sampling"):
        return _sample(logits, jnp.asarray(banned), temperature, uniform)


def _sample(
    logits: jax.Array, banned: jax.Array, temperature: float, uniform: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `sample`."""
    size = logits.shape[-1]
    width = math.gcd(size, _BLOCK)
    scaled = jnp.where(banned, _BANNED, logits.astype(jnp.float32) / (temperature or 1.0))
    highest = jnp.max(scaled, axis=-1)
    shifted = scaled - highest[..., None]
    weights = jnp.exp(shifted)
    sums = jnp.sum(weights.reshape(*weights.shape[:-1], size // width, width), axis=-1)
    cumulative = jnp.cumsum(sums, axis=-1)
    total = cumulative[..., -1]
    normaliser = jnp.log(total)
    with jax.named_scope("entropy"):
        entropy = normaliser - jnp.sum(jnp.where(weights > 0, weights * shifted, 0.0), axis=-1) / total
    if not temperature:
        tokens = jnp.min(jnp.where(shifted == 0, jnp.arange(size, dtype=jnp.int32), size - 1), axis=-1)
        return tokens, -normaliser, entropy

    level = total * jnp.minimum(uniform, _TOP_OF_CDF)
    block = _first((cumulative > level[..., None]) & (sums > 0))
    before = _take(cumulative - sums, block)
    # Of one block everything is computed again, out of the logits, so that none of it was ever written down.
    inside = jnp.take_along_axis(logits.reshape(*sums.shape, width), block[..., None, None], axis=-2)[..., 0, :]
    inside = jnp.where(banned.reshape(-1, width)[block], _BANNED, inside.astype(jnp.float32) / temperature)
    inside = inside - highest[..., None]
    weights = jnp.exp(inside)
    cumulative = jnp.cumsum(weights, axis=-1)
    level = jnp.clip(level - before, 0.0, cumulative[..., -1] * _TOP_OF_CDF)
    place = _first((cumulative > level[..., None]) & (weights > 0))
    return block * width + place, _take(inside, place) - normaliser, entropy


def _first(flags: jax.Array) -> jax.Array:
    """Index `[...]` int32 of the first true of `[..., X]`."""
    return jnp.argmax(flags, axis=-1).astype(jnp.int32)


def _take(values: jax.Array, index: jax.Array) -> jax.Array:
    """`[...]` of `[..., X]`."""
    return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]


def slot_keys(key: jax.Array, prompt_ids: jax.Array, slots: int) -> jax.Array:
    """Random keys `[B, M]`, one per slot.

    They depend on the step's key, the prompt's own id and the slot's number alone, so that neither the other prompts
    of a batch nor the number of devices changes what a slot draws.

    Args:
        key: the step's key.
        prompt_ids: `[B]` uint32.
        slots: M.
    """
    per_prompt = jax.vmap(jax.random.fold_in, (None, 0))(key, prompt_ids)
    return jax.vmap(lambda k: jax.vmap(jax.random.fold_in, (None, 0))(k, jnp.arange(slots, dtype=jnp.uint32)))(
        per_prompt
    )


@jax.named_scope("random")
def slot_uniforms(keys: jax.Array, *counters: jax.Array) -> jax.Array:
    """One uniform float32 in [0, 1) per slot: `keys [B, M]` folded with each counter `[B, M]` int32."""

    def one(key: jax.Array, *values: jax.Array) -> jax.Array:
        for value in values:
            key = jax.random.fold_in(key, value)
        return jax.random.uniform(key, dtype=jnp.float32)

    return jax.vmap(jax.vmap(one))(keys, *counters)
