"""The most expensive operations in a `jax.profiler` trace.

    XLA_FLAGS="--xla_dump_to=HLO --xla_dump_hlo_as_text" PROGRAM   # writes the trace (`report.profile_steps`) and HLO
    python tests/benchmarks/profile_costs.py TRACE [--hlo=HLO] [--top=10]

Adds up the seconds of the compiled programs' operations over all threads. With the dumped programs at hand, operations
are named and summed by what they were traced from (layers of an unrolled stack, and forwards and backwards of a remat,
add up in one line), and a second table sums them by the phases that the code names: attention, mlp, head, sampling (in
it, apart, random and entropy), evr, append; without, by the compiler's names.

The compiler joins operations of neighbours and names the whole by one of them: the line between two phases that touch
is as sharp as that.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from medvr_jax.errors import UserError  # noqa: E402
from tests.benchmarks.tables import markdown  # noqa: E402

PHASES = ("attention", "mlp", "head", "sampling", "random", "entropy", "evr", "append")
REST = "other"
_NAMED = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\S+) .*op_name=\"([^\"]*)\"", re.MULTILINE)


def read_events(folder: Path) -> list[dict]:
    """The complete events of the newest trace in a folder."""
    files = sorted(folder.rglob("*.trace.json.gz"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise UserError(f"TRACE: found no *.trace.json.gz below {folder}; give a folder that jax.profiler wrote into")
    try:
        with gzip.open(files[-1], "rt", encoding="utf-8") as stream:
            return [event for event in json.load(stream)["traceEvents"] if event.get("ph") == "X"]
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"TRACE: {files[-1]} is no whole trace ({error}); give one that jax.profiler wrote") from error


def read_names(folder: Path) -> dict[tuple[str, str], str]:
    """(program, operation) -> what it was traced from and the shape of its result, of the dumped optimised programs."""
    found = {}
    files = sorted(folder.glob("*after_optimizations.txt"))
    if not files:
        raise UserError(
            f"--hlo: found no *after_optimizations.txt in {folder}; give the folder of --xla_dump_to, of a program that"
            " ran with --xla_dump_hlo_as_text"
        )
    for file in files:
        text = file.read_text(encoding="utf-8")
        program = re.match(r"HloModule ([\w.-]+)", text)
        for operation, shape, origin in _NAMED.findall(text):
            origin = re.sub(
                r"jit\(\w+\)/|while/body/|closed_call/|jvp\(\)/|checkpoint/|rematted_computation/", "", origin
            )
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


def phase(name: str) -> str:
    """The innermost phase in the name of what an operation was traced from: `jvp(attention)/dot` is attention's."""
    path = name.split(" ")[0].split("/")[:-1]  # the last part is the operation itself
    words = [word for part in path for word in re.findall(r"\w+", part) if word in PHASES]
    return words[-1] if words else REST


def by_phase(found: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    """Seconds of each phase, largest first."""
    sums: dict[str, float] = collections.defaultdict(float)
    for name, (seconds, _) in found.items():
        sums[phase(name)] += seconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def main() -> None:
    """Reads the command line."""
    try:
        report()
    except UserError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2)


def report() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--hlo", type=Path, default=None, help="folder of dumped programs")
    parser.add_argument("--top", type=int, default=10)
    arguments = parser.parse_args()
    names = read_names(arguments.hlo) if arguments.hlo else {}
    found, whole = costs(read_events(arguments.trace), names)
    if not found:
        raise UserError(f"TRACE: {arguments.trace} has no operation of a compiled program; trace one that runs")
    rows = [
        {"operation": name, "seconds": seconds, "calls": calls, "share": f"{seconds / whole:.1%}"}
        for name, (seconds, calls) in list(found.items())[: arguments.top]
    ]
    print(markdown(rows))
    if names:
        phases = by_phase(found).items()
        print()
        print(markdown([{"phase": name, "seconds": s, "share": f"{s / whole:.1%}"} for name, s in phases]))


if __name__ == "__main__":
    main()
