"""What devices can do at most: published for those that jax names, measured for a CPU."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from medvr_jax import devices, programs
from medvr_jax.hardware import CHIPS, GIB, chip_of_kind


def described(kind: str, process: int = 0, peak_bytes: int | None = None) -> SimpleNamespace:
    """As much of a device as is asked for here."""
    stats = None if peak_bytes is None else {"peak_bytes_in_use": peak_bytes}
    platform = "cpu" if kind == "cpu" else "tpu"
    return SimpleNamespace(platform=platform, device_kind=kind, process_index=process, memory_stats=lambda: stats)


def test_published_limits() -> None:
    """By the names that jax gives the devices (jax._src.pallas.mosaic.tpu_info and NVIDIA's drivers)."""
    assert devices.limits([described("TPU v5 lite")] * 8) == (8 * 197e12, 8 * 819e9)
    assert devices.limits([described("TPU v5")] * 4) == (4 * 459e12, 4 * 2765e9)
    assert devices.limits([described("NVIDIA H100 80GB HBM3")]) == (989e12, 3350e9)
    assert devices.limits([described("NVIDIA GeForce GTX 680")]) is None
    kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds) >= len(CHIPS)
    assert all(chip_of_kind(kind).name == name for name, chip in CHIPS.items() for kind in chip.kinds)


def test_a_cpu_is_measured_once() -> None:
    """Of the right size, the same for any number of devices of one process, twice as much for two processes."""
    found = devices.limits(jax.devices())
    assert 1e8 < found.peak < 1e14 and 1e7 < found.bandwidth < 2e12
    before = programs.compilations()
    assert devices.limits(jax.devices()[:1]) == found
    assert programs.compilations() == before
    both = devices.limits([described("cpu", process=0), described("cpu", process=1)])
    assert both == (2 * found.peak, 2 * found.bandwidth)


def test_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock on which everything takes 50 ms: a product of 1024 x 1024 matrices, and 128 MiB read."""
    ticks = itertools.count()
    monkeypatch.setattr(devices.time, "perf_counter", lambda: 0.05 * next(ticks))
    found = devices.measured_cpu.__wrapped__()
    assert found.peak == pytest.approx(2 * 1024**3 / 0.05)
    assert found.bandwidth == pytest.approx(2**27 / 0.05)


def test_peak_memory() -> None:
    counted = [described("TPU v4", peak_bytes=3 * GIB), described("TPU v4", peak_bytes=5 * GIB)]
    assert devices.peak_memory(counted) == {"peak_gib": 5.0}
    before = devices.peak_memory(jax.devices())["peak_process_gib"]
    held = np.ones(1 << 28, np.uint8)  # a quarter of a GiB, every page touched
    after = devices.peak_memory(jax.devices())["peak_process_gib"]
    assert held.nbytes / GIB == 0.25 and after >= before
    del held
    assert devices.peak_memory(jax.devices())["peak_process_gib"] == pytest.approx(after, abs=0.01)
