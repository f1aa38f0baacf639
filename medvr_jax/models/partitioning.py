"""Logical axes of arrays: the model names them, a layout given from outside says which mesh axes they lie on."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the table logical axis → mesh axis or axes; axes that the table lacks are whole on every device."""

    mesh: Mesh | AbstractMesh
    rules: Mapping[str, MeshAxes]

    def spec(self, *axes: str | None) -> PartitionSpec:
        """The partition of an array whose dimensions have these logical names."""
        return PartitionSpec(*(self.rules.get(axis) if axis else None for axis in axes))

    def shards(self, axis: str | None) -> int:
        """How many parts a dimension of this logical name is split into."""
        found = self.rules.get(axis) if axis else None
        return math.prod(self.mesh.shape[name] for name in ((found,) if isinstance(found, str) else found or ()))

    def sharding(self, *axes: str | None) -> NamedSharding:
        """As `spec`, with the mesh."""
        return NamedSharding(self.mesh, self.spec(*axes))

    def fitting(self, shape: tuple[int, ...], *axes: str | None) -> NamedSharding:
        """As `sharding`, for an array of this shape: a dimension that its mesh axes do not divide stays whole."""
        names = (name if size % self.shards(name) == 0 else None for size, name in zip(shape, axes, strict=True))
        return self.sharding(*names)


_layout: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


def current_layout() -> Layout | None:
    """The layout that the program being traced was bound to."""
    return _layout.get()


@contextlib.contextmanager
def _use(layout: Layout) -> Iterator[None]:
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def bind(layout: Layout, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced under this layout wherever it is jitted."""

    @functools.wraps(function)
    def bound(*arguments: Any) -> Any:
        with _use(layout):
            return function(*arguments)

    if isinstance(function, functools.partial):  # what profiles and dumps call the program
        bound.__name__ = function.func.__name__.lstrip("_")
    return bound


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells the compiler how x is split; axes are its dimensions' logical names. Without a layout nothing happens.

    Left to itself the compiler may gather activations to spare itself the gathering of weights. A dimension that its
    mesh axes do not divide stays whole.
    """
    layout = current_layout()
    if layout is None:
        return x
    return jax.lax.with_sharding_constraint(x, layout.fitting(x.shape, *axes))


def constrain_groups(x: jax.Array) -> jax.Array:
    """`constrain` for x whose first axis counts groups (or rows of groups), the others whole."""
    return constrain(x, "groups", *(None,) * (x.ndim - 1))


def constrain_parameters(params: nnx.State) -> nnx.State:
    """`constrain` for parameters, or their gradients, by the axes that they carry."""
    return nnx.map_state(lambda _, v: v.replace(constrain(v.get_value(), *v.get_metadata()["axes"])), params)
