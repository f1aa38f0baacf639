"""One GRPO update: score the groups, form the loss, take the gradient micro-batch by micro-batch, step the optimiser.

A group is scored as P + N tokens: its prompt once, and behind it the N distinct tokens of its M responses. A fork
shares its beginning with its parent: each weighs these tokens with its own advantage, and the two gradients add up, as
if the tokens had been computed twice. With one update per batch the policy that sampled is the policy that is scored,
so the ratio is 1 by construction and its old log-probabilities are its own; with more, one scoring pass before the
first update supplies them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from medvr_jax.models.backbone import Backbone, PromptInputs, ResponseInputs
from medvr_jax.models.features import image_features
from medvr_jax.models.packing import Packing, pack, unpack
from medvr_jax.models.partitioning import Layout, bind, constrain, constrain_parameters
from medvr_jax.models.vision import ImageBatch
from medvr_jax.rollout.settings import RolloutSettings
from medvr_jax.training import losses
from medvr_jax.training.state import TrainState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainBatch:
    """Rollouts ready for an update; every leaf starts with B.

    Attributes:
        prompt: the groups' prompts (all but their last token).
        tokens, positions, feature_index: `[B, M, T]`, `[B, M, T, 3]`, `[B, M, T]`; slot 0 is the prompt's last token.
        packing: the distinct tokens of the responses; its T may be shorter than the arrays', whose rest is padding.
        crop_features: `[B, C, F, D]` of the groups' crops; None when `crops` are given.
        sampled: `[B, M, T]` bool, the response mask.
        log_probabilities: `[B, M, T]` float32, the sampler's, to measure its drift from the scorer.
        old_log_probabilities: `[B, M, T]` float32 under the policy before the first update of this batch; None with one
            update per batch.
        advantages: `[B, M]` float32.
        counted: `[B]` bool, groups that enter the loss and its denominators.
        images: the prompts' images `[B, I, ...]`, and
        crops: the groups' crops `[B, C, ...]`; both None when the vision tower is frozen: the features of the rollout
            are then used again.
    """

    prompt: PromptInputs
    tokens: jax.Array
    positions: jax.Array
    feature_index: jax.Array
    packing: Packing
    crop_features: jax.Array | None
    sampled: jax.Array
    log_probabilities: jax.Array
    old_log_probabilities: jax.Array | None
    advantages: jax.Array
    counted: jax.Array
    images: ImageBatch | None
    crops: ImageBatch | None

    def replace(self, **changes: Any) -> TrainBatch:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def cut(self) -> TrainBatch:
        """Without the slots past the packing's T."""
        length = self.packing.places.shape[2]
        names = ("tokens", "positions", "feature_index", "sampled", "log_probabilities", "old_log_probabilities")
        arrays = {name: getattr(self, name) for name in names}
        return self.replace(**{name: x[:, :, :length] for name, x in arrays.items() if x is not None})


@dataclasses.dataclass(frozen=True)
class UpdateSettings:
    """Static under jit; see `configs/base.py`, sections grpo and rollout."""

    clip_low: float
    clip_high: float
    kl_weight: float
    aggregation: str
    temperature: float
    micro_batch_groups: int
    logit_chunk: int
    remat: str
    compute_dtype: str = "float32"
    data_shards: int = 1


