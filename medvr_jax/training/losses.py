"""The GRPO objective as pure functions of arrays: log-probabilities, per-token terms, weights, their sum.

A loss is `sum(weights * per_token)`. The weights hold the denominators of the WHOLE batch, so the losses (and
gradients) of micro-batches, each with its slice of the weights, add up to those of the batch whatever its division.

Axis letters: B groups, M trajectories, T response tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


def clipped_surrogate(
    log_probabilities: jax.Array, old: jax.Array, advantages: jax.Array, *, clip_low: float, clip_high: float
) -> jax.Array:
    """PPO's pessimistic objective per token, negated: -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)."""
    ratio = jnp.exp(log_probabilities - old)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def k3(log_probabilities: jax.Array, reference: jax.Array) -> jax.Array:
    """Schulman's estimate per token of KL(policy || reference): exp(d) - d - 1 with d = reference - policy; >= 0."""
    difference = reference - log_probabilities
    return jnp.expm1(difference) - difference


def token_mean(mask: jax.Array) -> jax.Array:
    """Every sampled token of the batch counts the same: mask [B, M, T] -> weights."""
    return mask / jnp.maximum(mask.sum(), 1.0)


def sequence_mean(mask: jax.Array) -> jax.Array:
    """Every trajectory with a sampled token counts the same, its tokens share it: mask [B, M, T] -> weights."""
    lengths = mask.sum(-1, keepdims=True)
    return mask / jnp.maximum(lengths, 1.0) / jnp.maximum((lengths > 0).sum(), 1)


AGGREGATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"token": token_mean, "sequence": sequence_mean}


def token_weights(mask: jax.Array, aggregation: str, *, counted: jax.Array | None = None) -> jax.Array:
    """Weights [B, M, T] float32 of the sampled tokens; they sum to 1 (to 0 if nothing was sampled).

    mask: [B, M, T] bool, tokens that the policy sampled, of the whole batch. counted: [B] bool, groups to take into
    account (all if None); the others get no weight and are not in any denominator.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation is {aggregation!r}, allowed are {', '.join(AGGREGATIONS)}")
    mask = mask.astype(jnp.float32)
    if counted is not None:
        mask = mask * counted[:, None, None]
    return AGGREGATIONS[aggregation](mask)


class LossTerms(NamedTuple):
    """Weighted sums over tokens; those of micro-batches add up to those of the batch. All scalars float32.

    loss: policy + kl_weight * kl; policy: clipped surrogate; kl: k3 to the reference (0 without one);
    clipped: share of tokens whose ratio was cut; weight: sum of the weights.
    """

    loss: jax.Array
    policy: jax.Array
    kl: jax.Array
    clipped: jax.Array
    weight: jax.Array


def grpo_loss(
    log_probabilities: jax.Array,
    old: jax.Array,
    reference: jax.Array | None,
    advantages: jax.Array,
    weights: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
    kl_weight: float = 0.0,
) -> LossTerms:
    """The objective on (a slice of) a batch; differentiate `.loss`.

    log_probabilities, old, reference, weights: [B, M, T]; advantages: [B, M]. Pass
    `jax.lax.stop_gradient(log_probabilities)` as `old` for one update per batch. Tokens of weight 0 (observations,
    padding) have no influence whatever stands in them, non-finite numbers included.
    """
    sampled = weights > 0
    policy_now = jnp.where(sampled, log_probabilities, 0.0)
    policy_then = jnp.where(sampled, old, 0.0)
    advantages = advantages[..., None]
    surrogate = clipped_surrogate(policy_now, policy_then, advantages, clip_low=clip_low, clip_high=clip_high)
    policy = jnp.sum(weights * surrogate)
    kl = jnp.zeros((), jnp.float32)
    if reference is not None:
        kl = jnp.sum(weights * k3(policy_now, jnp.where(sampled, reference, 0.0)))
    ratio = jnp.exp(policy_now - policy_then)
    cut = ((ratio < 1.0 - clip_low) & (advantages < 0)) | ((ratio > 1.0 + clip_high) & (advantages > 0))
    return LossTerms(policy + kl_weight * kl, policy, kl, jnp.sum(weights * cut), jnp.sum(weights))


def log_probabilities_and_entropy(
    logits: jax.Array, targets: jax.Array, banned: jax.Array, temperature: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What the sampler samples from: logits [..., V], targets [...], banned [V] -> log-probability and entropy [...].

    log_softmax(where(banned, -inf, logits) / temperature) in float32, entropy in nats. A banned target (an image
    placeholder inside an observation) has no probability; it gets 0 and no gradient, as it is never in the mask.
    The entropy carries no gradient.
    """
    banned = jnp.asarray(banned)
    logits = jnp.where(banned, -jnp.inf, logits.astype(jnp.float32) / temperature)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    # A masked sum instead of a gather: its gradient is no scatter, and it partitions over the vocabulary.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    chosen = jnp.sum(jnp.where(is_target & ~banned, logits, 0.0), axis=-1)
    log_probability = jnp.where((is_target & banned).any(-1), 0.0, chosen - normaliser)
    fixed = jax.lax.stop_gradient(logits - normaliser[..., None])
    entropy = -jnp.sum(jnp.where(banned, 0.0, jnp.exp(fixed) * fixed), axis=-1)
    return log_probability, entropy


