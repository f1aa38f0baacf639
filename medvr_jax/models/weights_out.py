"""Parameters into a Hugging Face folder: numbered safetensors files, written in place, one piece in memory at a time.

With several processes the first one writes, and all take part in bringing each piece to it.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from medvr_jax.errors import UserError
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.model_files import INDEX
from medvr_jax.models.safetensors_file import header_bytes
from medvr_jax.models.weight_layout import Block, Layout, layouts, local_shape, piece_elements, shard_starts
from medvr_jax.models.weight_names import to_file

SHARD_BYTES = 5 * 10**9  # of a file at most, unless one tensor alone is larger
_HEADER_ENTRY = 160  # bytes that a tensor's entry takes in a header beside its name, at most


def save_backbone(
    folder: str | Path,
    config: BackboneConfig,
    params: nnx.State,
    dtype: jnp.dtype | Mapping[str, jnp.dtype] = jnp.float32,
    companions: Sequence[Path] = (),
) -> None:
    """Writes config.json and safetensors as a new or replaced folder, atomically; call it on all processes.

    Files of an earlier export that this does not write are kept.

    Args:
        params: jax arrays, on one device or laid out by a `NamedSharding`.
        dtype: of the files, or of each tensor by its name there.
        companions: files to copy beside the weights.
    """
    folder = Path(folder)
    plan = layouts(config, dict(nnx.to_flat_state(params)))
    names = [name for layout in plan for name in layout.names]
    dtypes = {name: jnp.dtype(dtype[name] if isinstance(dtype, Mapping) else dtype) for name in names}
    if jax.process_index():
        _write_tensors(None, plan, params, dtypes)
    else:
        temporary = _clean_start(folder)
        try:
            _prepare(temporary, folder, companions)
            common = Counter(dtypes.values()).most_common(1)[0][0]
            fields = config.to_json_dict() | {"torch_dtype": common.name}
            (temporary / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
            with _Files(temporary, plan, dtypes) as files:
                _write_tensors(files, plan, params, dtypes)
            _replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("export")  # nobody goes on before the folder is there


# ---------------------------------------------------------------------------------------------------- the tensors


class _Files:
    """The safetensors files of an export: all headers are written first, then bytes at their places."""

    def __init__(self, folder: Path, plan: list[Layout], dtypes: dict[str, np.dtype]) -> None:
        shards = _shards({name: (dtypes[name], layout.tensor_shape) for layout in plan for name in layout.names})
        headers = [header_bytes(shard) for shard in shards]
        total = sum(dtype.itemsize * math.prod(shape) for shard in shards for dtype, shape in shard.values())
        if (free := shutil.disk_usage(folder).free) < total:
            raise UserError(f"{folder.parent}: an export of {total} bytes does not fit, {free} bytes are free")
        self._places: dict[str, tuple[int, int]] = {}  # file descriptor, offset
        self._open: list[int] = []
        index: dict[str, str] = {}
        for number, (header, offsets) in enumerate(headers, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
            self._open.append(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            self.write_at(self._open[-1], header, 0)
            self._places |= {key: (self._open[-1], offset) for key, offset in offsets.items()}
            index |= dict.fromkeys(offsets, name)
        if len(shards) > 1:
            text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
            (folder / INDEX).write_text(text + "\n", encoding="utf-8")

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._open:
            os.close(file)

    def write(self, name: str, first_row: int, rows: np.ndarray) -> None:
        """Whole rows of a tensor, [rows, columns], from `first_row` on."""
        file, offset = self._places[name]
        self.write_at(file, rows.reshape(-1).view(np.uint8), offset + first_row * rows.shape[1] * rows.dtype.itemsize)

    @staticmethod
    def write_at(file: int, content: bytes | np.ndarray, offset: int) -> None:
        view = memoryview(content)
        while view:
            done = os.pwrite(file, view, offset)
            view, offset = view[done:], offset + done


def _shards(
    tensors: dict[str, tuple[np.dtype, tuple[int, ...]]],
) -> list[dict[str, tuple[np.dtype, tuple[int, ...]]]]:
    """The tensors of each file: in their order, wider dtypes first within a file so that all lie aligned."""
    shards: list[dict[str, tuple[np.dtype, tuple[int, ...]]]] = [{}]
    used = 0
    for name, (dtype, shape) in tensors.items():
        size = dtype.itemsize * math.prod(shape) + len(name) + _HEADER_ENTRY
        if used and used + size > SHARD_BYTES:
            shards.append({})
            used = 0
        shards[-1][name] = (dtype, shape)
        used += size
    return [dict(sorted(shard.items(), key=lambda item: -item[1][0].itemsize)) for shard in shards]


def _write_tensors(files: _Files | None, plan: list[Layout], params: nnx.State, dtypes: dict[str, np.dtype]) -> None:
    """Every parameter, piece by piece; without files only this process's part in gathering them."""
    flat = dict(nnx.to_flat_state(params))
    for layout in plan:
        array = flat[layout.path].get_value()
        sharding = _named_sharding(array)
        local = local_shape(layout.shape, sharding)
        sizes, starts = layout.pieces(local, piece_elements(sharding, np.dtype(array.dtype)))
        for start in starts:
            at_hand = sizes == local and array.is_fully_addressable
            piece = array if at_hand else _taker(sharding, sizes)(array, np.asarray(start, np.int32))
            if files is None:
                jax.block_until_ready(piece)
            else:
                _write_piece(files, layout, sharding, piece, start, sizes, dtypes)


