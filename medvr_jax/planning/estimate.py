"""From programs, compiled or not, to memory, roofline times and totals."""

from __future__ import annotations

import dataclasses

from medvr_jax.hardware import Chip
from medvr_jax.planning import costs, memory
from medvr_jax.planning.compiler import Compiled
from medvr_jax.planning.costs import Cost, device_bytes
from medvr_jax.planning.programs import Program
from medvr_jax.training.abstract import AbstractRun


@dataclasses.dataclass(frozen=True)
class Row:
    """One program on one device: bytes by use, work and time.

    Attributes:
        name, runs: as in `programs.Program`.
        alive: bytes of all arrays that exist meanwhile, by use.
        outputs, temporaries: new results, and what is gone afterwards; from the compiler where there is one.
        cost: work by arithmetic.
        compiled: what the compiler says; None without one.
        seconds: roofline of one execution (of one token for decode); None where the hardware is not known.
        bound: what the time is bound by.
    """

    name: str
    runs: int
    alive: dict[str, float]
    outputs: float
    temporaries: float
    cost: Cost
    compiled: Compiled | None
    seconds: float | None
    bound: str

    @property
    def total(self) -> float:
        """Bytes of a device's memory while it runs."""
        return sum(self.alive.values()) + self.outputs + self.temporaries


def row(program: Program, cost: Cost, temporaries: float, chip: Chip | None, compiled: Compiled | None = None) -> Row:
    """The figures of a program; `temporaries` by arithmetic serve where nothing was compiled."""
    alive = {use: float(device_bytes(tree)) for use, tree in program.alive.items()}
    outputs = float(device_bytes(program.produced))
    if compiled is not None:
        temporaries = float(compiled.temporaries)
        if compiled.fits:
            # The compiler pads arrays to its tiles; arguments that a program does not use stay alive all the same.
            padding = max(compiled.arguments - device_bytes(program.arguments), 0)
            alive["batch"] = alive.get("batch", 0.0) + padding
            outputs = float(compiled.outputs - compiled.aliased)
    seconds, bound = None, ""
    if chip is not None:
        limits = {"operations": cost.operations / chip.peak, "memory": cost.bytes / chip.bandwidth}
        if compiled is not None and compiled.traffic is not None:
            limits["interconnect"] = compiled.traffic.total / chip.interconnect
        bound = max(limits, key=limits.__getitem__)
        seconds = limits[bound]
    return Row(program.name, program.runs, alive, outputs, temporaries, cost, compiled, seconds, bound)


def rows_by_arithmetic(run: AbstractRun, programs: list[Program], chip: Chip | None) -> list[Row]:
    """All programs without a compiler."""
    work, scratch = costs.costs(run), memory.temporaries(run)
    return [row(program, work[program.name], scratch[program.name], chip) for program in programs]


def peak(rows: list[Row]) -> Row:
    """The program that needs most memory."""
    return max(rows, key=lambda row: row.total)


def seconds_by_phase(rows: list[Row]) -> dict[str, float]:
    """Of one training step."""
    return {row.name: row.seconds * row.runs for row in rows if row.seconds is not None}
