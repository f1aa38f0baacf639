"""Parameters from and to Hugging Face folders (safetensors), by one table of names.

The names written are those of the hub's Qwen2.5-VL folders; the newer `model.language_model.…` names are read too.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from medvr_jax.errors import UserError
from medvr_jax.models.backbone import Backbone
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.weight_names import canonical, file_shape, from_file, names_of, to_file

SHARD_BYTES = 4 * 2**30
ParameterPath = tuple[str, ...]


def random_backbone(
    config: BackboneConfig, seed: int, dtype: jnp.dtype = jnp.float32, compute_dtype: jnp.dtype | None = None
) -> tuple[nnx.GraphDef, nnx.State]:
    """A freshly initialised backbone; `compute_dtype` defaults to the parameters' dtype."""
    fixed = {"dtype": dtype, "compute_dtype": compute_dtype or dtype}

    def initialise(key: jax.Array) -> nnx.State:
        return nnx.state(Backbone(config, key=key, **fixed))

    return _skeleton(config, **fixed)[0], jax.jit(initialise)(jax.random.key(seed))


def load_backbone(
    folder: str | Path, dtype: jnp.dtype = jnp.float32, compute_dtype: jnp.dtype | None = None
) -> tuple[nnx.GraphDef, nnx.State]:
    """The backbone of a Hugging Face folder, its parameters cast to `dtype`, on the default device."""
    folder = Path(folder)
    config = BackboneConfig.from_folder(folder)
    graphdef, shapes = _skeleton(config, dtype, compute_dtype or dtype)
    flat = dict(nnx.to_flat_state(shapes))
    expected = {name: where for name, *where in _tensors(config, flat)}
    stacks: dict[ParameterPath, np.ndarray] = {}
    found: dict[str, str] = {}
    for file, key, tensor in _stored_tensors(folder):
        name = canonical(key)
        if name == "lm_head.weight" and name not in expected:
            continue  # some exporters write a tied head as well
        if name not in expected:
            raise UserError(f"{file}: tensor {key} is not part of a {config.model_type} model")
        if name in found:
            raise UserError(f"{file}: tensor {key} is also in {found[name]}")
        found[name] = str(file)
        path, layer, turn, shape = expected[name]
        if tensor.shape != shape:
            raise UserError(f"{file}: tensor {key} has shape {list(tensor.shape)}, config.json needs {list(shape)}")
        if path not in stacks:
            stacks[path] = np.empty(flat[path].shape, jnp.dtype(dtype))
        stacks[path][... if layer is None else layer] = from_file(tensor, turn).reshape(
            stacks[path].shape if layer is None else stacks[path].shape[1:]
        )
    if missing := [name for name in expected if name not in found]:
        raise UserError(f"{folder}: tensor {missing[0]} is missing ({len(missing)} missing in all)")
    leaves = [(path, value.replace(jnp.asarray(stacks.pop(path)))) for path, value in flat.items()]
    return graphdef, nnx.from_flat_state(leaves)


def save_backbone(
    folder: str | Path, config: BackboneConfig, params: nnx.State, dtype: jnp.dtype = jnp.float32
) -> None:
    """Writes config.json and safetensors (cast to `dtype`) as a new or replaced folder, atomically.

    Files of an earlier export that this does not write (tokenizer, image processor) are kept.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        if folder.exists():
            shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns("*.safetensors*", "config.json"))
        else:
            temporary.mkdir(parents=True)
        fields = config.to_json_dict() | {"torch_dtype": jnp.dtype(dtype).name}
        (temporary / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        _write_tensors(temporary, config, params, dtype)
        _replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_tensors(folder: Path, config: BackboneConfig, params: nnx.State, dtype: jnp.dtype) -> None:
    """One file, or numbered files of at most SHARD_BYTES with the usual index."""
    flat = dict(nnx.to_flat_state(params))
    shards: list[dict[str, np.ndarray]] = [{}]
    used, host = 0, (None, None)
    for name, path, layer, turn, shape in _tensors(config, flat):
        if host[0] != path:
            host = (path, np.asarray(flat[path][...]))
        value = host[1] if layer is None else host[1][layer]
        value = np.ascontiguousarray(to_file(value, turn, shape).astype(jnp.dtype(dtype)))
        if used and used + value.nbytes > SHARD_BYTES:
            shards.append({})
            used = 0
        shards[-1][name] = value
        used += value.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    total = sum(value.nbytes for shard in shards for value in shard.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def _replace(temporary: Path, folder: Path) -> None:
    """Renames `temporary` to `folder`; an existing folder is moved aside first and then removed."""
    if not folder.exists():
        os.rename(temporary, folder)
        return
    old = folder.with_name(f".{folder.name}.old.{uuid.uuid4().hex[:8]}")
    os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def _skeleton(config: BackboneConfig, dtype: jnp.dtype, compute_dtype: jnp.dtype) -> tuple[nnx.GraphDef, nnx.State]:
    """The module's structure with shapes instead of arrays."""
    abstract = nnx.eval_shape(lambda: Backbone(config, key=jax.random.key(0), dtype=dtype, compute_dtype=compute_dtype))
    return nnx.split(abstract)


def _tensors(
    config: BackboneConfig, flat: dict[ParameterPath, nnx.Variable]
) -> Iterator[tuple[str, ParameterPath, int | None, str, tuple[int, ...]]]:
    """(name, path, layer, turn, shape in the file) of every tensor that the model has."""
    for pattern, dotted, turn in names_of(config):
        path = tuple(dotted.split("."))
        shape = tuple(flat[path].shape)
        if "{}" not in pattern:
            yield pattern, path, None, turn, file_shape(shape, turn, config)
            continue
        for layer in range(shape[0]):
            yield pattern.format(layer), path, layer, turn, file_shape(shape[1:], turn, config)


def _stored_tensors(folder: Path) -> Iterator[tuple[Path, str, np.ndarray]]:
    """(file, key, tensor) of every tensor of the folder, file by file."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no *.safetensors file found")
    for file in files:
        try:
            with safe_open(file, framework="np") as handle:
                for key in handle.keys():  # noqa: SIM118 (not a mapping)
                    yield file, key, handle.get_tensor(key)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{file}: not a complete safetensors file ({error})") from error
