"""Where arrays live: one table of logical axis -> mesh axis per layout, and nothing scattered through the model.

Parameters and activations carry the names of their logical axes. Two layouts of the same tree: TRAINING (masters and
optimiser state split over `fsdp` and `tensor`) and SAMPLING (whole, or split over `tensor` alone).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from medvr_jax.errors import UserError
from medvr_jax.models.attention_backend import AttentionBackend
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.partitioning import Layout, MeshAxes

MESH_AXES = ("data", "fsdp", "tensor")
# Groups are split over both axes that hold whole prompts.
BATCH_AXES = ("data", "fsdp")

SAMPLING: Mapping[str, MeshAxes] = {
    "groups": BATCH_AXES,
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocabulary": "tensor",
    "vision_heads": "tensor",
    "vision_mlp": "tensor",
    "waiting_features": "tensor",  # the width of crops' features, from the rollout to the update
}
TRAINING: Mapping[str, MeshAxes] = SAMPLING | {
    "embed": "fsdp",
    "vision_embed": "fsdp",
    "residual_tokens": "tensor",
    "residual_width": "tensor",
}
_ATTENTION_PLATFORMS = {"splash": "tpu", "fused": "gpu"}


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
        tensor = int(np.gcd(max(shape.tensor, 1), devices))
        raise UserError(
            f"mesh: data={shape.data}, fsdp={shape.fsdp}, tensor={shape.tensor} do not multiply to the"
            f" {devices} devices here; data=1, fsdp=-1, tensor={tensor} would, with fsdp={devices // tensor}"
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


def make_layout(rules: Mapping[str, MeshAxes], mesh: Mesh | AbstractMesh, backbone: BackboneConfig) -> Layout:
    """One of the tables above for a mesh and a backbone.

    A head is never cut. Where there are fewer key/value heads than the tensor axis needs, every device keeps them all.

    Raises:
        UserError: where the mesh's tensor axis does not divide the decoder's or the tower's heads.
    """
    tensor = mesh.shape["tensor"]
    heads = {"num_attention_heads": backbone.text.num_heads, "the vision tower's num_heads": backbone.vision.num_heads}
    for name, count in heads.items():
        if count % tensor:
            both = int(np.gcd.reduce(list(heads.values())))
            allowed = ", ".join(str(n) for n in range(1, both + 1) if both % n == 0)
            raise UserError(f"mesh.tensor: found {tensor}, {name} = {count} is not divisible by it; allowed: {allowed}")
    if backbone.text.num_kv_heads % tensor:
        rules = {**rules, "kv_heads": None}
    return Layout(mesh, rules)


def attention_backend(choice: str, mesh: Mesh) -> AttentionBackend:
    """The back end that `model.attention` asks for.

    Raises:
        UserError: where the mesh's devices do not run it.
    """
    platform = mesh.devices.flat[0].platform
    allowed = ["auto", "xla", *(kind for kind, needed in _ATTENTION_PLATFORMS.items() if needed == platform)]
    if choice not in allowed:
        raise UserError(f"model.attention: found {choice!r}, allowed on {platform} devices are {', '.join(allowed)}")
    kind = allowed[-1] if choice == "auto" else choice
    return AttentionBackend(kind)


def parameter_shardings(params: nnx.State, layout: Layout) -> nnx.State:
    """The sharding of every parameter (or `jax.ShapeDtypeStruct`), as a tree like `params`.

    Raises:
        UserError: where an array's axis does not divide by its mesh axis, or two of its axes ask for the same one.
    """
    sizes = dict(layout.mesh.shape)

    def spec(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        shape, logical = variable.get_value().shape, variable.get_metadata()["axes"]
        axes = layout.spec(*logical)
        name = ".".join(str(part) for part in path)
        used = [axis for axis in axes if axis is not None]
        if len(set(used)) != len(used):
            raise UserError(f"mesh: parameter {name} would use one mesh axis twice ({axes})")
        for size, axis, meaning in zip(shape, axes, logical, strict=True):
            if axis is not None and size % sizes[axis]:
                raise UserError(
                    f"mesh.{axis}: found {sizes[axis]}, parameter {name} has {size} along its axis {meaning}, which is"
                    f" not divisible by it; mesh.{axis}={int(np.gcd(size, sizes[axis]))} divides it"
                )
        return variable.replace(NamedSharding(layout.mesh, axes))

    return nnx.map_state(spec, params)


def describe_shardings(params: nnx.State, layout: Layout) -> str:
    """One line for each parameter: its path, its shape, and the mesh axes that its dimensions lie on."""
    places = dict(nnx.to_flat_state(parameter_shardings(params, layout)))
    lines = []
    for path, variable in nnx.to_flat_state(params):
        shape = " x ".join(map(str, variable.get_value().shape))
        axes = ", ".join(axis or "-" for axis in places[path].get_value().spec)
        lines.append(f"{'.'.join(map(str, path))}: {shape}: {axes}\n")
    return "".join(sorted(lines))
