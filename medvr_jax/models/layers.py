"""Small pieces that the decoder and the vision tower share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from medvr_jax.models.partitioning import constrain

Weights = dict[str, jax.Array]  # one layer's parameters, or a stack of them, by name
FEW_ROWS = 64  # up to so many a product is bound by reading its kernel, as in most decode steps
LARGE_KERNEL = 2**20  # elements: smaller ones stay in a core's cache


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


def times_transposed(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """x [..., in] times a kernel stored as [out, in], in x's dtype or accumulated and returned in `dtype`."""
    rows = x.reshape(-1, x.shape[-1])
    y = _times_transposed(rows, kernel.astype(x.dtype), preferred_element_type=dtype)
    return y.reshape(*x.shape[:-1], kernel.shape[0])


_times_transposed = functools.partial(jax.lax.dot_general, dimension_numbers=(((1,), (1,)), ((), ())))


def project(x: jax.Array, layer: Weights, name: str) -> jax.Array:
    """x [..., in] times the layer's kernel of this name, plus its bias if it has one; see `loop_weights`."""
    kernel = layer.get(f"{name}_transposed")
    if kernel is None:
        return linear(x, layer[f"{name}_kernel"], layer.get(f"{name}_bias"))
    if math.prod(x.shape[:-1]) > FEW_ROWS:
        y = times_transposed(x, kernel)
    else:
        y = jax.lax.platform_dependent(x, kernel, cpu=_kernel_first, default=times_transposed)
    return y + layer[f"{name}_bias"].astype(x.dtype) if f"{name}_bias" in layer else y


def _kernel_first(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`times_transposed` for XLA's CPU compiler: a large kernel times few rows is up to twice as fast if the kernel
    stands on the left; the barrier keeps the compiler from exchanging the two again."""
    y = _times_transposed(kernel.astype(x.dtype), x.reshape(-1, x.shape[-1]))
    return jax.lax.optimization_barrier(y).T.reshape(*x.shape[:-1], kernel.shape[0])


def loop_weights(layer: Weights) -> Weights:
    """One layer's parameters as a sampling loop reads them: its large kernels as [out, in], under their loop names."""
    return {
        _loop_name(name, value.size): value.T if _turned(name, value.size) else value for name, value in layer.items()
    }


def loop_axes(stacked: nnx.Module) -> Axes:
    """The logical axes of `loop_weights` of a module that stacks layers."""
    sizes = {name: math.prod(getattr(stacked, name).shape[1:]) for name in axes_of(stacked)}
    return {
        _loop_name(name, sizes[name]): names[::-1] if _turned(name, sizes[name]) else names
        for name, names in axes_of(stacked).items()
    }


def _turned(name: str, size: int) -> bool:
    return name.endswith("_kernel") and size >= LARGE_KERNEL


def _loop_name(name: str, size: int) -> str:
    return name.replace("_kernel", "_transposed") if _turned(name, size) else name


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
