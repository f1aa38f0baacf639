"""Compiling for TPUs that are not here, and what the compiler says of memory, work and traffic."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import time

import jax

from medvr_jax.errors import UserError
from medvr_jax.hardware import Topology
from medvr_jax.planning.collectives import Traffic, traffic
from medvr_jax.planning.programs import Program

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TOO_LARGE = (
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"),
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What XLA says of a program for one device, in bytes and operations.

    Attributes:
        seconds: lowering and compiling took so long on the wall, `processor_seconds` of all cores together.
        arguments, outputs, aliased, temporaries: its memory at its fullest moment; aliased outputs lie in arguments.
            Where it does not fit only `temporaries` is known, and `fits` is false.
        operations, accessed: floating-point operations and bytes, with the bodies of loops counted once.
        traffic: what it sends to other devices; None where it does not fit.
    """

    seconds: float
    processor_seconds: float
    fits: bool
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    operations: float = 0.0
    accessed: float = 0.0
    traffic: Traffic | None = None


def describe_devices(topology: Topology) -> list[jax.Device]:
    """The devices of a TPU topology, for compiling only; UserError when libtpu is missing or knows no such shape."""
    assert topology.chip is not None
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology: {topology.text} needs the libtpu compiler; pip install -r requirements-tpu.txt, or plan"
            " without compiling for a GPU or cpu"
        )
    from jax.experimental import topologies

    chip, shape = topology.chip, topology.shape
    # No TPU is looked for, and several plans may run side by side.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE=f"{chip.accelerator}-{topology.count * chip.cores}",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    options = {"chip_config_name": "megacore"} if chip.name == "v4" else {}  # two cores as one device
    if shape[0] % 2 or shape[1] % 2:  # fewer chips than a whole host has
        options["chips_per_host_bounds"] = (1, 1, 1)
    name = f"{chip.name}:{'x'.join(map(str, shape))}"
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology: {topology.text} is refused by libtpu: {str(error).splitlines()[0]}") from error


def compile_program(program: Program, mesh: jax.sharding.Mesh) -> Compiled:
    """Lowers and compiles; a program that does not fit into a device's memory is a result, not an error."""
    wall, processor = time.perf_counter(), time.process_time()
    with jax.set_mesh(mesh):  # only here: eager operations would run on devices that do not exist
        lowered = program.function.lower(*program.arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = bytes_needed(str(error))
        if needed is None:
            raise
        return Compiled(time.perf_counter() - wall, time.process_time() - processor, False, temporaries=needed)
    seconds = time.perf_counter() - wall, time.process_time() - processor
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        *seconds,
        fits=True,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=max(memory.peak_memory_in_bytes - memory.argument_size_in_bytes - made, 0),
        operations=cost.get("flops", 0.0),
        accessed=cost.get("bytes accessed", 0.0),
        traffic=traffic(compiled.as_text()),
    )


def bytes_needed(message: str) -> int | None:
    """What a program would need, from the compiler's refusal; None when that is about something else."""
    for pattern in _TOO_LARGE:
        found = pattern.search(message)
        if found:
            return int(float(found[1]) * _UNITS[found[2]])
    return None
