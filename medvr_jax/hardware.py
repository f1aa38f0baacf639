"""Accelerators by name: published memory, peaks and bandwidths, and what `--topology=NAME:SHAPE` stands for.

All figures are per device as JAX counts them (a v4 or v5p chip with its two cores is one) and are the vendors' own.
"""

from __future__ import annotations

import dataclasses
import math

from medvr_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
        name: as `--topology` has it.
        memory: bytes of its memory that a program may use.
        peak: dense bfloat16 operations per second.
        bandwidth: bytes per second to and from its memory.
        interconnect: bytes per second that it can send to its neighbours, all links together.
        accelerator: how TPU_ACCELERATOR_TYPE names the family; "" for what libtpu does not compile for.
        cores: what the number behind that name counts per chip.
        dimensions: axes of a topology, 1 for a plain count of devices.
        kinds: what jax calls it (`Device.device_kind`).
    """

    name: str
    memory: int
    peak: float
    bandwidth: float
    interconnect: float
    accelerator: str = ""
    cores: int = 1
    dimensions: int = 1
    kinds: tuple[str, ...] = ()


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # TPUs: docs.cloud.google.com/tpu/docs, pages v4, v5e, v5p and v6e, tables of key specifications. Interconnect
        # is published for both directions together; half of it goes one way. Memory is what libtpu's compiler lets a
        # program use, by its own messages, of 32, 16, 95 and 32 GB.
        Chip("v4", int(30.75 * GIB), 275e12, 1228e9, 600e9 / 2, "v4", 2, 3, ("TPU v4",)),
        Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 400e9 / 2, "v5litepod", 1, 2, ("TPU v5 lite", "TPU v5e")),
        Chip("v5p", int(95.74 * GIB), 459e12, 2765e9, 1200e9 / 2, "v5p", 2, 3, ("TPU v5", "TPU v5p")),
        Chip("v6e", int(31.25 * GIB), 918e12, 1638e9, 800e9 / 2, "v6e", 1, 2, ("TPU v6 lite", "TPU v6e")),
        # GPUs: NVIDIA's data sheets of the A100 SXM (40 GB, 80 GB), H100 SXM, H200 SXM and L40S; peaks are dense,
        # without sparsity. NVLink's figure is for both directions; the L40S has PCIe 4.0 x16. All memory is counted.
        Chip("a100-40g", 40 * 10**9, 312e12, 1555e9, 600e9 / 2, kinds=("NVIDIA A100-SXM4-40GB",)),
        Chip("a100-80g", 80 * 10**9, 312e12, 2039e9, 600e9 / 2, kinds=("NVIDIA A100-SXM4-80GB",)),
        Chip("h100", 80 * 10**9, 989e12, 3350e9, 900e9 / 2, kinds=("NVIDIA H100 80GB HBM3",)),
        Chip("h200", 141 * 10**9, 989e12, 4800e9, 900e9 / 2, kinds=("NVIDIA H200",)),
        Chip("l40s", 48 * 10**9, 362e12, 864e9, 64e9 / 2, kinds=("NVIDIA L40S",)),
    )
}


def chip_of_kind(kind: str) -> Chip | None:
    """The chip that jax calls `kind`; None where it is not in the table."""
    return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one kind: `shape` as given, their `count`; `chip` None is this machine's processor."""

    text: str
    chip: Chip | None
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Devices."""
        return math.prod(self.shape)

    @property
    def compiles(self) -> bool:
        """Whether a compiler for it may run here."""
        return self.chip is not None and bool(self.chip.accelerator)


def parse_topology(text: str, host_devices: int = 1) -> Topology:
    """`v5p:4x4x2`, `v5e:8x8`, `h100:8` or `cpu`; a CPU has as many devices as `mesh.host_devices` says."""
    name, _, shape = text.strip().lower().partition(":")
    if name == "cpu" and not shape:
        return Topology("cpu", None, (host_devices,))
    chip = CHIPS.get(name)
    if chip is None:
        raise UserError(f"--topology: found {text!r}, known are cpu, {', '.join(CHIPS)}, e.g. v5p:4x4x2 or h100:8")
    sizes = shape.split("x")
    wanted = chip.dimensions
    if len(sizes) != wanted or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        example = {1: f"{name}:8", 2: f"{name}:4x4", 3: f"{name}:2x2x4"}[chip.dimensions]
        needed = f"{wanted} whole numbers" if wanted > 1 else "a number of devices"
        raise UserError(f"--topology: found {text!r}, {name} needs {needed} of 1 or more, e.g. {example}")
    return Topology(f"{name}:{shape}", chip, tuple(int(size) for size in sizes))
