"""Traces of chosen steps: written, readable, and of the steps that were asked for only."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from medvr_jax.training.profiling import profiled


def events(folder: Path) -> tuple[set[str], set[str]]:
    """Names of the events in the two files of a step's trace: for XProf, and for Perfetto."""
    (binary,) = folder.rglob("*.xplane.pb")
    (text,) = folder.rglob("*.trace.json.gz")
    planes = jax.profiler.ProfileData.from_file(str(binary)).planes
    drawn = json.loads(gzip.decompress(text.read_bytes()))["traceEvents"]
    return {event.name for plane in planes for line in plane.lines for event in line.events}, {
        event["name"] for event in drawn if event.get("ph") == "X"
    }


def test_steps_that_were_asked_for(tmp_path: Path) -> None:
    program = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, y: jnp.tanh(y @ x), x))
    x = jnp.full((64, 64), 0.1)
    program(x)
    for step in range(3):
        began = time.perf_counter()
        with profiled(tmp_path, step, (1,)) as trace:
            jax.block_until_ready(program(x))
            time.sleep(0.2)
        passed = time.perf_counter() - began
        # What the profiler took is told apart from what was done within.
        assert (0.0 < trace.seconds < passed - 0.2) if step == 1 else trace.seconds == 0.0
    assert [folder.name for folder in (tmp_path / "profile").iterdir()] == ["step_000001"]
    for names in events(tmp_path / "profile/step_000001"):
        assert any("tanh" in name for name in names), names