def chunked_log_probabilities(
    hidden: jax.Array,
    head: Callable[[jax.Array], jax.Array],
    targets: jax.Array,
    banned: jax.Array,
    temperature: float | jax.Array,
    chunk: int,
    wanted: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies of many tokens, `chunk` positions of the last token axis at a time.

    hidden: [..., T, D], targets: [..., T], banned: [V] bool; head: hidden [..., D] -> logits [..., V]. Returns two
    float32 arrays [..., T]. Logits exist for one chunk at a time, forwards and (recomputed) backwards; if all of T fits
    into one chunk they are kept instead. wanted: [..., T] bool; chunks without a wanted token are left out, with zeros
    for results. Leading axes are never cut, so a batch sharded over B stays where it is; a flat [n, D] is the case
    without leading axes.
    """

    def one_chunk(part: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Flat rows: on CPU the four-dimensional product takes twice as long. B stays the major axis of the rows.
        flat = head(part.reshape(-1, part.shape[-1]))
        found = log_probabilities_and_entropy(flat, wanted.reshape(-1), banned, temperature)
        return found[0].reshape(wanted.shape), found[1].reshape(wanted.shape)

    length = targets.shape[-1]
    if length <= chunk:
        return one_chunk(hidden, targets)
    lead, count = targets.shape[:-1], -(-length // chunk)
    padding = [(0, 0)] * len(lead) + [(0, count * chunk - length)]
    hidden = jnp.pad(hidden, [*padding, (0, 0)]).reshape(*lead, count, chunk, hidden.shape[-1])
    targets = jnp.pad(targets, padding).reshape(*lead, count, chunk)
    chunks = (jnp.moveaxis(hidden, -3, 0), jnp.moveaxis(targets, -2, 0))
    if wanted is None:
        chosen = one_chunk
    else:
        wanted = jnp.moveaxis(jnp.pad(wanted, padding).reshape(*lead, count, chunk), -2, 0)
        chunks = (*chunks, jnp.any(wanted, axis=tuple(range(1, wanted.ndim))))

        def nothing(part: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.zeros(targets.shape, jnp.float32), jnp.zeros(targets.shape, jnp.float32)

        def chosen(part: jax.Array, targets: jax.Array, any_wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jax.lax.cond(any_wanted, one_chunk, nothing, part, targets)

    # The choice is recomputed, too: what a branch keeps, the head's kernel among it, would be kept for every chunk.
    recomputed = jax.checkpoint(chosen, prevent_cse=False)  # inside a loop nothing can be shared anyway
    results = jax.lax.map(lambda parts: recomputed(*parts), chunks)
    log_probability, entropy = (jnp.moveaxis(x, 0, -2).reshape(*lead, count * chunk)[..., :length] for x in results)
    return log_probability, entropy
