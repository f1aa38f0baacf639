"""Which kernels attention runs on, and how a kernel is spread over devices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

KINDS = ("xla", "splash", "fused")


@dataclasses.dataclass(frozen=True)
class AttentionBackend:
    """The back end of every attention of a model.

    Attributes:
        kind: "xla" (everywhere, the reference), "splash" (TPU) or "fused" (NVIDIA GPU).
        mesh: the devices that kernels are spread over; None = one device.
        batch_axes: names of the mesh axes that split groups and images.
        head_axes: names of the mesh axes that split heads.
        interpreted: run the kernels' code without their hardware: splash in Pallas' interpreter, fused as XLA.
    """

    kind: str = "xla"
    mesh: Mesh | AbstractMesh | None = None
    batch_axes: tuple[str, ...] = ()
    head_axes: tuple[str, ...] = ()
    interpreted: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"attention back end {self.kind!r}, allowed are {', '.join(KINDS)}")

    def shards(self, axes: tuple[str, ...]) -> int:
        """Devices along these axes."""
        return math.prod(self.mesh.shape[axis] for axis in axes) if self.mesh is not None else 1


XLA = AttentionBackend()


def over_devices(
    kernel: Callable[..., tuple[jax.Array, ...]],
    backend: AttentionBackend,
    arrays: tuple[jax.Array, ...],
    head_axis: tuple[int | None, ...],
    out_head_axis: tuple[int, ...],
    *,
    heads: int,
) -> tuple[jax.Array, ...]:
    """kernel(*arrays) with axis 0 (batch) and the head axes of every array split over the mesh.

    XLA cannot partition a kernel, so each device is handed its part. An axis that does not divide stays whole, and is
    then computed on every device. Key and value heads that do not divide are repeated until they do.

    Args:
        head_axis: per array, the axis of its query or key/value heads; None = no heads.
        out_head_axis: the same per result.
        heads: N, the query heads.
    """
    batch_shards, head_shards = backend.shards(backend.batch_axes), backend.shards(backend.head_axes)
    if batch_shards == head_shards == 1:
        return kernel(*arrays)
    batch = backend.batch_axes if arrays[0].shape[0] % batch_shards == 0 else None
    split_heads = heads % head_shards == 0

    def spec(axis: int | None) -> PartitionSpec:
        if axis is None or not split_heads:
            return PartitionSpec(batch)
        return PartitionSpec(batch, *[None] * (axis - 1), backend.head_axes)

    if split_heads:
        arrays = tuple(_repeat_heads(x, axis, head_shards) for x, axis in zip(arrays, head_axis, strict=True))
    return jax.shard_map(
        kernel,
        mesh=backend.mesh,
        in_specs=tuple(spec(axis) for axis in head_axis),
        out_specs=tuple(spec(axis) for axis in out_head_axis),
        check_vma=False,  # kernels do not say over which axes their results vary
    )(*arrays)


def _repeat_heads(x: jax.Array, axis: int | None, shards: int) -> jax.Array:
    """Repeats each head of x so often that the shards divide them: not at all where they do, or without heads."""
    if axis is None or x.shape[axis] % shards == 0:
        return x
    return jnp.repeat(x, math.lcm(x.shape[axis], shards) // x.shape[axis], axis=axis)
