"""The most expensive operations in a `jax.profiler` trace.

    XLA_FLAGS="--xla_dump_to=HLO --xla_dump_hlo_as_text" PROGRAM   # writes the trace (`report.profile_steps`) and HLO
    python tests/benchmarks/profile_costs.py TRACE [--hlo=HLO] [--top=10]

Adds up the seconds of the compiled programs' operations over all threads. With the dumped programs at hand, operations
are named and summed by what they were traced from (layers of an unrolled stack, and forwards and backwards of a remat,
add up in one line); without, by the compiler's names.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.tables import markdown  # noqa: E402

_NAMED = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\S+) .*op_name=\"([^\"]*)\"", re.MULTILINE)


def read_events(folder: Path) -> list[dict]:
    """The complete events of the newest trace in a folder."""
    files = sorted(folder.rglob("*.trace.json.gz"), key=lambda file: file.stat().st_mtime)
    assert files, f"no trace in {folder}"
    with gzip.open(files[-1], "rt", encoding="utf-8") as stream:
        return [event for event in json.load(stream)["traceEvents"] if event.get("ph") == "X"]


def read_names(folder: Path) -> dict[tuple[str, str], str]:
    """(program, operation) -> what it was traced from and the shape of its result, of the dumped optimised programs."""
    found = {}
    for file in folder.glob("*after_optimizations.txt"):
        text = file.read_text(encoding="utf-8")
        program = re.match(r"HloModule ([\w.-]+)", text)
        for operation, shape, origin in _NAMED.findall(text):
            origin = re.sub(r"jit\(\w+\)/|while/body/|closed_call/|jvp\(\)/|checkpoint/|rematted_computation/", "", origin)
            found[program.group(1) if program else "", operation] = f"{origin} {re.sub('{.*', '', shape)}"
    return found


def costs(events: list[dict], names: dict[tuple[str, str], str]) -> tuple[dict[str, tuple[float, int]], float]:
    """Seconds and calls by operation, largest first, and the seconds of all of them."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        arguments = event.get("args", {})
        if "hlo_op" not in arguments or arguments["hlo_op"].startswith(("while", "call", "conditional")):
            continue  # they only hold others
        name = names.get((arguments["hlo_module"], arguments["hlo_op"]), arguments["hlo_op"])
        found[name].append(event["dur"] / 1e6)
    ordered = sorted(found.items(), key=lambda item: -sum(item[1]))
    return {name: (sum(values), len(values)) for name, values in ordered}, sum(sum(v) for v in found.values())


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--hlo", type=Path, default=None, help="folder of dumped programs")
    parser.add_argument("--top", type=int, default=10)
    arguments = parser.parse_args()
    names = read_names(arguments.hlo) if arguments.hlo else {}
    found, whole = costs(read_events(arguments.trace), names)
    rows = [
        {"operation": name, "seconds": seconds, "calls": calls, "share": f"{seconds / whole:.1%}"}
        for name, (seconds, calls) in list(found.items())[: arguments.top]
    ]
    print(markdown(rows))


if __name__ == "__main__":
    main()