# Of the tokens and crops that responses of one length may have. At most a third of the kind that needs the larger size
# is padding, if it is more than the smallest.
FILLS = (1 / 3, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class UpdateSize:
    """Static sizes of one update: T slots of a response, N packed tokens and C crops of a group."""

    length: int
    tokens: int
    crops: int

    def holds(self, length: int, tokens: int, crops: int) -> bool:
        """Whether a batch whose longest row, largest group and most crops are these fits."""
        return length <= self.length and tokens <= self.tokens and crops <= self.crops


def update_sizes(rollout: RolloutSettings) -> tuple[UpdateSize, ...]:
    """The sizes that updates come in, smaller ones first."""
    M = rollout.trajectories
    return tuple(
        UpdateSize(length, math.ceil(fill * M * length), math.ceil(fill * rollout.crop_slots))
        for length in rollout.cache_lengths
        for fill in FILLS[-rollout.sizes :]
    )


# Metrics that add up over micro-batches.
_SUMS = ("loss", "policy", "kl", "clipped", "entropy")


def score(
    backbone: Backbone, batch: TrainBatch, banned: jax.Array, settings: UpdateSettings
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies `[B, M, T]` float32 of the responses' sampled tokens; 0 elsewhere."""
    prompt, features, packing = batch.prompt, batch.crop_features, batch.packing
    if batch.images is not None:
        prompt = dataclasses.replace(prompt, features=image_features(backbone, batch.images, settings.remat))
        features = image_features(backbone, batch.crops, settings.remat)
    features = features.reshape(features.shape[0], -1, features.shape[-1])
    response = ResponseInputs(batch.tokens, batch.positions, batch.feature_index, features)
    hidden = constrain(backbone.score(prompt, response, packing, settings.remat), "groups", None, "residual_width")
    hidden = unpack(hidden, packing)
    # A token is predicted where the one before it stands: in its own row, if a fork's first token of its own.
    before = jnp.pad(hidden[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
    groups = max(batch.tokens.shape[0] // settings.data_shards, 1)
    pair = losses.chunked_log_probabilities(
        pack(before, packing),
        backbone.logits,
        pack(batch.tokens, packing),
        banned,
        settings.temperature,
        max(settings.logit_chunk // groups, 1),
        wanted=pack(batch.sampled, packing),
    )
    log_probabilities, entropy = (jnp.where(batch.sampled, unpack(x, packing), 0.0) for x in pair)
    return log_probabilities, entropy


def micro_batch_count(groups: int, micro_batch_groups: int) -> int:
    """Micro-batches per update; 0 groups per micro-batch means all."""
    return groups // micro_batch_groups if micro_batch_groups else 1


def _micro_batches(tree: Any, count: int) -> Any:
    """`[B, ...]` -> `[count, B / count, ...]`; each takes every count-th group: devices keep their own groups."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1), tree)


def loss_and_gradient(
    graphdef: nnx.GraphDef,
    trainable: nnx.State,
    frozen: nnx.State,
    reference: nnx.State | None,
    batch: TrainBatch,
    banned: jax.Array,
    settings: UpdateSettings,
) -> tuple[dict[str, jax.Array], nnx.State]:
    """Metrics of the batch (`loss`, `policy`, `kl`, `entropy`, `sampler_drift`, `clipped`) and the loss's gradient.

    Both are sums over micro-batches with the denominators of the whole batch, so that their size changes nothing.

    Args:
        reference: the frozen reference policy's parameters; None when the KL weight is 0.
        banned: `[V]` bool.
    """
    batch = batch.cut()
    weights = losses.token_weights(batch.sampled, settings.aggregation, counted=batch.counted)
    token_share = losses.token_weights(batch.sampled, "token")

    def loss(
        trainable: nnx.State, part: TrainBatch, weights: jax.Array, share: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        # Cast first, so that what devices gather from one another is half as long.
        backbone = nnx.merge(graphdef, *_cast((trainable, frozen), settings.compute_dtype))
        log_probabilities, entropy = score(backbone, part, banned, settings)
        reference_log_probabilities = None
        if reference is not None:
            reference_log_probabilities, _ = score(nnx.merge(graphdef, reference), part, banned, settings)
        old = part.old_log_probabilities
        terms = losses.grpo_loss(
            log_probabilities,
            jax.lax.stop_gradient(log_probabilities) if old is None else old,
            reference_log_probabilities,
            part.advantages,
            weights,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            kl_weight=settings.kl_weight,
        )
        drift = jnp.max(jnp.where(part.sampled, jnp.abs(log_probabilities - part.log_probabilities), 0.0))
        values = (terms.loss, terms.policy, terms.kl, terms.clipped, jnp.sum(share * entropy))
        sums = dict(zip(_SUMS, values, strict=True))
        return terms.loss, {"sums": sums, "sampler_drift": drift}

    gradient = jax.value_and_grad(loss, has_aux=True)
    count = micro_batch_count(batch.sampled.shape[0], settings.micro_batch_groups)
    if count == 1:
        (_, metrics), grads = gradient(trainable, batch, weights, token_share)
        return metrics["sums"] | {"sampler_drift": metrics["sampler_drift"]}, constrain_parameters(grads)

    def accumulate(total: Any, part: Any) -> tuple[Any, None]:
        (_, metrics), grads = gradient(trainable, *part)
        sums, drift, so_far = total
        sums = jax.tree.map(jnp.add, sums, metrics["sums"])
        so_far = jax.tree.map(jnp.add, so_far, constrain_parameters(grads))
        return (sums, jnp.maximum(drift, metrics["sampler_drift"]), so_far), None

    parts = _micro_batches((batch, weights, token_share), count)
    zeros = {name: jnp.zeros((), jnp.float32) for name in _SUMS}
    nothing = constrain_parameters(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trainable))
    start = (zeros, jnp.zeros((), jnp.float32), nothing)
    (sums, drift, grads), _ = jax.lax.scan(accumulate, start, parts)
    return sums | {"sampler_drift": drift}, grads


def _cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def make_update(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    settings: UpdateSettings,
    state: TrainState,
    layout: Layout,
) -> Callable[[TrainState, nnx.State | None, TrainBatch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted update `(state, reference, batch, banned) -> (state, metrics)`; the state's buffers are donated.

    Args:
        state: an example of the state (or its `jax.ShapeDtypeStruct`s); every update leaves it laid out like this one.
        layout: that of training.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state)

    def update(
        state: TrainState, reference: nnx.State | None, batch: TrainBatch, banned: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        metrics, grads = loss_and_gradient(graphdef, state.trainable, state.frozen, reference, batch, banned, settings)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics["grad_norm"] = optax.tree.norm(grads)
        return TrainState(state.step + 1, trainable, state.frozen, optimizer_state), metrics

    return jax.jit(bind(layout, update), donate_argnums=0, out_shardings=(shardings, None))


def make_scorer(
    graphdef: nnx.GraphDef, settings: UpdateSettings, layout: Layout
) -> Callable[[nnx.State, TrainBatch, jax.Array], jax.Array]:
    """The jitted pass `(params, batch, banned) -> log-probabilities [B, M, T]`, in micro-batches like the update."""

    def scorer(params: nnx.State, batch: TrainBatch, banned: jax.Array) -> jax.Array:
        backbone = nnx.merge(graphdef, _cast(params, settings.compute_dtype))
        length, batch = batch.sampled.shape[2], batch.cut()
        count = micro_batch_count(batch.sampled.shape[0], settings.micro_batch_groups)
        if count == 1:
            found = score(backbone, batch, banned, settings)[0]
        else:
            parts = jax.lax.map(lambda part: score(backbone, part, banned, settings)[0], _micro_batches(batch, count))
            found = jnp.swapaxes(parts, 0, 1).reshape(batch.sampled.shape)
        return jnp.pad(found, ((0, 0), (0, 0), (0, length - found.shape[2])))

    return jax.jit(bind(layout, scorer), out_shardings=layout.sharding("groups"))
