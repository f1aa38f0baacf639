"""What training carries from step to step, and how it is made from a checkpoint of the backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from medvr_jax.training import sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state after `step` updates.

    Attributes:
        step: `[]` int32.
        trainable: parameters that gradients change (master weights).
        frozen: the parameters that stay (the vision tower, or none).
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
    """AdamW and its schedule; `steps` is the length of the run, which the cosine schedule needs."""

    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    b1: float
    b2: float
    epsilon: float
    max_grad_norm: float
    steps: int


def learning_rate_schedule(settings: OptimizerSettings) -> optax.Schedule:
    """Linear warm-up, then constant or cosine to zero at the last step."""
    after = max(settings.steps - settings.warmup_steps, 1)
    if settings.schedule == "cosine":
        main = optax.cosine_decay_schedule(settings.learning_rate, after)
    else:
        main = optax.constant_schedule(settings.learning_rate)
    if not settings.warmup_steps:
        return main
    # The first update already moves: step 0 has 1 / warmup_steps of the rate.
    start = settings.learning_rate / settings.warmup_steps
    rise = optax.linear_schedule(start, settings.learning_rate, max(settings.warmup_steps - 1, 1))
    return optax.join_schedules([rise, main], [settings.warmup_steps])


def make_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW; matrices decay, norms and biases do not."""

    def decays(params: nnx.State) -> Any:
        return nnx.map_state(lambda _, v: v.replace("weight" in _matrix_kind(v)), params)

    return optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.adamw(
            learning_rate_schedule(settings),
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            mask=decays,
        ),
    )


def _matrix_kind(variable: nnx.Variable) -> str:
    """ "weight" for a matrix (stacked over layers or not), "vector" for norms and biases."""
    axes = [axis for axis in variable.get_metadata()["axes"] if axis != "layers"]
    return "weight" if len(axes) > 1 else "vector"


def split_frozen(params: nnx.State, freeze_vision_tower: bool) -> tuple[nnx.State, nnx.State]:
    """The parameters as (trainable, frozen)."""
    frozen = nnx.PathContains("vision") if freeze_vision_tower else nnx.Nothing()
    return nnx.split_state(params, nnx.Not(frozen), ...)


def initial_train_state(
    params: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh, *, freeze_vision_tower: bool
) -> TrainState:
    """Step 0, laid out for training; parameters that are laid out so already are not copied."""
    params = jax.device_put(params, sharding.parameter_shardings(params, mesh, sharding.TRAINING))
    trainable, frozen = split_frozen(params, freeze_vision_tower)
    # Moments are laid out like the parameters they belong to; counters are replicated.
    whole = sharding.replicated(mesh)
    layout = optax.tree.map_params(
        optimizer,
        lambda _, parameter: parameter.sharding,
        jax.eval_shape(optimizer.init, trainable),
        trainable,
        transform_non_params=lambda _: whole,
    )
    state = jax.jit(optimizer.init, out_shardings=layout)(trainable)
    step = jax.device_put(jnp.zeros((), jnp.int32), whole)
    return TrainState(step, trainable, frozen, state)


def sampling_layout(params: nnx.State, mesh: Mesh, dtype: str) -> Callable[[nnx.State], nnx.State]:
    """A jitted function from master weights to those that rollouts use: cast to `dtype`, laid out for sampling."""
    shardings = sharding.parameter_shardings(params, mesh, sharding.SAMPLING)
    return jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree), out_shardings=shardings)
