"""A plan as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from medvr_jax.hardware import GIB, Topology
from medvr_jax.planning import estimate
from medvr_jax.planning.advice import Advice
from medvr_jax.planning.estimate import Row
from medvr_jax.planning.programs import USES


@dataclasses.dataclass(frozen=True)
class Plan:
    """All figures of one configuration on one topology.

    Attributes:
        title: recipe and model.
        topology: the hardware.
        mesh: devices along each mesh axis.
        parameters: numbers in the model.
        steps: of the run.
        rows: one per program.
        advice: what to change; None when it fits or nothing is known about the hardware.
    """

    title: str
    topology: Topology
    mesh: dict[str, int]
    parameters: int
    steps: int
    rows: list[Row]
    advice: Advice | None

    @property
    def limit(self) -> int | None:
        """Bytes of a device's memory."""
        return self.topology.chip.memory if self.topology.chip else None

    @property
    def fits(self) -> bool | None:
        """Whether the run's largest program does, and the compiler agrees; None for unknown hardware."""
        if self.limit is None:
            return None
        refused = any(row.compiled is not None and not row.compiled.fits for row in self.rows)
        return not refused and estimate.peak(self.rows).total <= self.limit


def verdict(plan: Plan) -> str:
    """One line: fits or not, what needs most, and what to change."""
    top, limit = estimate.peak(plan.rows), plan.limit
    if limit is None:
        return f"The largest program is {top.name} with {_gib(top.total)} GiB per device."
    share = f"{_gib(top.total)} of {_gib(limit)} GiB per device ({top.name})"
    if plan.fits:
        return f"Fits: {share}."
    large = [row.name for row in plan.rows if row.total > limit]
    text = f"Does not fit: {share}; too large: {', '.join(large) or top.name}"
    if plan.advice is None or not plan.advice.changes:
        return f"{text}; no field that was tried helps: more or larger devices are needed."
    change = f"{plan.advice.text()} (about {_gib(plan.advice.bytes)} GiB, by arithmetic)"
    return f"{text}; would fit: {change}" if plan.advice.fits else f"{text}; helps most, but not enough: {change}"


def markdown(plan: Plan) -> str:
    """All tables; what they come to is the `verdict`."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [
        f"# {plan.title} on {plan.topology.text}",
        "",
        f"{plan.topology.count} devices ({mesh}), {plan.parameters / 1e9:.2f} B parameters.",
        "",
        "Memory in GiB per device. Parameters: masters, the reference and the copy that samples; caches: prompts and"
        " responses with the rollout's state; temporaries are gone after the program.",
        "",
        *_memory(plan),
        "",
        *_work(plan),
        "",
        *_totals(plan),
        "",
    ]
    return "\n".join(lines)


def _memory(plan: Plan) -> list[str]:
    compiled = any(row.compiled for row in plan.rows)
    head = ["program", *USES, "results", "temporaries", "together"]
    head += ["of memory"] if plan.limit else []
    head += ["compiled in s"] if compiled else []
    lines = [_cells(head), _cells(["---", *["---:"] * (len(head) - 1)])]
    for row in plan.rows:
        cells = [row.name, *(_gib(row.alive.get(use, 0.0)) for use in USES), _gib(row.outputs), _gib(row.temporaries)]
        cells.append(_gib(row.total))
        cells += [f"{row.total / plan.limit:.0%}"] if plan.limit else []
        if compiled:
            cells.append(_compile_cell(row))
        lines.append(_cells(cells))
    return lines


def _compile_cell(row: Row) -> str:
    if row.compiled is None:
        return "–"
    return f"{row.compiled.seconds:.0f}" if row.compiled.fits else "refused: too large"


def _work(plan: Plan) -> list[str]:
    compiled = any(row.compiled for row in plan.rows)
    chip = plan.topology.chip
    lines = []
    if chip:
        counted = "the largest of the three alone" if compiled else "the larger of the first two, traffic not counted"
        lines += [
            f"Times are ESTIMATES, a roofline from published figures ({chip.peak / 1e12:.0f} TFLOP/s bfloat16,"
            f" {chip.bandwidth / 1e9:.0f} GB/s memory, {chip.interconnect / 1e9:.0f} GB/s sent to other devices):"
            f" {counted}, nothing lost. Real runs take longer.",
            "",
        ]
    head = ["program", "TFLOP per device", "GB read and written"]
    head += ["XLA's TFLOP", "XLA's GB", "GB sent", "collectives"] if compiled else []
    head += ["estimate", "bound by", "times per step"] if chip else ["times per step"]
    lines += [_cells(head), _cells(["---", *["---:"] * (len(head) - 1)])]
    for row in plan.rows:
        cells = [row.name, _number(row.cost.operations / 1e12), _number(row.cost.bytes / 1e9)]
        if compiled:
            cells += _compiled_cells(row)
        if row.seconds is not None:
            cells += [_seconds(row.seconds), row.bound]
        cells.append(f"{row.runs} tokens" if row.name == "decode" else str(row.runs))
        lines.append(_cells(cells))
    if compiled:
        note = "XLA counts the body of a loop once (one token for decode, one layer where layers are scanned);"
        lines += ["", f"{note} collectives are multiplied by the rounds of their loops."]
        open_loops = [row.name for row in plan.rows if row.compiled and row.compiled.traffic and _open(row)]
        if open_loops:
            lines += [f"Counted once, as their loops do not say how often they run: {', '.join(open_loops)}."]
    return lines


def _open(row: Row) -> int:
    return row.compiled.traffic.open_loops if row.compiled and row.compiled.traffic else 0


def _compiled_cells(row: Row) -> list[str]:
    if row.compiled is None or row.compiled.traffic is None:
        return ["–"] * 4
    found = row.compiled
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.traffic.count.items()))
    sent = _number(found.traffic.total / 1e9)
    return [_number(found.operations / 1e12), _number(found.accessed / 1e9), sent, kinds or "none"]


def _totals(plan: Plan) -> list[str]:
    phases = estimate.seconds_by_phase(plan.rows)
    if not phases:
        return ["Times are not estimated: nothing is published about this hardware."]
    step = sum(phases.values())
    lines = ["| phase of a step (estimate) | seconds |", "|---|---:|"]
    lines += [f"| {name} | {seconds:.1f} |" for name, seconds in phases.items()]
    lines += [f"| together | {step:.1f} |", ""]
    lines.append(
        f"{plan.steps} steps: about {plan.steps * step / 3600:.1f} hours (ESTIMATE), every response at full length;"
        " the host's work (images, tools, rewards), evaluation and checkpoints are not in it."
    )
    return lines


def as_json(plan: Plan) -> dict[str, Any]:
    """The figures without rounding: bytes, operations and seconds per device."""
    phases = estimate.seconds_by_phase(plan.rows)
    return {
        "title": plan.title,
        "topology": plan.topology.text,
        "devices": plan.topology.count,
        "memory": plan.limit,
        "mesh": plan.mesh,
        "parameters": plan.parameters,
        "programs": [dataclasses.asdict(row) | {"total": row.total} for row in plan.rows],
        "peak": estimate.peak(plan.rows).total,
        "fits": plan.fits,
        "advice": dataclasses.asdict(plan.advice) if plan.advice else None,
        "estimated_seconds": phases,
        "estimated_hours": plan.steps * sum(phases.values()) / 3600 if phases else None,
        "verdict": verdict(plan),
    }


def _cells(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.3g} ms"
