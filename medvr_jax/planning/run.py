"""`--mode=plan`: will a configuration fit on a topology, and what does a step cost?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType
from ml_collections import FrozenConfigDict

from medvr_jax.configuration import check_batches, leaves
from medvr_jax.errors import UserError
from medvr_jax.hardware import Topology, parse_topology
from medvr_jax.models.config import BackboneConfig
from medvr_jax.planning import costs, estimate, memory, table
from medvr_jax.planning.advice import Advice, advise
from medvr_jax.planning.architectures import backbone_of
from medvr_jax.planning.compiler import compile_program, describe_devices
from medvr_jax.planning.estimate import Row
from medvr_jax.planning.programs import step_programs
from medvr_jax.training import sharding
from medvr_jax.training.abstract import AbstractRun, abstract_run


def plan(config: FrozenConfigDict, topology: str, title: str, workdir: str | None) -> None:
    """Prints the plan, writes WORKDIR/plan.md and plan.json; UserError when the run does not fit."""
    if config.trainer != "grpo":
        raise UserError(f"trainer: found {config.trainer!r}, --mode=plan knows 'grpo'")
    where = parse_topology(topology, config.mesh.host_devices)
    backbone = backbone_of(config.model)
    shape = sharding.MeshShape(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    if where.compiles:
        mesh = sharding.make_mesh(shape, describe_devices(where))
    else:
        mesh = _abstract_mesh(shape, where.count)
    run = _checked_run(config, backbone, mesh)
    rows = (
        _compiled_rows(run, where)
        if where.compiles
        else estimate.rows_by_arithmetic(run, step_programs(run), where.chip)
    )
    result = table.Plan(
        title=title,
        topology=where,
        mesh=dict(mesh.shape),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(run.params)),
        steps=config.steps,
        rows=rows,
        advice=None,
    )
    if result.fits is False:
        result = table.Plan(**vars(result) | {"advice": _advice(run, where, rows)})
    text, verdict = table.markdown(result), table.verdict(result)
    print(text)
    if result.fits is not False:  # what does not fit is said by the error
        print(verdict)
    if workdir:
        _write(Path(workdir), f"{text}\n{verdict}\n", table.as_json(result))
    if result.fits is False:
        raise UserError(f"--topology: {verdict}")


def _abstract_mesh(shape: sharding.MeshShape, devices: int) -> AbstractMesh:
    sizes = sharding.mesh_sizes(shape, devices)
    return AbstractMesh(sizes, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))


def _checked_run(config: Any, backbone: BackboneConfig, mesh: Any) -> AbstractRun:
    check_batches(dict(leaves(config)), sharding.data_shards(mesh))
    return abstract_run(config, backbone, mesh)


def _compiled_rows(run: AbstractRun, topology: Topology) -> list[Row]:
    work, scratch = costs.costs(run), memory.temporaries(run)
    programs, rows = step_programs(run), []
    for number, program in enumerate(programs, 1):
        print(
            f"plan {number}/{len(programs)} | compiling {program.name} for {topology.text}", file=sys.stderr, flush=True
        )
        compiled = compile_program(program, run.mesh)
        done = "compiled" if compiled.fits else "refused as too large"
        print(
            f"plan {number}/{len(programs)} | {program.name} {done}, {compiled.seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        rows.append(estimate.row(program, work[program.name], scratch[program.name], topology.chip, compiled))
    return rows


def _advice(run: AbstractRun, topology: Topology, rows: list[Row]) -> Advice:
    """Tries other fields by arithmetic, corrected by how far it was off for the programs as they are."""
    assert topology.chip is not None
    first = estimate.rows_by_arithmetic(run, step_programs(run), topology.chip)
    off = {now.name: now.temporaries / max(then.temporaries, 1.0) for now, then in zip(rows, first, strict=True)}

    def needed(config: FrozenConfigDict) -> float:
        shape = sharding.MeshShape(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        other = _checked_run(config, run.backbone, _abstract_mesh(shape, topology.count))
        return max(
            row.total + row.temporaries * (off.get(row.name, 1.0) - 1.0)
            for row in estimate.rows_by_arithmetic(other, step_programs(other), topology.chip)
        )

    return advise(run.config, topology.count, needed, topology.chip.memory)


def _write(folder: Path, text: str, figures: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.md").write_text(text, encoding="utf-8")
        (folder / "plan.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--workdir: {folder} cannot be written to: {error.strerror or error}") from error
