"""Where arrays live: one table of logical axis -> mesh axis per layout, and nothing scattered through the model.

Parameters carry the names of their logical axes; batches are split by group. Two layouts of the same tree: TRAINING
(masters and optimiser state split over `fsdp` and `tensor`) and SAMPLING (whole, or split over `tensor` alone).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medvr_jax.errors import UserError
from medvr_jax.models.attention_backend import XLA, AttentionBackend
from medvr_jax.rollout.state import RolloutLayout

MESH_AXES = ("data", "fsdp", "tensor")
# Groups are split over both axes that hold whole prompts.
BATCH_AXES = ("data", "fsdp")

_HEADS = {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocabulary": "tensor"}
_VISION = {"vision_heads": "tensor", "vision_mlp": "tensor"}
_ATTENTION_PLATFORMS = {"splash": "tpu", "fused": "gpu"}
TRAINING: Mapping[str, str] = _HEADS | _VISION | {"embed": "fsdp", "vision_embed": "fsdp"}
SAMPLING: Mapping[str, str] = _HEADS | _VISION


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each mesh axis; -1 in one of them takes what the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def mesh_sizes(shape: MeshShape, devices: int) -> tuple[int, int, int]:
    """The sizes of the axes data, fsdp and tensor; UserError when they do not multiply to the number of devices."""
    sizes = [shape.data, shape.fsdp, shape.tensor]
    fixed = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) == 1 and fixed > 0 and devices % fixed == 0:
        sizes[sizes.index(-1)] = devices // fixed
    if min(sizes) < 1 or int(np.prod(sizes)) != devices:
        raise UserError(
            f"mesh: data={shape.data}, fsdp={shape.fsdp}, tensor={shape.tensor} do not multiply to the"
            f" {devices} devices here; one axis may be -1"
        )
    return sizes[0], sizes[1], sizes[2]


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the devices (all by default) with axes data, fsdp and tensor; UserError when they do not divide so."""
    devices = devices or jax.devices()
    sizes = mesh_sizes(shape, len(devices))
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def data_shards(mesh: Mesh) -> int:
    """How many parts the groups of a batch are split into."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_group(mesh: Mesh) -> NamedSharding:
    """The leading axis B split over the devices, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def rollout_layout(mesh: Mesh, kv_heads: int) -> RolloutLayout:
    """A rollout's arrays split by group, its caches also over the K key/value heads where `tensor` divides them."""
    heads = "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None
    return RolloutLayout(
        groups=by_group(mesh),
        prompt_keys=NamedSharding(mesh, PartitionSpec(BATCH_AXES, heads)),
        response_keys=NamedSharding(mesh, PartitionSpec(BATCH_AXES, None, heads)),
        whole=replicated(mesh),
    )


def attention_backend(choice: str, mesh: Mesh) -> AttentionBackend:
    """The back end that `model.attention` asks for, its kernels spread over the mesh as groups and heads are.

    Raises:
        UserError: where the mesh's devices do not run it.
    """
    platform = mesh.devices.flat[0].platform
    allowed = ["auto", "xla", *(kind for kind, needed in _ATTENTION_PLATFORMS.items() if needed == platform)]
    if choice not in allowed:
        raise UserError(f"model.attention: found {choice!r}, allowed on {platform} devices are {', '.join(allowed)}")
    kind = allowed[-1] if choice == "auto" else choice
    return XLA if kind == "xla" else AttentionBackend(kind, mesh, BATCH_AXES, (TRAINING["heads"],))


def parameter_shardings(params: nnx.State, mesh: Mesh, rules: Mapping[str, str]) -> nnx.State:
    """The sharding of every parameter, as a tree like `params`.

    Raises:
        UserError: where an array's axis does not divide by its mesh axis, or two of its axes ask for the same one.
    """

    def spec(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        shape = variable.get_value().shape
        axes = [rules.get(axis) for axis in variable.get_metadata()["axes"]]
        name = ".".join(str(part) for part in path)
        used = [axis for axis in axes if axis is not None]
        if len(set(used)) != len(used):
            raise UserError(f"mesh: parameter {name} would use one mesh axis twice ({axes})")
        for size, axis in zip(shape, axes, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"mesh.{axis}: parameter {name} of shape {shape} has an axis of {size}, which is not divisible by"
                    f" {mesh.shape[axis]}; {axis}={int(np.gcd(size, mesh.shape[axis]))} divides it"
                )
        return variable.replace(NamedSharding(mesh, PartitionSpec(*axes)))

    return nnx.map_state(spec, params)
