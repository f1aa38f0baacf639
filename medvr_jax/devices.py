"""The devices of this process: how they begin, what they can do at most, and how much memory was used.

Published figures where the table in `hardware.py` has the device. A CPU is measured once, in a fraction of a second.
"""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medvr_jax import programs
from medvr_jax.hardware import GIB, chip_of_kind

_RUNS, _SECONDS = 4, 0.08  # that each measurement takes at least
_SIDE = 1024  # of the matrices whose product is measured
_BYTES, _WIDTH = 1 << 27, 8192  # of the matrix whose reading is measured, more than caches hold; and its rows' width


class Limits(NamedTuple):
    """Of all devices together: floating-point operations, and bytes to and from memory, per second."""

    peak: float
    bandwidth: float


def start_devices(count: int, cache: str) -> None:
    """Divides a CPU host into `count` devices and keeps compiled programs in `cache`, see `programs.keep_programs`.

    This must come before jax makes its backends.
    """
    if count > 1:
        jax.config.update("jax_num_cpu_devices", count)
    programs.keep_programs(cache)


def limits(devices: Sequence[jax.Device]) -> Limits | None:
    """What the devices of a run (of all its processes) can do at most; None for a kind that is not known.

    The published peak is that of bfloat16, whatever the run computes in; a CPU's is that of float32, which it computes
    everything in.
    """
    if devices[0].platform == "cpu":
        # A process's CPU devices share its cores, so what one process has does not grow with their number.
        processes = len({device.process_index for device in devices})
        peak, bandwidth = measured_cpu()
        return Limits(processes * peak, processes * bandwidth)
    chip = chip_of_kind(devices[0].device_kind)
    return Limits(len(devices) * chip.peak, len(devices) * chip.bandwidth) if chip else None


@functools.cache
def measured_cpu() -> Limits:
    """Of the cores that XLA uses here: a float32 product, and one that reads what no cache holds; the best of a few."""
    device = jax.local_devices(backend="cpu")[0]
    square = jax.device_put(np.ones((_SIDE, _SIDE), np.float32), device)
    rows = jax.device_put(np.ones((_BYTES // 4 // _WIDTH, _WIDTH), np.float32), device)
    vector = jax.device_put(np.ones(_WIDTH, np.float32), device)
    product = jax.jit(jnp.matmul)

    def best(left: jax.Array, right: jax.Array) -> float:
        """Seconds of the quickest of several runs; the first one compiles."""
        product(left, right).block_until_ready()
        spent: list[float] = []
        while len(spent) < _RUNS or sum(spent) < _SECONDS:
            began = time.perf_counter()
            product(left, right).block_until_ready()
            spent.append(time.perf_counter() - began)
        return min(spent)

    return Limits(2 * _SIDE**3 / best(square, square), rows.nbytes / best(rows, vector))


def describe_devices() -> str:
    """All devices of the run, and with what they are driven: "2 cpu devices of 1 process, jax 0.10.2, Python 3.11"."""
    devices, processes = jax.device_count(), jax.process_count()
    return (
        f"{devices} {jax.devices()[0].device_kind} device{'s' if devices > 1 else ''} of {processes} "
        f"process{'es' if processes > 1 else ''}, jax {jax.__version__}, Python {platform.python_version()}"
    )


def peak_memory(devices: Sequence[jax.Device]) -> dict[str, float]:
    """GiB: `peak_gib`, the most that one of these devices has held so far; where they do not count, as on a CPU,
    `peak_process_gib`, the most that this whole process has."""
    counted = [stats["peak_bytes_in_use"] for device in devices if (stats := device.memory_stats())]
    if counted:
        return {"peak_gib": max(counted) / GIB}
    process = _peak_resident()
    return {"peak_process_gib": process / GIB} if process else {}


def _peak_resident() -> int:
    """Bytes, by Linux' own count; 0 on other systems."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")), 0)
    except OSError:
        return 0
