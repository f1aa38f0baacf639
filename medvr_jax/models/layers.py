"""Small pieces that the decoder and the vision tower share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from medvr_jax.models.partitioning import constrain

Weights = dict[str, jax.Array]  # one layer's parameters, or a stack of them, by name


class Initialiser:
    """Makes parameters with their logical axes: normal with a given spread, ones or zeros."""

    def __init__(self, key: jax.Array, spread: float, dtype: jnp.dtype) -> None:
        self._key, self._spread, self._dtype = key, spread, dtype

    def normal(self, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
        self._key, key = jax.random.split(self._key)
        values = self._spread * jax.random.normal(key, shape, jnp.float32)
        return nnx.Param(values.astype(self._dtype), axes=axes)

    def ones(self, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
        return nnx.Param(jnp.ones(shape, self._dtype), axes=axes)

    def zeros(self, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
        return nnx.Param(jnp.zeros(shape, self._dtype), axes=axes)


def weights_of(module: nnx.Module) -> Weights:
    """The module's own parameters by name."""
    return {name: value[...] for name, value in vars(module).items() if isinstance(value, nnx.Param)}


# Logical axes that split a weight where it is stored. Where it is used it is whole along them: left to itself the
# compiler may gather all tokens instead to make its part of a gradient.
_STORED = ("embed", "vision_embed")
Axes = dict[str, tuple[str | None, ...]]  # the logical axes of one layer's parameters, by name


def axes_of(stacked: nnx.Module) -> Axes:
    """The axes of one layer's parameters, out of a module that stacks layers."""
    parameters = ((name, value) for name, value in vars(stacked).items() if isinstance(value, nnx.Param))
    return {name: tuple(value.get_metadata()["axes"])[1:] for name, value in parameters}


def gathered(value: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A parameter (or a slice of one) as it is used; its gradient is summed over devices before it is split again."""
    return constrain(value, *(None if axis in _STORED else axis for axis in axes))


def used(parameter: nnx.Param) -> jax.Array:
    """`gathered` of a parameter that is not stacked."""
    return gathered(parameter[...], parameter.get_metadata()["axes"])


def layer_of(stack: Weights, layer: int) -> Weights:
    """One layer's parameters out of a stack."""
    return {name: value[layer] for name, value in stack.items()}


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Divides x [..., D] by its root mean square, in float32, then scales it in x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Centres x [..., D] and divides it by its standard deviation, scales and shifts it, all in float32."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return (wide * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def quick_gelu(x: jax.Array) -> jax.Array:
    """The logistic approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x [..., in] times kernel [in, out] in x's dtype.

    Rows are flattened first: XLA's CPU compiler transposes both operands of a kernel's gradient (with whatever fuses
    into them, column by column) when it contracts over several axes, and over one axis it does not.
    """
    y = (x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)).reshape(*x.shape[:-1], kernel.shape[-1])
    return y if bias is None else y + bias.astype(x.dtype)


# What a layer keeps for the backward pass: everything; its input and the products with its weights; its input alone.
REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "block": jax.checkpoint_policies.nothing_saveable,
}


def run_stack(
    layer_function: Callable[[Any, Weights], Any], carry: Any, stack: Weights, axes: Axes, *, unroll: bool, remat: str
) -> Any:
    """Carries a value through the layers of a stack: unrolled, or scanned with one compiled body.

    axes: of one layer's parameters; they are gathered layer by layer, in the backward pass anew.
    """

    def with_gathered(carry: Any, weights: Weights) -> Any:
        return layer_function(carry, {name: gathered(value, axes[name]) for name, value in weights.items()})

    step = with_gathered
    if policy := REMAT_POLICIES[remat]:
        step = jax.checkpoint(with_gathered, prevent_cse=unroll, policy=policy)
    count = next(iter(stack.values())).shape[0]
    if unroll or count == 1:
        for layer in range(count):
            carry = step(carry, layer_of(stack, layer))
        return carry
    return jax.lax.scan(lambda c, w: (step(c, w), None), carry, stack)[0]
