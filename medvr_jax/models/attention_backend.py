"""Which kernels attention runs on, and how a kernel is spread over the devices of the layout."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from medvr_jax.models.partitioning import current_layout

KINDS = ("xla", "splash", "fused")


@dataclasses.dataclass(frozen=True)
class AttentionBackend:
    """The back end of every attention of a model.

    Attributes:
        kind: "xla" (everywhere, the reference), "splash" (TPU) or "fused" (NVIDIA GPU).
        interpreted: run the kernels' code without their hardware: splash in Pallas' interpreter, fused as XLA.
    """

    kind: str = "xla"
    interpreted: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"attention back end {self.kind!r}, allowed are {', '.join(KINDS)}")


XLA = AttentionBackend()


def over_devices(
    kernel: Callable[..., tuple[jax.Array, ...]],
    arrays: tuple[jax.Array, ...],
    head_axis: tuple[int | None, ...],
    out_head_axis: tuple[int, ...],
    *,
    heads: int,
) -> tuple[jax.Array, ...]:
    """kernel(*arrays) with axis 0 (groups) and the head axes of every array split as the layout says.

    XLA cannot partition a kernel, so each device is handed its part. Without a layout there is one device. An axis that
    does not divide stays whole, and is then computed on every device. Key and value heads that do not divide are
    repeated until they do.

    Args:
        head_axis: per array, the axis of its query or key/value heads; None = no heads.
        out_head_axis: the same per result.
        heads: N, the query heads.
    """
    layout = current_layout()
    if layout is None or layout.shards("groups") == layout.shards("heads") == 1:
        return kernel(*arrays)
    head_shards = layout.shards("heads")
    batch = layout.rules["groups"] if arrays[0].shape[0] % layout.shards("groups") == 0 else None
    split_heads = heads % head_shards == 0

    def spec(axis: int | None) -> PartitionSpec:
        if axis is None or not split_heads:
            return PartitionSpec(batch)
        return PartitionSpec(batch, *[None] * (axis - 1), layout.rules["heads"])

    if split_heads:
        arrays = tuple(_repeat_heads(x, axis, head_shards) for x, axis in zip(arrays, head_axis, strict=True))
    return jax.shard_map(
        kernel,
        mesh=layout.mesh,
        in_specs=tuple(spec(axis) for axis in head_axis),
        out_specs=tuple(spec(axis) for axis in out_head_axis),
        check_vma=False,  # kernels do not say over which axes their results vary
    )(*arrays)


def _repeat_heads(x: jax.Array, axis: int | None, shards: int) -> jax.Array:
    """Repeats each head of x so often that the shards divide them: not at all where they do, or without heads."""
    if axis is None or x.shape[axis] % shards == 0:
        return x
    return jnp.repeat(x, math.lcm(x.shape[axis], shards) // x.shape[axis], axis=axis)
