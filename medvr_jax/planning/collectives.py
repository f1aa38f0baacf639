"""Traffic between devices, read from the text of a compiled program."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_BITS = {
    "pred": 8, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32,
    "s64": 64, "u64": 64, "f64": 64, "c64": 64, "f8e4m3fn": 8, "f8e5m2": 8, "s4": 4, "u4": 4,
}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r" while\(.*condition=%?([\w.\-]+)")
_STATED_TRIPS = re.compile(r"known_trip_count[^\d]*(\d+)")
_CONSTANT = re.compile(r"%([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_LESS_THAN = re.compile(r"ROOT .* compare\(.*%([\w.\-]+)\), direction=LT")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one device sends in one execution.

    Attributes:
        sent: bytes by kind, as a ring sends them.
        count: executions by kind.
        open_loops: loops with collectives inside whose number of rounds XLA does not state; they are counted once.
    """

    sent: dict[str, float]
    count: dict[str, int]
    open_loops: int

    @property
    def total(self) -> float:
        """Bytes of all kinds."""
        return sum(self.sent.values())


def traffic(text: str) -> Traffic:
    """The collectives of a compiled program, those in loops times the rounds that the loop's text states."""
    bodies, entry = _computations(text)
    done: dict[str, tuple[Counter, Counter, int]] = {}

    def visit(name: str) -> tuple[Counter, Counter, int]:
        if name in done:
            return done[name]
        sent, count, open_loops = Counter(), Counter(), 0
        for line in bodies.get(name, ()):
            found = _OPERATION.search(line)
            if found:
                sent[found[2]] += _sent_bytes(found[2], found[1], bool(found[3]), _group_size(line))
                count[found[2]] += 1
                continue
            rounds = _rounds(line, bodies)
            for called in _called(line):
                inner_sent, inner_count, inner_open = visit(called)
                for kind in inner_count:
                    sent[kind] += inner_sent[kind] * (rounds or 1)
                    count[kind] += inner_count[kind] * (rounds or 1)
                open_loops += inner_open + (rounds is None and bool(inner_count))
        done[name] = sent, count, open_loops
        return done[name]

    sent, count, open_loops = visit(entry)
    return Traffic(dict(sent), dict(count), open_loops)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        opened = _COMPUTATION.match(line)
        if opened:
            name = opened[2]
            bodies[name] = []
            entry = name if opened[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _called(line: str) -> list[str]:
    branches = _BRANCHES.search(line)
    more = [part.strip().lstrip("%") for part in branches[1].split(",")] if branches else []
    return _CALLED.findall(line) + more


def _rounds(line: str, bodies: dict[str, list[str]]) -> int | None:
    """How often a line runs what it calls: 1 unless it is a loop; None for a loop that does not say."""
    loop = _CONDITION.search(line)
    if not loop:
        return 1
    stated = _STATED_TRIPS.search(line)
    if stated:
        return int(stated[1])
    condition = bodies.get(loop[1], [])
    constants = {name: int(value) for part in condition for name, value in _CONSTANT.findall(part)}
    bounds = [found[1] for part in condition if (found := _LESS_THAN.search(part))]
    return constants.get(bounds[0]) if bounds else None


def _array_bytes(text: str) -> list[float]:
    return [
        _BITS[kind] / 8 * math.prod(int(size) for size in shape.split(",") if size)
        for kind, shape in _ARRAY.findall(text)
        if kind in _BITS
    ]


def _group_size(line: str) -> int:
    """Devices that exchange with each other, from any of the ways XLA writes replica groups."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", line)
    if mesh:
        sizes = dict(re.findall(r"'([\w.]+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([\w.]+)'", mesh[2]) if axis in sizes)
    table = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if table:
        return int(table[1])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return len(listed[1].split(",")) if listed else 2


def _sent_bytes(kind: str, result: str, asynchronous: bool, group: int) -> float:
    """Bytes that a device sends, from the type of the operation's result."""
    arrays = _array_bytes(result)
    if not arrays:
        return 0.0
    if asynchronous and kind in ("all-gather", "collective-permute", "reduce-scatter"):
        # The result of a start is (operands, results, …): the gathered, or the whole array that is to be scattered.
        whole = max(arrays)
        return whole if kind == "collective-permute" else whole * (group - 1) / group
    size = sum(arrays)
    return {
        "all-gather": size * (group - 1) / group,
        "reduce-scatter": size * (group - 1),
        "all-reduce": 2 * size * (group - 1) / group,
        "all-to-all": size * (group - 1) / group,
        "collective-permute": size,
    }[kind]
