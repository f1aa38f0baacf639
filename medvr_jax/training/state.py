"""What training carries from step to step, and how it is made from a checkpoint of the backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from medvr_jax.models.partitioning import Layout
from medvr_jax.training import sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state after `step` updates.

    Attributes:
        step: `[]` int32.
        trainable: parameters that gradients change (master weights).
        frozen: the parameters that stay (the vision tower, the embeddings, both or none).
        optimizer: optax's state for `trainable`.
    """

    step: jax.Array
    trainable: nnx.State
    frozen: nnx.State
    optimizer: optax.OptState

    @property
    def params(self) -> nnx.State:
        """All parameters as one tree."""
        return nnx.merge_state(self.trainable, self.frozen)


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its schedule; `steps` is the length of the run, where falling schedules end."""

    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    b1: float
    b2: float
    epsilon: float
    max_grad_norm: float
    moment_dtype: str
    steps: int


def learning_rate_schedule(settings: OptimizerSettings) -> optax.Schedule:
    """Linear warm-up, then constant, or falling to zero at the last step: linear or cosine."""
    after = max(settings.steps - settings.warmup_steps, 1)
    if settings.schedule == "cosine":
        main = optax.cosine_decay_schedule(settings.learning_rate, after)
    elif settings.schedule == "linear":
        main = optax.linear_schedule(settings.learning_rate, 0.0, after)
    else:
        main = optax.constant_schedule(settings.learning_rate)
    if not settings.warmup_steps:
        return main
    # The first update already moves: step 0 has 1 / warmup_steps of the rate.
    start = settings.learning_rate / settings.warmup_steps
    rise = optax.linear_schedule(start, settings.learning_rate, max(settings.warmup_steps - 1, 1))
    return optax.join_schedules([rise, main], [settings.warmup_steps])


def make_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW; matrices decay, norms and biases do not.

    Everything is computed in float32. The first moment is stored in `moment_dtype`; the second always in float32: at
    b2 = 0.999 a bfloat16 one could not decay.
    """

    def decays(params: nnx.State) -> Any:
        return nnx.map_state(lambda _, v: v.replace("weight" in _matrix_kind(v)), params)

    chain = optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.adamw(
            learning_rate_schedule(settings),
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.epsilon,
            mu_dtype=settings.moment_dtype,
            weight_decay=settings.weight_decay,
            mask=decays,
        ),
    )
    return optax.GradientTransformation(
        lambda params: chain.init(_float32(params)),
        lambda gradient, state, params: chain.update(_float32(gradient), state, _float32(params)),
    )


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _matrix_kind(variable: nnx.Variable) -> str:
    """ "weight" for a matrix (stacked over layers or not), "vector" for norms and biases."""
    axes = [axis for axis in variable.get_metadata()["axes"] if axis != "layers"]
    return "weight" if len(axes) > 1 else "vector"


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Parts that are not trained. Frozen embeddings include a head that is tied to them."""

    vision_tower: bool = False
    embeddings: bool = False


def split_frozen(params: nnx.State, frozen: Frozen) -> tuple[nnx.State, nnx.State]:
    """The parameters as (trainable, frozen)."""
    parts = (("vision", frozen.vision_tower), ("embedding", frozen.embeddings))
    stays = nnx.Any(*(nnx.PathContains(name) for name, is_frozen in parts if is_frozen))
    return nnx.split_state(params, nnx.Not(stays), ...)


def initial_train_state(
    params: nnx.State, optimizer: optax.GradientTransformation, layout: Layout, frozen: Frozen
) -> TrainState:
    """Step 0, laid out for training; parameters that are laid out so already are not copied."""
    trainable, fixed = split_frozen(jax.device_put(params, sharding.parameter_shardings(params, layout)), frozen)
    shardings = optimizer_shardings(optimizer, trainable, layout)
    state = jax.jit(optimizer.init, out_shardings=shardings)(trainable)
    step = jax.device_put(jnp.zeros((), jnp.int32), sharding.replicated(layout.mesh))
    return TrainState(step, trainable, fixed, state)


def optimizer_shardings(optimizer: optax.GradientTransformation, trainable: nnx.State, layout: Layout) -> Any:
    """Where the optimiser's state lives: moments like the parameters they belong to, counters on every device."""
    whole = sharding.replicated(layout.mesh)
    return optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, trainable),
        sharding.parameter_shardings(trainable, layout),
        transform_non_params=lambda _: whole,
    )


def make_cast(params: nnx.State, layout: Layout, dtype: str) -> Callable[[nnx.State], nnx.State]:
    """A jitted function from master weights to a copy of this dtype and layout: the sampler's, or the reference."""
    shardings = sharding.parameter_shardings(params, layout)
    return jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree), out_shardings=shardings)


def make_copy(state: TrainState) -> Callable[[TrainState], TrainState]:
    """A jitted function from states that are laid out like this one to copies with memory of their own."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)
