"""What a benchmark leaves behind: a Markdown table on the screen, and a JSON file with everything that led to it."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from tests.benchmarks import measure

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "trl", "shapely")


def parser(description: str, runs: int = 5) -> argparse.ArgumentParser:
    """The arguments that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--runs", type=int, default=runs, help="paired runs that count")
    made.add_argument(
        "--wait", type=float, default=measure.QUIET.seconds, metavar="SECONDS",
        help="at most before each round, for others to leave the machine alone; 0 = never, and no round is run again",
    )  # fmt: skip
    made.add_argument("--keep_memory", action="store_true", help="with the malloc settings of launch/quickstart.sh")
    made.add_argument("--output", default=None, help="folder for the JSON file; none is written without it")
    return made


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a table; numbers are aligned to the right."""
    names = list(rows[0])
    sides = ["---:" if isinstance(rows[0][name], int | float) else "---" for name in names]
    lines = [names, sides, *([_shown(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def versions() -> dict[str, str]:
    """Of Python and of what takes part."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The devices that the figures are of."""
    device = jax.devices()[0]
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "processor": names[0].split(":", 1)[1].strip() if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "environment": {
            key: value for key, value in os.environ.items() if key.startswith(("MALLOC_", "XLA_", "GLIBC_"))
        },
    }


def report(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    protocol: str,
    sizes: Mapping[str, Any],
    seconds: Mapping[str, Any],
    output: str | None,
    figures: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Prints the table; writes NAME.json into `output`, when it is given, with all of this; returns what was written.

    Args:
        rows: the table.
        protocol: how the times were taken, in words.
        sizes: shapes of models and inputs.
        seconds: the times themselves, run by run.
        figures: what else was measured.
    """
    found = {
        "benchmark": name,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "when": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "machine": machine(),
        "versions": versions(),
        "protocol": protocol,
        "others": dataclasses.asdict(measure.QUIET),
        "sizes": dict(sizes),
        "table": [dict(row) for row in rows],
        "figures": dict(figures or {}),
        "seconds": dict(seconds),
    }
    print(markdown(rows), flush=True)
    if output:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
