"""Parameters out of safetensors files: each process reads the byte ranges that its devices hold, piece by piece."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from medvr_jax.errors import UserError
from medvr_jax.models.backbone import Backbone
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.model_files import stored_tensors
from medvr_jax.models.safetensors_file import Range, StoredTensor, TensorReader
from medvr_jax.models.weight_layout import Block, Layout, layouts, local_shape, piece_elements, shard_starts
from medvr_jax.models.weight_names import from_file

Shardings = nnx.State | Callable[[nnx.State], nnx.State]


def load_backbone(
    folder: str | Path,
    dtype: jnp.dtype = jnp.float32,
    compute_dtype: jnp.dtype | None = None,
    shardings: Shardings | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """The backbone of a Hugging Face folder, its parameters cast to `dtype`.

    Args:
        folder: config.json and safetensors files, which may hold float32, float16 and bfloat16.
        compute_dtype: `dtype` by default.
        shardings: a tree like the parameters with a `NamedSharding` each, or a function that makes it of the tree of
            their shapes. None: whole, on the default device.
    """
    folder = Path(folder)
    config = BackboneConfig.from_folder(folder)
    graphdef, shapes = abstract_backbone(config, dtype, compute_dtype or dtype)
    flat = dict(nnx.to_flat_state(shapes))
    tensors = stored_tensors(folder)
    plan = layouts(config, flat)
    _check(folder, config, plan, tensors)
    tree = shardings(shapes) if callable(shardings) else shardings
    wanted = {} if tree is None else dict(nnx.to_flat_state(tree))
    arrays: dict[tuple[str, ...], jax.Array] = {}
    with TensorReader() as reader:
        for layout in plan:
            sharding = wanted[layout.path].get_value() if wanted else None
            arrays[layout.path] = _load(layout, tensors, reader, jnp.dtype(dtype), sharding)
    return graphdef, nnx.from_flat_state([(path, value.replace(arrays[path])) for path, value in flat.items()])


def abstract_backbone(
    config: BackboneConfig, dtype: jnp.dtype, compute_dtype: jnp.dtype
) -> tuple[nnx.GraphDef, nnx.State]:
    """The module's structure with shapes instead of arrays."""
    abstract = nnx.eval_shape(lambda: Backbone(config, key=jax.random.key(0), dtype=dtype, compute_dtype=compute_dtype))
    return nnx.split(abstract)


def _check(folder: Path, config: BackboneConfig, plan: list[Layout], tensors: dict[str, StoredTensor]) -> None:
    """UserError unless the files hold exactly the model's tensors, in its shapes."""
    expected = {name: layout.tensor_shape for layout in plan for name in layout.names}
    for name, tensor in tensors.items():
        if name == "lm_head.weight" and name not in expected:
            continue  # some exporters write a tied head as well
        if name not in expected:
            raise UserError(f"{tensor.file}: tensor {tensor.key} is not part of a {config.model_type} model")
        if tensor.shape != expected[name]:
            raise UserError(
                f"{tensor.file}: tensor {tensor.key} has shape {list(tensor.shape)},"
                f" config.json needs {list(expected[name])}"
            )
    if missing := [name for name in expected if name not in tensors]:
        raise UserError(f"{folder}: tensor {missing[0]} is missing ({len(missing)} missing in all)")


def _load(
    layout: Layout,
    tensors: dict[str, StoredTensor],
    reader: TensorReader,
    dtype: np.dtype,
    sharding: NamedSharding | None,
) -> jax.Array:
    """One parameter on its devices. Identical shards are read once per process."""
    shape, local = layout.shape, local_shape(layout.shape, sharding)
    shards = shard_starts(shape, sharding, addressable=True)
    sizes, starts = layout.pieces(local, piece_elements(sharding, dtype))
    whole = None if sizes == local else jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=sharding)()
    for start in starts:
        boxes = [tuple(np.add(shard, start).tolist()) for shard in shards]
        values = _read(layout, tensors, reader, dtype, boxes, sizes)
        piece = _put(values, list(shards.values()), [n // m for n, m in zip(shape, local, strict=True)], sharding)
        if whole is None:
            return piece
        # waiting keeps the host from reading ahead of the devices, piece upon piece
        whole = jax.block_until_ready(_filler(sharding)(whole, piece, np.asarray(start, np.int32)))
    return whole


def _read(
    layout: Layout,
    tensors: dict[str, StoredTensor],
    reader: TensorReader,
    dtype: np.dtype,
    boxes: list[tuple[int, ...]],
    sizes: tuple[int, ...],
) -> list[np.ndarray]:
    """The parts of the parameter of these sizes that begin at `boxes`; what several of them share is read once."""
    values = [np.empty(sizes, dtype) for _ in boxes]
    users: dict[tuple[int | None, tuple[Range, ...]], list[tuple[Block, np.ndarray]]] = defaultdict(list)
    for value, box in zip(values, boxes, strict=True):
        for number, block in enumerate(layout.blocks(box, sizes)):
            users[block.layer, block.rows].append((block, value[number] if layout.stacked else value))
    for (layer, rows), group in users.items():
        tensor = tensors[layout.name(layer)]
        for first, last in _joined(block.columns for block, _ in group):
            content = reader.read(tensor, layout.width, rows, (first, last))
            for block, target in group:
                start, stop = block.columns
                if first <= start and stop <= last:
                    part = content[:, start - first : stop - first].astype(dtype, copy=False)
                    target[...] = from_file(part, layout.turn).reshape(target.shape)
    return values


def _joined(ranges: Iterable[Range]) -> list[Range]:
    """Ranges in order, those that touch or overlap joined."""
    joined: list[Range] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1]:
            first, last = joined.pop()
            start, stop = first, max(last, stop)
        joined.append((start, stop))
    return joined


def _put(
    values: list[np.ndarray],
    holders: list[list[jax.Device | None]],
    counts: list[int],
    sharding: NamedSharding | None,
) -> jax.Array:
    """An array of `counts` shards along each axis, each on its devices."""
    if sharding is None:
        return jnp.asarray(values[0])
    arrays = [
        jax.device_put(value, device) for value, devices in zip(values, holders, strict=True) for device in devices
    ]
    shape = tuple(size * count for size, count in zip(values[0].shape, counts, strict=True))
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


@functools.cache
def _filler(sharding: NamedSharding | None) -> Callable[[jax.Array, jax.Array, np.ndarray], jax.Array]:
    """A jitted function that writes a piece into every shard of an array at a start within the shard, in place."""

    def fill(whole: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(whole, piece, tuple(start[axis] for axis in range(whole.ndim)))

    if sharding is not None:
        spec = sharding.spec
        fill = jax.shard_map(
            fill, mesh=sharding.mesh, in_specs=(spec, spec, PartitionSpec()), out_specs=spec, check_vma=False
        )
    return jax.jit(fill, donate_argnums=0)
