"""Where the figures of a run go while it runs: `metrics.jsonl` always, other sinks where the configuration asks.

`metrics.jsonl` is the record, and what is wrong with it is wrong with the run. Any other sink that cannot be opened,
or that fails later, costs one line of warning and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from medvr_jax.reports.metrics import MetricsWriter
from medvr_jax.reports.shown import ShownGroup, shown_groups

Row = Mapping[str, Any]


class Sink(Protocol):
    """What takes figures, pictures and texts of a step. Everything of a step comes before its row."""

    def show(self, step: int, groups: Sequence[ShownGroup]) -> None:
        """Groups of a step whose rollouts are recorded."""

    def write(self, row: Row) -> None:
        """A row of `metrics.jsonl`."""

    def close(self, failed: bool) -> None:
        """Everything is on its way when this returns. `failed`: whether the run ended by an error."""


# Opens a sink that is given the rows before the step that the run goes on with.
Opener = Callable[[Sequence[Row]], Sink]


class Sinks:
    """`metrics.jsonl` and the sinks beside it; a context manager."""

    def __init__(self, workdir: str | Path, resume_step: int = 0, openers: Mapping[str, Opener] | None = None) -> None:
        """
        Args:
            workdir: the run's folder.
            resume_step: the next step to be done; see `MetricsWriter`.
            openers: further sinks by the configuration's field that asks for them.
        """
        self._metrics = MetricsWriter(workdir, resume_step)
        self._sinks: dict[str, Sink] = {}
        for field, opener in (openers or {}).items():
            try:
                self._sinks[field] = opener(self._metrics.kept)
            except Exception as error:  # a package that is not installed, a service that does not answer, a full disk
                _warn(field, error)

    def show(self, step: int, records: Sequence[Mapping[str, Any]], images: Mapping[str, Any]) -> None:
        """Pictures and texts of the groups whose images are given; see `shown_groups`."""
        if self._sinks:
            groups = shown_groups(records, images)
            self._each(lambda sink: sink.show(step, groups))

    def write(self, row: Row) -> None:
        """A row of figures (it must have a `step`), which is in `metrics.jsonl` when this returns."""
        self._metrics.write(row)
        self._each(lambda sink: sink.write(row))

    def close(self, failed: bool = False) -> None:
        self._metrics.close()
        self._each(lambda sink: sink.close(failed))

    def _each(self, does: Callable[[Sink], None]) -> None:
        for field, sink in list(self._sinks.items()):
            try:
                does(sink)
            except Exception as error:  # whatever it is, the run is worth more
                del self._sinks[field]
                _warn(field, error)

    def __enter__(self) -> Sinks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(kind is not None)


def open_sinks(config: Any, workdir: str | Path, resume_step: int) -> Sinks:
    """The sinks that section `report` asks for. Their packages are imported here, and only then."""
    workdir, report = Path(workdir), config.report
    openers: dict[str, Opener] = {}

    def tensorboard(rows: Sequence[Row]) -> Sink:
        from medvr_jax.reports.tensorboard import TensorBoard

        return TensorBoard(workdir / "tensorboard", resume_step, rows)

    def wandb(rows: Sequence[Row]) -> Sink:
        from medvr_jax.reports.weights_and_biases import WeightsAndBiases

        return WeightsAndBiases(config, workdir, resume_step, rows)

    if report.tensorboard:
        openers["report.tensorboard"] = tensorboard
    if report.wandb != "off":
        openers["report.wandb"] = wandb
    return Sinks(workdir, resume_step, openers)


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row without its step; texts, truth values and what is missing are no curve."""
    return {
        name: float(value)
        for name, value in row.items()
        if name != "step" and not isinstance(value, bool | str) and value is not None
    }


def _warn(field: str, error: Exception) -> None:
    if isinstance(error, ModuleNotFoundError):
        reason = f"package {error.name} is not installed (pip install -r requirements-extras.txt)"
    else:
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
    print(f"medvr_jax: {field}: {reason}; the run goes on without it", file=sys.stderr, flush=True)
