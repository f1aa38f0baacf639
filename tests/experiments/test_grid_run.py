"""A whole grid through the entry point: two arms, two seeds, two workers; killed in the middle and started again."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from medvr_jax.configuration import load_config
from medvr_jax.errors import UserError
from medvr_jax.experiments.lock import only_process
from medvr_jax.experiments.run import run_experiment
from medvr_jax.workdir import prepare_workdir

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = "tests/experiments/brief_recipe.py"
NAMES = ["slow/seed_0", "slow/seed_1", "fast/seed_0", "fast/seed_1", "fast/seed_2"]


def start(workdir: Path, **changes: object) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "medvr_jax.main",
        f"--config={RECIPE}",
        f"--workdir={workdir}",
        "--mode=experiment",
    ]
    command += [*(f"--config.{n.replace('__', '.')}={x}" for n, x in changes.items())]
    log = (workdir.parent / f"{workdir.name}.log").open("a")
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, env=environment)


def log_of(workdir: Path) -> str:
    return (workdir.parent / f"{workdir.name}.log").read_text()


def files(workdir: Path) -> dict[str, Path]:
    return {f"{file.parent.name}/{file.stem}": file for file in sorted((workdir / "runs").glob("*/*.jsonl"))}


def contents(file: Path) -> list[dict[str, Any]]:
    """Lines without seconds."""
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: x for name, x in line.items() if name not in ("seconds", "time/step")} for line in found]


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, tuple[bytes, int]]]:
    """One without interruption; one killed after its first run; and what that had finished before."""
    folder = tmp_path_factory.mktemp("grids")
    whole, killed = folder / "whole", folder / "killed"
    process = start(killed)
    deadline = time.monotonic() + 600
    while not files(killed):
        assert process.poll() is None and time.monotonic() < deadline, log_of(killed)
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {name: (file.read_bytes(), file.stat().st_mtime_ns) for name, file in files(killed).items()}
    assert start(killed).wait(timeout=600) == 0, log_of(killed)
    assert start(whole).wait(timeout=600) == 0, log_of(whole)
    return whole, killed, before


def test_killed_and_started_again_equals_uninterrupted(grids: tuple) -> None:
    whole, killed, before = grids
    assert list(files(whole)) == list(files(killed)) == sorted(NAMES)
    for name, file in files(whole).items():
        assert contents(file) == contents(files(killed)[name]), name
    assert 0 < len(before) < 5
    for name, (content, written) in before.items():
        file = files(killed)[name]
        assert (file.read_bytes(), file.stat().st_mtime_ns) == (content, written), name
    assert f"{len(before)} of 5 runs are done already" in log_of(killed)


def test_seeds_differ_and_rows_are_whole(grids: tuple) -> None:
    runs = {name: contents(file) for name, file in files(grids[0]).items()}
    for name, (first, *rows, last) in runs.items():
        assert [row["step"] for row in rows] == [0, 1, 2] and "looks" in last
        assert f"{first['arm']}/seed_{first['seed']}" == name
        assert all("eval/accuracy" in row for row in rows)
    assert len({json.dumps(lines[1:]) for lines in runs.values()}) == 5


def test_what_a_grid_leaves(grids: tuple) -> None:
    whole, _, _ = grids
    lines = [json.loads(line) for line in (whole / "results.jsonl").read_text().splitlines()]
    assert [f"{line['arm']}/seed_{line['seed']}" for line in lines] == NAMES
    page = (whole / "README.md").read_text()
    assert "| slow | 2 |" in page and "| fast | 3 |" in page and "| fast − slow | 2 |" in page
    figures = {"held_out_accuracy.svg", "area_under_the_accuracy_curve_against_optimizer_learning_rate.svg"}
    assert {file.name for file in (whole / "figures").iterdir()} == figures  # nobody zooms
    assert json.loads((whole / "config.json").read_text())["experiment"]["seeds"] == 2
    log = log_of(whole)
    assert "runs 5/5 |" in log and "done | " in log and f"results in {whole}/README.md" in log
    assert "Traceback" not in log


def again(workdir: Path, **changes: object) -> None:
    """The same command in this process; no worker is needed for a grid that is done."""
    overrides = [(name, str(value)) for name, value in changes.items()]
    run_experiment(load_config(RECIPE, overrides, mode="experiment"), RECIPE, overrides, str(workdir))


def test_a_finished_grid_only_makes_its_pages_anew(grids: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another figure and fewer seeds. Other settings are refused, and then nothing is changed."""
    whole, _, _ = grids
    monkeypatch.setattr(multiprocessing, "get_context", None)  # no worker is begun
    before = {name: file.stat().st_mtime_ns for name, file in files(whole).items()}
    again(whole, **{"experiment.figures": "area:fast", "experiment.seeds": 1, "programs.cache": ""})
    assert "| slow | 1 |" in (whole / "table.md").read_text()
    assert "![Area under the accuracy curve](figures/area" in (whole / "README.md").read_text()
    pages = {name: (whole / name).stat().st_mtime_ns for name in ("table.md", "config.json")}
    for changes, message in (
        ({"steps": 3}, "of arm slow: steps was 2, now 3; give another --workdir, or that value"),
        ({"rewards.format_penalty": -0.4}, "seed_0.jsonl was made with another configuration of arm slow"),
        ({"experiment.arms": "()", "experiment.pairs": "()", "experiment.figures": "()"}, "experiment.arms: found ()"),
        ({"experiment.baseline": "evr"}, "experiment.baseline: found 'evr'"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            again(whole, **changes)
    assert {name: file.stat().st_mtime_ns for name, file in files(whole).items()} == before
    assert {name: (whole / name).stat().st_mtime_ns for name in pages} == pages


def test_one_process_makes_an_experiment_and_says_what_it_cannot_draw(
    grids: tuple, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    _, killed, _ = grids
    monkeypatch.setattr(multiprocessing, "get_context", None)  # no worker is begun
    with only_process(killed), pytest.raises(UserError, match="another process is making the runs of"):
        again(killed)
    again(killed, **{"experiment.figures": "('area:fast', 'audit/nothing:fast')"})
    assert "experiment.figures: 'audit/nothing' is not drawn: no run of its arms" in capsys.readouterr().out
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="holds a training run; give another one for an experiment"):
        again(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_what_only_a_worker_sees_is_one_line_too(tmp_path: Path) -> None:
    workdir = tmp_path / "small"
    assert start(workdir, prompt__bucket=20, experiment__workers=1).wait(timeout=120) == 2
    (line,) = [line for line in log_of(workdir).splitlines() if line.startswith("medvr_jax: ")]
    assert "slow seed 0: " in line and "prompt.bucket" in line and not files(workdir)


def test_a_folder_is_of_a_run_or_of_an_experiment(grids: tuple, tmp_path: Path) -> None:
    config, longer = (load_config(RECIPE, [("steps", steps)]) for steps in ("2", "3"))
    with pytest.raises(UserError, match="holds an experiment; give another one for a training run"):
        prepare_workdir(grids[1], config, "train")
    with pytest.raises(UserError, match="belongs to another config: steps was 2, now 3"):
        prepare_workdir(grids[1], longer, "experiment")
    prepare_workdir(tmp_path, config, "experiment")
    prepare_workdir(tmp_path, longer, "experiment")  # nothing has been run
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="holds a training run; give another one for an experiment"):
        prepare_workdir(tmp_path, config, "experiment")
