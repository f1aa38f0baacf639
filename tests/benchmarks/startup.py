"""From the command to the first update of the tiny recipe: with an empty compilation cache, and with a filled one.

    python tests/benchmarks/startup.py [--runs=5] [--config=configs/tiny_cpu.py] [--output=DIR]

Starts `python -m medvr_jax.main`, waits until `metrics.jsonl` holds the row of the first step (its update is done
then), notes the seconds since the command, and ends the run. Cold: JAX_COMPILATION_CACHE_DIR names an empty folder.
Warm: the same command again with the folder as the cold run left it. The evaluation before the first update is part of
the time; its own seconds are given too.

Asserted: the first row is of step 0 and holds a loss; a warm run's first row holds the same reward and loss as the cold
run's.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import measure, models, tables  # noqa: E402


def first_update(config: str, cache: Path, workdir: Path, limit: float, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The first row of a run's metrics, with the seconds since its command as `seconds`; the run is ended then."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "medvr_jax.main", f"--config={config}", f"--workdir={workdir}", *overrides]
    log = workdir.with_suffix(".log")
    began = time.perf_counter()
    with open(log, "w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, cwd=models.REPOSITORY, env=environment, stdout=stream, stderr=stream)
        try:
            while time.perf_counter() - began < limit:
                row = _first_row(workdir / "metrics.jsonl")
                if row is not None:
                    return row | {"seconds": time.perf_counter() - began}
                assert process.poll() is None or _first_row(workdir / "metrics.jsonl"), log.read_text()[-2000:]
                time.sleep(0.02)
        finally:
            process.terminate()
            process.wait()
    raise AssertionError(f"no update within {limit} s: {log.read_text()[-2000:]}")


def _first_row(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return json.loads(lines[0]) if lines and lines[0].endswith("\n") else None


def run(config: str, runs: int, output: str | None, limit: float, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Measures, checks and reports."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    rows: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        for index in range(runs):
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir()
            for kind in ("cold", "warm"):
                measure.QUIET.wait()
                row = first_update(config, cache, Path(folder) / f"{kind}{index}", limit, overrides)
                assert row["step"] == 0 and "train/loss" in row
                print(f"{kind}: {row['seconds']:.1f} s", file=sys.stderr, flush=True)
                seconds[kind].append(row["seconds"])
                rows[kind].append(row)
            for name in ("reward/total", "train/loss"):
                cold, warm = rows["cold"][-1][name], rows["warm"][-1][name]
                assert abs(cold - warm) <= 1e-4 * max(1.0, abs(cold)), f"{name}: {cold} cold, {warm} warm"
    table = []
    for kind, found in rows.items():
        phases = {name: [row[name] for row in found] for name in found[0] if name.startswith("time/")}
        table.append(
            {
                "compilation cache": "empty" if kind == "cold" else "filled",
                "command to first update, s": statistics.median(seconds[kind]),
                "largest, s": max(seconds[kind]),
                "evaluation before it, s": statistics.median(phases.get("time/evaluate", [0.0])),
                "first step, s": statistics.median(phases["time/step"]),
                "compilations": int(statistics.median(row.get("compilations", 0) for row in found)),
            }
        )
    return tables.report(
        "startup",
        table,
        protocol="cold, warm, cold, warm …; every cold run has a cache folder of its own",
        sizes={"config": config, "overrides": list(overrides)},
        seconds=seconds,
        figures={"first_rows": {kind: found[-1] for kind, found in rows.items()}},
        output=output,
    )


def main() -> None:
    """Reads the command line."""
    parser = tables.parser(__doc__)
    parser.add_argument("--config", default="configs/tiny_cpu.py")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which a run has failed")
    arguments = models.start(parser)  # the runs inherit its settings
    run(arguments.config, arguments.runs, arguments.output, arguments.limit)


if __name__ == "__main__":
    main()
