"""From logits to a sampled token, its log-probability and its entropy: pure functions of arrays.

The scorer (`training/losses.py`) uses the same distribution: banned ids out, then divided by the temperature.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# The largest share of the total probability that a draw may reach: keeps rounding from selecting past the last token.
_TOP_OF_CDF = 1.0 - 1e-6


def policy_log_probabilities(logits: jax.Array, banned: jax.Array, temperature: float) -> jax.Array:
    """Log-probabilities `[..., V]` of the sampling distribution in float32.

    Args:
        logits: `[..., V]`, any float dtype.
        banned: `[V]` bool; these ids have probability zero.
        temperature: > 0, in logits per nat.
    """
    logits = jnp.where(banned, -jnp.inf, logits.astype(jnp.float32) / temperature)
    return jax.nn.log_softmax(logits, axis=-1)


def entropy(log_probabilities: jax.Array) -> jax.Array:
    """Entropy `H = -sum_j p_j log p_j` in nats over the last axis of `[..., V]`; banned ids (-inf) add nothing."""
    probabilities = jnp.exp(log_probabilities)
    return -jnp.sum(jnp.where(probabilities > 0, probabilities * log_probabilities, 0.0), axis=-1)


def draw(log_probabilities: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draws ids `[...]` from `[..., V]` with one uniform `[...]` in [0, 1) each, by the inverse cumulative sum."""
    cumulative = jnp.cumsum(jnp.exp(log_probabilities), axis=-1)
    level = cumulative[..., -1:] * jnp.minimum(uniform[..., None], _TOP_OF_CDF)
    return jnp.sum(cumulative <= level, axis=-1, dtype=jnp.int32)


def sample(
    logits: jax.Array, banned: jax.Array, temperature: float, uniform: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One token per row.

    Args:
        logits: `[..., V]`.
        banned: `[V]` bool.
        temperature: 0 takes the most probable token; log-probability and entropy are then those at temperature 1.
        uniform: `[...]` float32 in [0, 1), not used at temperature 0.

    Returns:
        token ids `[...]` int32, their log-probabilities `[...]` and the entropies `[...]`, float32 in nats.
    """
    log_probabilities = policy_log_probabilities(logits, banned, temperature or 1.0)
    if temperature:
        tokens = draw(log_probabilities, uniform)
    else:
        tokens = jnp.argmax(log_probabilities, axis=-1).astype(jnp.int32)
    chosen = jnp.take_along_axis(log_probabilities, tokens[..., None], axis=-1)[..., 0]
    return tokens, chosen, entropy(log_probabilities)


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


def slot_uniforms(keys: jax.Array, *counters: jax.Array) -> jax.Array:
    """One uniform float32 in [0, 1) per slot: `keys [B, M]` folded with each counter `[B, M]` int32."""

    def one(key: jax.Array, *values: jax.Array) -> jax.Array:
        for value in values:
            key = jax.random.fold_in(key, value)
        return jax.random.uniform(key, dtype=jnp.float32)

    return jax.vmap(jax.vmap(one))(keys, *counters)
