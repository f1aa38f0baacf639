"""Finished runs of an experiment, `WORKDIR/runs/ARM/seed_S.jsonl` each. No jax in this file.

The first line says what the run was, then come its rows as in `metrics.jsonl`, and the last line holds what its final
policy looked at. A file appears when its run is complete, so that its existence means done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvr_jax.errors import UserError
from medvr_jax.experiments.options import ACCURACY, KEPT
from medvr_jax.experiments.statistics import area
from medvr_jax.reports.metrics import json_line, read_json_lines
from medvr_jax.workdir import RUNS, write_atomically

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        arm, seed: which.
        config: that of the arm, as JSON holds it.
        model: fingerprint of the model folder.
        seconds: that the run took.
        rows: one for each step, and one for the evaluation after the last.
        looks: of each zoom of the final greedy evaluation the mean entropy of its coordinates in nats, and the IoU of
            its box with the true one; without those that have not both.
    """

    arm: str
    seed: int
    config: Mapping[str, Any]
    model: str
    seconds: float
    rows: Sequence[Row]
    looks: Sequence[tuple[float, float]]

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of the rows that have a number there."""
        return [(row["step"], row[key]) for row in self.rows if row.get(key) is not None]

    def final(self, key: str) -> float | None:
        """The value in the last row, that of the evaluation at the end."""
        return self.rows[-1].get(key)

    @property
    def area(self) -> float:
        """Under the curve of the held-out accuracy: its mean over the steps."""
        return area(self.curve(ACCURACY))


def run_file(folder: Path, arm: str, seed: int) -> Path:
    """Where a run goes."""
    return folder / RUNS / arm / f"seed_{seed}.jsonl"


def kept(row: Row) -> dict[str, Any]:
    """What of a row of training stays."""
    return {name: value for name, value in row.items() if name in ("step", "time/step") or name.startswith(KEPT)}


def write_run(file: Path, run: Run) -> None:
    """The whole file at once."""
    first = {name: getattr(run, name) for name in ("arm", "seed", "seconds", "model", "config")}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "".join(map(json_line, [first, *run.rows, {"looks": run.looks}])))


def read_run(file: Path) -> Run:
    """A finished run; UserError where the file is not one."""
    lines = read_json_lines(file)
    try:
        first, *rows, last = lines
        if not rows:
            raise ValueError("no rows")
        return Run(**first, rows=rows, looks=[(entropy, iou) for entropy, iou in last["looks"]])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: is not a finished run ({error}); remove it, and the same command does it again"
        ) from None
