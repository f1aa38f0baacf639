"""Traces of chosen steps by `jax.profiler`, one folder per step, for TensorBoard, XProf or Perfetto."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

import jax

FOLDER = "profile"


@contextlib.contextmanager
def profiled(workdir: Path, step: int, steps: Collection[int]) -> Iterator[None]:
    """Traces what is done within, if `step` is one of `steps`, into workdir/profile/step_NNNNNN/.

    Every process writes its own file. Devices and the runtime are traced, Python's own calls are not: there are too
    many of them to be read, and they would slow down what is measured.
    """
    if step not in steps:
        yield
        return
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(workdir / FOLDER / f"step_{step:06d}", profiler_options=options):
        yield