def _named_sharding(array: jax.Array) -> NamedSharding | None:
    """None for an array on one device."""
    sharding = array.sharding
    if len(sharding.device_set) == 1:
        return None
    if not isinstance(sharding, NamedSharding):
        raise TypeError(f"an exported array over several devices needs a NamedSharding, found {sharding}")
    return sharding


@functools.cache
def _taker(sharding: NamedSharding | None, sizes: tuple[int, ...]) -> Callable[[jax.Array, np.ndarray], jax.Array]:
    """A jitted function that takes the same part of every shard; on all devices whole where processes share them."""

    def take(whole: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(whole, tuple(start[axis] for axis in range(whole.ndim)), sizes)

    if sharding is None:
        return jax.jit(take)
    spec, mesh = sharding.spec, sharding.mesh
    take = jax.shard_map(take, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec, check_vma=False)
    return (
        jax.jit(take)
        if sharding.is_fully_addressable
        else jax.jit(take, out_shardings=NamedSharding(mesh, PartitionSpec()))
    )


def _write_piece(
    files: _Files,
    layout: Layout,
    sharding: NamedSharding | None,
    piece: jax.Array,
    start: tuple[int, ...],
    sizes: tuple[int, ...],
    dtypes: dict[str, np.dtype],
) -> None:
    """Joins the shards' columns to whole rows and writes them."""
    local = local_shape(layout.shape, sharding)
    held = {tuple(part.start or 0 for part in shard.index): shard.data for shard in piece.addressable_shards}
    groups: dict[tuple[int | None, tuple], list[tuple[Block, np.ndarray]]] = defaultdict(list)
    for shard in shard_starts(layout.shape, sharding, addressable=False):
        corner = tuple(at // extent * size for at, extent, size in zip(shard, local, sizes, strict=True))
        if corner in held and held[corner].shape == sizes:
            value = np.asarray(held[corner])
        else:  # gathered: every device has all of it
            box = tuple(slice(at, at + size) for at, size in zip(corner, sizes, strict=True))
            value = np.asarray(held[(0,) * len(sizes)])[box]
        box = tuple(np.add(shard, start).tolist())
        for number, block in enumerate(layout.blocks(box, sizes)):
            groups[block.layer, block.rows].append((block, value[number] if layout.stacked else value))
    for (layer, rows), parts in groups.items():
        name, count = layout.name(layer), sum(stop - first for first, stop in rows)
        content = np.empty((count, layout.width), dtypes[name])
        for block, value in parts:
            content[:, slice(*block.columns)] = to_file(value, layout.turn, count)
        done = 0
        for first, stop in rows:
            files.write(name, first, content[done : done + stop - first])
            done += stop - first


# ----------------------------------------------------------------------------------------------------- the folder


def _clean_start(folder: Path) -> Path:
    """The temporary folder's path, free; what a killed export left is removed, what it had moved aside comes back."""
    temporary, aside = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "previous"))
    if aside.exists() and not folder.exists():
        os.rename(aside, folder)
    for rest in (temporary, aside):
        shutil.rmtree(rest, ignore_errors=True)
    return temporary


def _prepare(temporary: Path, folder: Path, companions: Sequence[Path]) -> None:
    """Makes the temporary folder with all that is not made of the parameters."""
    if folder.exists():
        shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns("*.safetensors*", "config.json"))
    else:
        temporary.mkdir(parents=True)
    for file in companions:
        shutil.copyfile(file, temporary / file.name)


def _replace(temporary: Path, folder: Path) -> None:
    """Renames `temporary` to `folder` once it is on disk; an existing folder is moved aside first, then removed."""
    for file in temporary.rglob("*"):
        _sync(file)
    _sync(temporary)
    aside = folder.with_name(f".{folder.name}.previous")
    if folder.exists():
        os.rename(folder, aside)
    os.rename(temporary, folder)
    _sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
