"""`--mode=experiment`: the runs that are missing, made by worker processes; tables and figures of all. No jax here."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path

from ml_collections import FrozenConfigDict

from medvr_jax.errors import UserError
from medvr_jax.experiments.grid import Experiment, finished_runs, read_experiment
from medvr_jax.experiments.lock import only_process
from medvr_jax.experiments.options import ACCURACY, FigureOption
from medvr_jax.experiments.result_figures import figures
from medvr_jax.experiments.run_files import Run, read_run, run_file
from medvr_jax.experiments.summary import HIT_RATE, Runs
from medvr_jax.experiments.tables import result_lines, share, table
from medvr_jax.experiments.worker import Lost, Note, Task, WorkerFailed, run_tasks
from medvr_jax.reports.metrics import replace_file
from medvr_jax.reports.progress import Progress, duration
from medvr_jax.workdir import prepare_workdir, refuse_run


def run_experiment(config: FrozenConfigDict, spec: str, overrides: Iterable[tuple[str, str]], workdir: str) -> None:
    """Runs what is missing of the recipe `spec`, which `config` is with the overrides applied; all arms are checked
    before anything begins. Runs that break are told, the others go on; UserError at the end where there were any."""
    folder = Path(workdir)
    experiment = read_experiment(config, spec, overrides)
    refuse_run(folder)
    with only_process(folder):
        runs = finished_runs(folder, experiment)
        prepare_workdir(folder, config, "experiment")
        _make_runs(folder, experiment, runs)


def _make_runs(folder: Path, experiment: Experiment, runs: dict[str, dict[int, Run]]) -> None:
    """Adds to `runs` what is missing, and writes the results after each."""
    tasks = missing_tasks(folder, experiment, runs)
    done, total = sum(map(len, runs.values())), len(tasks) + sum(map(len, runs.values()))
    if done:
        print(f"{done} of {total} runs are done already")
    lost: list[str] = []
    try:
        with (
            Progress(total, done, "runs") as progress,
            contextlib.closing(run_tasks(tasks, experiment.grid.workers)) as messages,
        ):
            for message in messages:
                if isinstance(message, Note):
                    progress.note(message.text)
                    continue
                if isinstance(message, Lost):
                    lost.append(f"{message.task.name}: {message.text}")
                    progress.update(done, f"lost {lost[-1]}")
                    continue
                run = read_run(message.task.file)
                runs[run.arm][run.seed] = run
                done += 1
                progress.update(done, describe(run))
                write_results(folder, experiment, runs)
    except WorkerFailed as error:
        print(f"medvr_jax: {error}\nthe same command goes on with the runs that are missing", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"results in {write_results(folder, experiment, runs)}")
    for figure in experiment.grid.figures:
        if not figure_file(folder, figure).is_file():
            print(f"experiment.figures: {figure.title!r} is not drawn: no run of its arms, or none with {figure.kind}")
    if lost:
        raise UserError(f"{len(lost)} of {total} runs were lost, the first: {lost[0]}")


def missing_tasks(folder: Path, experiment: Experiment, runs: Runs) -> list[Task]:
    """Arms in the recipe's order, seed by seed."""
    return [
        Task(arm.name, seed, arm.config.to_dict(), arm.model, run_file(folder, arm.name, seed))
        for arm in experiment.arms.values()
        for seed in arm.seeds
        if seed not in runs[arm.name]
    ]


def describe(run: Run) -> str:
    """What the progress line says of a run."""
    text = f"{run.arm} seed {run.seed}: accuracy {share(run.final(ACCURACY))}, area {share(run.area)}"
    if run.final(HIT_RATE) is not None:
        text += f", hits {share(run.final(HIT_RATE))}"
    return f"{text} in {duration(run.seconds)}"


def figure_file(folder: Path, figure: FigureOption) -> Path:
    """Where a figure goes."""
    return folder / "figures" / f"{figure.stem}.svg"


def write_results(folder: Path, experiment: Experiment, runs: Runs) -> Path:
    """Tables and figures made anew of the runs alone; returns the page that shows them."""
    runs = {name: dict(sorted(of_arm.items())) for name, of_arm in runs.items()}  # they finish in any order
    tables, drawn = table(experiment, runs), figures(experiment, runs)
    replace_file(folder / "results.jsonl", result_lines(runs))
    replace_file(folder / "table.md", tables)
    for old in (folder / "figures").glob("*.svg"):
        if old.stem not in {figure.stem for figure in drawn}:
            old.unlink()
    for figure, svg in drawn.items():
        replace_file(figure_file(folder, figure), svg)
    pictures = [f"![{figure.title}](figures/{figure.stem}.svg)" for figure in drawn]
    page = folder / "README.md"
    replace_file(page, "\n\n".join(["# Results", _told(experiment, runs), tables.rstrip("\n"), *pictures]) + "\n")
    return page


def _told(experiment: Experiment, runs: Runs) -> str:
    """What was run, in a line: of the baseline, as arms may differ in it."""
    arm = experiment.arms[experiment.grid.baseline].config
    done, total = sum(map(len, runs.values())), sum(len(one.seeds) for one in experiment.arms.values())
    return (
        f"{done} of {total} runs are done. `{experiment.grid.baseline}`: {arm.steps} updates of"
        f" {arm.data.prompts_per_step} questions x {arm.rollout.trajectories} trajectories, {arm.data.test_examples}"
        f" held-out questions, model `{arm.model.path}`; the whole recipe is in `config.json`."
    )
