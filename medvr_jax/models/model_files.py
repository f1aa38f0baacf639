"""Which safetensors files a model folder has, and what is in them: headers only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from medvr_jax.errors import UserError
from medvr_jax.models.safetensors_file import CODES, StoredTensor, read_header
from medvr_jax.models.weight_names import canonical

INDEX = "model.safetensors.index.json"


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder by its canonical name.

    With an index, exactly the files and tensors that it names; without, all *.safetensors files.

    Raises:
        UserError: for a damaged file or index, and for a tensor that is there twice.
    """
    index = folder / INDEX
    if index.is_file():
        tensors = _indexed(index)
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"{folder}: no *.safetensors file found")
        tensors = [tensor for file in files for tensor in read_header(file)]
    found: dict[str, StoredTensor] = {}
    for tensor in tensors:
        other = found.setdefault(canonical(tensor.key), tensor)
        if other is not tensor:
            raise UserError(f"{tensor.file}: tensor {tensor.key} is also in {other.file}, as {other.key}")
    _refuse_two_halves(found.values())
    return found


def stored_dtypes(folder: Path) -> dict[str, np.dtype]:
    """The dtype of every tensor of the folder by its canonical name."""
    return {name: tensor.dtype for name, tensor in stored_tensors(folder).items()}


def _indexed(index: Path) -> list[StoredTensor]:
    fields = _read_index(index)
    places: dict[str, str] = fields["weight_map"]
    for key, name in places.items():
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: names the file {name} for tensor {key}, but there is no such file")
    tensors: list[StoredTensor] = []
    for name in sorted(set(places.values())):
        file = index.parent / name
        named = [key for key, place in places.items() if place == name]
        inside = {tensor.key: tensor for tensor in read_header(file)}
        for key in named:
            if key not in inside:
                raise UserError(f"{index}: names the file {name} for tensor {key}, which is not in it")
        for key in inside:
            if places.get(key) != name:
                raise UserError(f"{file}: tensor {key} is not named by {index.name}")
        tensors += inside.values()
    total, size = fields.get("metadata", {}).get("total_size"), sum(tensor.byte_count for tensor in tensors)
    # Some writers count a tied head, or keep the size of another dtype: a factor of two is no damage.
    if total is not None and (type(total) not in (int, float) or not size / 2 <= total <= 2 * size):
        raise UserError(f"{index}: metadata.total_size is {total!r}, but the tensors have {size} bytes")
    return tensors


def _read_index(index: Path) -> dict[str, Any]:
    try:
        fields = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{index}: not a readable JSON file ({error})") from error
    places = fields.get("weight_map") if isinstance(fields, dict) else None
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: has no weight_map, which says the file of each tensor")
    for key, name in places.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index}: weight_map gives tensor {key} the file {name!r}, allowed are files beside it")
    if not isinstance(fields.get("metadata", {}), dict):
        raise UserError(f"{index}: metadata is {fields['metadata']!r}, allowed is an object")
    return fields


def _refuse_two_halves(tensors: Iterable[StoredTensor]) -> None:
    """No model has float16 beside bfloat16: one of the two is a wrong name for the other's bits."""
    kinds: dict[str, list[StoredTensor]] = {"F16": [], "BF16": []}
    for tensor in tensors:
        kinds.get(CODES[tensor.dtype], []).append(tensor)
    if all(kinds.values()):
        odd, other = sorted(kinds, key=lambda code: len(kinds[code]))
        tensor = kinds[odd][0]
        raise UserError(
            f"{tensor.file}: tensor {tensor.key} has dtype {odd}, allowed are {other} and F32, as the folder's others"
        )
