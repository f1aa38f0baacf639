"""Traces of chosen steps by `jax.profiler`, one folder per step, for TensorBoard, XProf or Perfetto."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import jax

FOLDER = "profile"


@dataclasses.dataclass
class Trace:
    """What the profiler itself took: `seconds` to begin and, once the step is over, to write; 0 without a trace."""

    seconds: float = 0.0


@contextlib.contextmanager
def profiled(workdir: Path, step: int, steps: Collection[int]) -> Iterator[Trace]:
    """Traces what is done within, if `step` is one of `steps`, into workdir/profile/step_NNNNNN/.

    Every process writes its own file. Devices and the runtime are traced, Python's own calls are not: there are too
    many of them to be read, and they would slow down what is measured.
    """
    trace = Trace()
    if step not in steps:
        yield trace
        return
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    began = time.perf_counter()
    with jax.profiler.trace(workdir / FOLDER / f"step_{step:06d}", profiler_options=options):
        trace.seconds = time.perf_counter() - began
        yield trace
        began = time.perf_counter()
    trace.seconds += time.perf_counter() - began
