"""How many processes share a run, read from the environment. No jax in this file.

Nothing is set: one process. `MEDVR_PROCESSES=auto`: jax finds the others itself (TPU pods, SLURM, Open MPI). By hand,
the same for all but the number: `MEDVR_PROCESSES=2 MEDVR_PROCESS_ID=0 MEDVR_COORDINATOR=host:port`, where the host is
that of process 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from medvr_jax.errors import UserError

COUNT, NUMBER, COORDINATOR = "MEDVR_PROCESSES", "MEDVR_PROCESS_ID", "MEDVR_COORDINATOR"


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        count: how many; None where jax finds out.
        number: this one's, from 0; None likewise.
        coordinator: `host:port` at which process 0 listens; None for one process and where jax finds out.
    """

    count: int | None
    number: int | None
    coordinator: str | None

    @property
    def several(self) -> bool:
        """Whether there are others to be found."""
        return self.count != 1


def read_processes(environment: Mapping[str, str]) -> Processes:
    """The processes that the environment names; UserError where it contradicts itself."""
    count, number, coordinator = (environment.get(name, "") for name in (COUNT, NUMBER, COORDINATOR))
    if count in ("", "auto"):
        for name, text in ((NUMBER, number), (COORDINATOR, coordinator)):
            if text:
                raise UserError(f"{name}: found {text!r} with {COUNT}={count!r}; it needs a number of processes there")
        return Processes(None, None, None) if count else Processes(1, 0, None)
    total = _whole(COUNT, count, 1)
    if total == 1:
        return Processes(1, 0, None)
    index = _whole(NUMBER, number, 0)
    if index >= total:
        raise UserError(f"{NUMBER}: found {index}, allowed is 0 to {total - 1} ({COUNT}={total})")
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(f"{COORDINATOR}: found {coordinator!r}, needed is HOST:PORT of process 0")
    return Processes(total, index, coordinator)


def _whole(name: str, text: str, low: int) -> int:
    if not text.isdecimal() or int(text) < low:
        also = " or auto" if name == COUNT else ""
        raise UserError(f"{name}: found {text!r}, allowed is a whole number of {low} or more{also}")
    return int(text)
