"""`--mode=train`: evaluate, roll out, reward, update, log, save; again; then export and report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from medvr_jax import assembly, distributed, programs
from medvr_jax.devices import describe_devices, peak_memory
from medvr_jax.errors import UserError
from medvr_jax.evaluation.greedy import Prediction, summarise
from medvr_jax.reports.metrics import FILE_NAME, read_metrics
from medvr_jax.reports.page import write_report
from medvr_jax.reports.progress import Progress
from medvr_jax.reports.rollouts import write_rollouts
from medvr_jax.reports.sinks import Sinks, open_sinks
from medvr_jax.training import throughput
from medvr_jax.training.checkpoints import Checkpoints
from medvr_jax.training.export import export, export_policy
from medvr_jax.training.profiling import profiled
from medvr_jax.training.records import rollout_metrics, rollout_records, trajectory_facts, work_facts
from medvr_jax.training.trainer import Step, Trainer


def train(config: Any, workdir: str | Path) -> None:
    """Runs or resumes the run in `workdir` until `config.steps` updates are done; a finished run stays as it is.

    Process 0 writes the records.
    """
    workdir = Path(workdir)
    if is_finished(config, workdir):
        print(f"{workdir} is finished: all {config.steps} updates are done and evaluated")
        if config.export_at_end and not any((workdir / "export").glob("*.safetensors")):
            export(config, workdir)
    else:
        trainer = train_steps(config, workdir)
        if config.export_at_end:
            print(f"exported to {export_policy(trainer.parts, trainer.state.params, workdir / 'export')}")
    if distributed.is_main():
        print(f"report in {write_run_report(config, workdir)}")


def write_run_report(config: Any, workdir: Path) -> Path:
    """Makes the run's page anew, of what it has left so far."""
    return write_report(workdir, config.report.groups, config.rewards.raster)


def is_finished(config: Any, workdir: Path) -> bool:
    """Whether the last update's checkpoint and the row of the evaluation after it are there."""
    file = workdir / FILE_NAME
    if not file.is_file() or all(row["step"] != config.steps for row in read_metrics(file)):
        return False
    with contextlib.closing(Checkpoints(workdir, config.keep_checkpoints)) as checkpoints:
        return checkpoints.latest() == config.steps


def train_steps(config: Any, workdir: Path) -> Trainer:
    """The steps that are left and the last evaluation; returns the trainer with the final state."""
    trainer = Trainer(assembly.assemble(config, report_folder=workdir / "faults"))
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, config.keep_checkpoints)))
        start = resume(trainer, checkpoints)
        stack.enter_context(contextlib.closing(trainer.prompts))
        warm_up(trainer)
        opened = open_sinks(config, workdir, start) if distributed.is_main() else contextlib.nullcontext()
        sinks: Sinks | None = stack.enter_context(opened)
        progress = stack.enter_context(Progress(config.steps, start, "train"))
        saving, process = 0.0, ProcessFacts(start)
        for step in range(start, config.steps):
            row: dict[str, Any] = {"step": step, "time/checkpoint": saving}
            if step % config.evaluate_every == 0:
                row |= evaluate(trainer, progress.note)[0]
            began = time.perf_counter()
            with profiled(workdir, step, config.report.profile_steps) as trace:
                outcome = trainer.step(step)
            recorded = step % config.report.rollouts_every == 0 or step == config.steps - 1
            if recorded:
                write_step_rollouts(workdir, trainer, outcome, step, sinks)
            row |= step_metrics(trainer, outcome) | {"time/step": time.perf_counter() - began - trace.seconds}
            if trace.seconds:
                row["time/profile"] = trace.seconds
            # The row comes first: a run killed after its checkpoint never goes back to write it.
            if sinks:
                sinks.write(row | process.of(step))
                if recorded:
                    write_run_report(config, workdir)
            saving = 0.0
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                saving = save(trainer, checkpoints, step + 1)
            progress.update(step + 1, describe(row))
        final, _ = evaluate(trainer, progress.note)
        if sinks:
            sinks.write({"step": config.steps, "time/checkpoint": saving} | final | process.of(config.steps))
        progress.update(config.steps, held_out(final))
    return trainer


def warm_up(trainer: Trainer) -> None:
    """Compiles all programs of the run, or reads them from the disk."""
    ready = trainer.programs()
    with Progress(len(ready), 0, "compiling") as progress:
        programs.warm_up(ready, lambda done, total, name: progress.update(done, name))


class ProcessFacts:
    """What a row says of this process and not of the run; its first row tells if it went on with another's."""

    def __init__(self, start: int) -> None:
        """`start`: the first step that this process does."""
        self._start, self._compiled = start, 0.0

    def of(self, step: int) -> dict[str, Any]:
        """Programs compiled so far, how many of them came from the disk, the compiler's seconds since last time, the
        most memory that was used, and in the first row the devices."""
        made = programs.compilations()
        facts = {
            "compilations": made.count,
            "compilations_from_cache": made.from_cache,
            "time/compile": made.seconds - self._compiled,
        } | {f"memory/{name}": value for name, value in peak_memory(jax.local_devices()).items()}
        self._compiled = made.seconds
        if step == self._start:
            facts["process/devices"] = describe_devices()
        return facts | ({"resumed": True} if step == self._start > 0 else {})


