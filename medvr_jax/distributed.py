"""One run on several processes: how they find each other, which rows of a batch are whose, what they tell each other.

Every process runs the same program in the same order. What it prepares and reads are the rows of a batch (axis B) that
lie on its own devices. All that goes from host to host passes through the functions below, which every process must
call alike; with one process they do nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from medvr_jax.errors import UserError
from medvr_jax.processes import COORDINATOR, COUNT, Processes

_CHUNK = 1 << 18  # bytes that each process sends at a time: one shape, compiled once
_SHUTDOWN_SECONDS = 60  # a process that fails alone waits this long for the others, which ends them too


class SharedError(UserError):
    """A UserError that all processes raise alike."""


# ------------------------------------------------------------------------------------------------ finding each other


def initialise(processes: Processes) -> None:
    """Joins the other processes; before jax makes its backends. Only process 0 goes on to use standard output."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which shall end a process
    by_hand = {
        "coordinator_address": processes.coordinator,
        "num_processes": processes.count,
        "process_id": processes.number,
        "cluster_detection_method": "deactivate",
    }
    try:
        jax.distributed.initialize(
            **(by_hand if processes.coordinator else {}), shutdown_timeout_seconds=_SHUTDOWN_SECONDS
        )
    except (ValueError, KeyError) as error:  # of jax's detection; one that cannot connect is a RuntimeError
        raise UserError(
            f"{COUNT}: found 'auto', but jax detects no TPU pod, SLURM step or Open MPI job here ({error});"
            f" give a number, with {COORDINATOR}"
        ) from error
    if not is_main():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)


def is_main() -> bool:
    """Whether this is process 0, which writes what the run leaves."""
    return jax.process_index() == 0


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Around a whole run: the processes leave when all are done, and one that fails alone does so at once.

    It does not wait for the others as jax would: they see a connection break, or jax's heartbeat stop (100 s).
    """
    try:
        yield
        multihost_utils.sync_global_devices("end of the run")  # process 0 may still be writing
    except SharedError:
        raise
    except UserError as error:
        _leave(f"medvr_jax: {error}", 2)
    except KeyboardInterrupt:
        _leave("medvr_jax: interrupted", 130)
    except BaseException:
        _leave(traceback.format_exc(), 1)


def _leave(last_words: str, status: int) -> None:
    print(last_words.rstrip(), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


# --------------------------------------------------------------------------------------------------- rows of a batch


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a batch that are this process's to prepare and to read.

    Attributes:
        total: B, rows of the whole batch.
        here: their indices, ascending.
        mine: bool for each of them; false where a process of a lower number holds the row too and speaks for it.
    """

    total: int
    here: np.ndarray
    mine: np.ndarray


def rows_of(sharding: NamedSharding, total: int) -> Rows:
    """The share of this process in `total` rows that are laid out like this."""
    speaker = np.full(total, jax.process_count())
    here = np.zeros(total, bool)
    for device, (rows, *_) in sharding.devices_indices_map((total,)).items():
        speaker[rows] = np.minimum(speaker[rows], device.process_index)
        here[rows] |= device.process_index == jax.process_index()
    indices = np.flatnonzero(here)
    return Rows(total, indices, speaker[indices] == jax.process_index())


def put_rows(tree: Any, sharding: NamedSharding) -> Any:
    """This process's rows, host arrays `[rows here, ...]`, as its share of device arrays `[B, ...]`."""
    return jax.make_array_from_process_local_data(sharding, tree)


def read_rows(tree: Any, sharding: NamedSharding) -> Any:
    """Of device arrays `[B, ...]` this process's rows `[rows here, ...]` on the host; the inverse of `put_rows`."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(lambda leaf: _shards_here(jax.device_put(leaf, sharding)), tree)


def _shards_here(array: jax.Array) -> np.ndarray:
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


# ------------------------------------------------------------------------------------------- telling and being told


def gather_rows(arrays: Mapping[str, np.ndarray], rows: Rows) -> dict[str, np.ndarray]:
    """Host arrays `[rows here, ...]` of every process as arrays `[B, ...]`, on all processes."""
    if jax.process_count() == 1:
        return dict(arrays)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{name: array[rows.mine] for name, array in arrays.items()})
    parts = [np.load(io.BytesIO(part), allow_pickle=False) for part in gather_bytes(file.getvalue())]
    places = [np.array(place, np.int64) for place in gather_json(rows.here[rows.mine].tolist())]
    order = np.argsort(np.concatenate(places))
    return {name: np.concatenate([part[name] for part in parts])[order] for name in arrays}


def gather_json(value: Any) -> list[Any]:
    """Every process's value, in the order of the processes; values are plain JSON."""
    if jax.process_count() == 1:
        return [value]
    return [json.loads(part) for part in gather_bytes(json.dumps(value).encode())]


def gather_bytes(payload: bytes) -> list[bytes]:
    """Every process's bytes, in the order of the processes."""
    lengths = multihost_utils.process_allgather(np.int32(len(payload)))
    parts = [bytearray() for _ in lengths]
    for start in range(0, int(lengths.max()), _CHUNK):
        piece = np.frombuffer(payload[start : start + _CHUNK].ljust(_CHUNK, b"\0"), np.uint8)
        for part, found in zip(parts, multihost_utils.process_allgather(piece), strict=True):
            part += found.tobytes()
    return [bytes(part[:length]) for part, length in zip(parts, lengths, strict=True)]


def largest(*numbers: int) -> tuple[int, ...]:
    """Of each number the largest that a process has."""
    if jax.process_count() == 1:
        return numbers
    return tuple(multihost_utils.process_allgather(np.array(numbers, np.int32)).max(axis=0).tolist())


def any_process(flag: bool) -> bool:
    """Whether the flag is true on some process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.bool_(flag)).any())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A UserError of one process within becomes that of all at the end; nothing within may wait for other processes."""
    if jax.process_count() == 1:
        yield
        return
    message = ""
    try:
        yield
    except UserError as error:
        message = str(error)
    messages = [text for text in gather_json(message) if text] if any_process(bool(message)) else []
    if messages:
        raise SharedError(messages[0])
