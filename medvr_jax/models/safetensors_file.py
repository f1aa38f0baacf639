"""Safetensors files by byte ranges: a header says where each tensor lies, and only what is asked for is read.

The format: 8 bytes with the header's length (little endian), the header (JSON: dtype, shape and offsets of each
tensor), the tensors' bytes. All of a header is checked before a byte of a tensor is read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax.numpy as jnp
import numpy as np

from medvr_jax.errors import UserError

DTYPES: dict[str, np.dtype] = {"F32": jnp.dtype("float32"), "F16": jnp.dtype("float16"), "BF16": jnp.dtype("bfloat16")}
CODES = {dtype: code for code, dtype in DTYPES.items()}
LENGTH_BYTES = 8
LONGEST_HEADER = 100_000_000  # what the format's own library accepts
Range = tuple[int, int]  # first, one after the last


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; `offset` counts from the file's beginning."""

    file: Path
    key: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def byte_count(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of a file in the order of their bytes; UserError unless header and file agree in every byte."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as handle:
            start = handle.read(LENGTH_BYTES)
            length = int.from_bytes(start, "little") if len(start) == LENGTH_BYTES else 0
            if length > LONGEST_HEADER or LENGTH_BYTES + length > size:
                raise _incomplete(file, f"found {size} bytes, its header alone needs {LENGTH_BYTES + length}")
            text = handle.read(length)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    try:
        header = json.loads(text, object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise _incomplete(file, f"{size} bytes with a header of {length} that is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise _incomplete(file, f"its header is a JSON {type(header).__name__}, an object is needed")
    header.pop("__metadata__", None)
    begin = LENGTH_BYTES + length
    tensors = sorted((_stored(file, key, fields, begin) for key, fields in header.items()), key=lambda t: t.offset)
    end = begin
    for tensor in tensors:
        if tensor.offset != end and tensor.byte_count:
            kind = "overlaps the one before" if tensor.offset < end else "leaves bytes unused before"
            raise _incomplete(file, f"tensor {tensor.key} {kind} it")
        end = max(end, tensor.offset + tensor.byte_count)
    if end != size:
        raise _incomplete(file, f"found {size} bytes, its header needs {end}")
    return tensors


def _stored(file: Path, key: str, fields: Any, begin: int) -> StoredTensor:
    code, shape, offsets = (fields.get(name) if isinstance(fields, dict) else None for name in _FIELDS)
    if not isinstance(code, str) or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise _incomplete(file, f"tensor {key} is described by {fields!r}, {', '.join(_FIELDS)} are needed")
    if code not in DTYPES:
        raise UserError(f"{file}: tensor {key} has dtype {code}, allowed are {', '.join(DTYPES)}")
    tensor = StoredTensor(file, key, DTYPES[code], tuple(shape), begin + offsets[0])
    if offsets[1] - offsets[0] != tensor.byte_count:
        raise _incomplete(
            file,
            f"tensor {key} of dtype {code} and shape {shape} needs {tensor.byte_count} bytes,"
            f" its offsets {offsets} hold {offsets[1] - offsets[0]}",
        )
    return tensor


_FIELDS = ("dtype", "shape", "data_offsets")


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands there twice")
    return fields


def _incomplete(file: Path, why: str) -> UserError:
    return UserError(f"{file}: not a complete safetensors file ({why})")


def header_bytes(tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> tuple[bytes, dict[str, int]]:
    """The beginning of a file that holds these tensors in this order, and where in the file each of them starts."""
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        offsets[name] = end
        end += math.prod(shape) * dtype.itemsize
        fields[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offsets[name], end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)  # tensors begin aligned
    start = LENGTH_BYTES + len(text)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, {name: start + at for name, at in offsets.items()}


class TensorReader:
    """Reads parts of tensors. Files stay open until the end of the `with` block; nothing is mapped into memory."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            os.close(file)

    def read(self, tensor: StoredTensor, width: int, rows: Sequence[Range], columns: Range) -> np.ndarray:
        """[rows, columns] of the tensor seen as a matrix of `width` columns, in the file's dtype."""
        first, last = columns
        count, item = sum(stop - start for start, stop in rows), tensor.dtype.itemsize
        raw = np.empty((count, (last - first) * item), np.uint8)
        done = 0
        for start, stop in rows:
            if last - first == width:
                self._fill(tensor, raw[done : done + stop - start].reshape(-1), start * width * item)
            else:
                for row in range(start, stop):
                    self._fill(tensor, raw[done + row - start], (row * width + first) * item)
            done += stop - start
        return raw.view(tensor.dtype)

    def _fill(self, tensor: StoredTensor, target: np.ndarray, offset: int) -> None:
        try:
            if tensor.file not in self._files:
                self._files[tensor.file] = os.open(tensor.file, os.O_RDONLY)
            view, offset = memoryview(target), tensor.offset + offset
            while view:
                if not (got := os.preadv(self._files[tensor.file], [view], offset)):
                    raise _incomplete(tensor.file, f"it ends inside tensor {tensor.key}")
                view, offset = view[got:], offset + got
        except OSError as error:
            raise UserError(f"{tensor.file}: cannot be read ({error.strerror})") from error