def resume(trainer: Trainer, checkpoints: Checkpoints) -> int:
    """Puts the newest checkpoint into the trainer; returns the step to go on with, 0 for a new run."""
    step = checkpoints.latest()
    if step is None:
        return 0
    trainer.state, metadata = checkpoints.restore(step, trainer.state)
    expected = checkpoint_metadata(trainer, step)
    if metadata != expected:
        if metadata == expected | {"data": metadata.get("data")}:
            raise UserError(
                f"--workdir: checkpoint {step} was trained with other questions, or in another order, than the files of"
                " section data hold now; give the files as they were, or another --workdir"
            )
        raise UserError(
            f"--workdir: checkpoint {step} was saved as {metadata}, this configuration continues with {expected}"
        )
    print(f"resumed after step {step}")
    return step


def checkpoint_metadata(trainer: Trainer, step: int) -> dict[str, Any]:
    """All there is beside the arrays: random keys and data order are functions of the seed and these counters.

    `data` stands for the stream of examples that the position is one in.
    """
    config, stream = trainer.config, trainer.parts.source.fingerprint()
    counters = {"step": step, "seed": config.seed, "data_position": step * config.data.prompts_per_step}
    return counters | ({"data": stream} if stream else {})


def save(trainer: Trainer, checkpoints: Checkpoints, step: int) -> float:
    """Saves the state after `step` updates; returns the seconds it took."""
    began = time.perf_counter()
    checkpoints.save(step, trainer.state, checkpoint_metadata(trainer, step))
    return time.perf_counter() - began


def evaluate(trainer: Trainer, note: Callable[[str], None]) -> tuple[dict[str, float], list[Prediction]]:
    """Held-out figures of the current policy as eval/*, and the answers that they sum up; `note` is told how far."""
    began = time.perf_counter()
    predictions = trainer.predict(lambda done, total: note(f"evaluating {done}/{total}"))
    figures = {f"eval/{name}": value for name, value in summarise(predictions).items()}
    return figures | {"time/evaluate": time.perf_counter() - began}, predictions


def step_metrics(trainer: Trainer, outcome: Step) -> dict[str, float]:
    """The figures of one step, of all processes' groups, under the names of `metrics.jsonl`."""
    facts = distributed.gather_rows(trajectory_facts(outcome.rollout, outcome.rewards), outcome.rows)
    work = work_facts(outcome.rollout, trainer.parts.backbone.vision)
    true = throughput.total(distributed.gather_rows(work, outcome.rows))
    speeds = throughput.speeds(true, outcome.passed, trainer.policy, outcome.seconds, trainer.limits, trainer.copies)
    return (
        rollout_metrics(facts)
        | {"rollout/decode_steps": float(outcome.rollout.calls.steps)}
        | {f"speed/{name}": value for name, value in speeds.items()}
        | {f"padding/{name}": value for name, value in throughput.padding(true, outcome.passed).items()}
        | {f"train/{name}": value for name, value in outcome.metrics.items()}
        | {"train/zero_spread_groups": int((~facts["has_spread"]).sum())}
        | {f"time/{name}": value for name, value in outcome.seconds.items()}
    )


def write_step_rollouts(workdir: Path, trainer: Trainer, outcome: Step, step: int, sinks: Sinks | None) -> None:
    """All trajectories of the step, and the images of its first groups for viewers; `sinks` are process 0's."""
    rows = outcome.rows
    records = rollout_records(outcome.rollout, outcome.rewards, step, rows.here, trainer.parts.encoder.tokenizer)
    spoken_for = set(rows.here[rows.mine].tolist())
    parts = distributed.gather_json([record for record in records if record["group"] in spoken_for])
    if sinks is None:
        return
    shown = trainer.examples(step, range(min(trainer.config.report.groups, rows.total)))
    images = {example.id: example.images[0] for example in shown}
    records = sorted((record for part in parts for record in part), key=lambda record: record["group"])
    write_rollouts(workdir, step, records, images)
    sinks.show(step, records, images)


def describe(row: dict[str, Any]) -> str:
    """What the progress line says of a step."""
    text = f"reward {row['reward/total']:.2f}, right {row['base/right_rate']:.2f}"
    text += f", looked {row['rollout/tool_rate']:.2f}, forks {row['rollout/forks_granted']:.0f}"
    return f"{text} | {held_out(row)}" if "eval/accuracy" in row else text


def held_out(row: dict[str, Any]) -> str:
    """What the progress line says of an evaluation."""
    text = f"held-out accuracy {row['eval/accuracy']:.3f}"
    return f"{text}, hits {row['eval/hit_rate']:.3f}" if "eval/hit_rate" in row else text
