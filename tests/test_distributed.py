"""Two processes with four devices each do what one process with eight does, also when killed and started again."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from medvr_jax import distributed
from medvr_jax.errors import UserError
from medvr_jax.evaluation.run import evaluate
from medvr_jax.processes import Processes, read_processes
from medvr_jax.training.loop import train
from tests.tiny_run import SMALL, small_config

REPOSITORY = Path(__file__).resolve().parents[1]
RUN = {
    "steps": 4,
    "checkpoint_every": 2,
    "evaluate_every": 4,
    "report.rollouts_every": 1,
    "report.tensorboard": True,
    "data.prompts_per_step": 8,
    "data.test_examples": 12,  # the second batch is filled up
    "rollout.trajectories": 4,
}
# What may differ in the last digits: sums are taken in another order.
INEXACT = {"entropy", "log_probabilities", "advantage", "consensus_iou", "decisions", "rewards"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which launch/processes.sh finds a `.venv` that needs no installation: this interpreter."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(REPOSITORY / "launch", folder / "launch")
    for name in ("configs", "medvr_jax", "requirements.txt"):
        (folder / name).symlink_to(REPOSITORY / name)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    shutil.copy(REPOSITORY / "requirements.txt", folder / ".venv" / "installed-requirements.txt")
    return folder


def environment(clone: Path) -> dict[str, str]:
    """What is compiled once is kept, as the same programs are started again and again."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(clone / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | cache | {"JAX_PLATFORMS": "cpu"}


def start(clone: Path, workdir: Path, *more: str, **changes: object) -> subprocess.Popen:
    overrides = SMALL | RUN | {"mesh.host_devices": 4} | {k.replace("__", "."): v for k, v in changes.items()}
    command = ["bash", "launch/processes.sh", "2", "--config=configs/tiny_cpu.py", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in overrides.items()]
    command += more
    log = log_of(workdir).open("a")
    return subprocess.Popen(command, cwd=clone, stdout=log, stderr=log, env=environment(clone))


def log_of(workdir: Path) -> Path:
    return workdir.parent / f"{workdir.name}.log"


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def children(parent: int) -> list[int]:
    """Processes that a process has started, oldest first."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[1]) == parent:
            found.append((int(fields[19]), int(file.parent.name)))
    return [pid for _, pid in sorted(found)]


@pytest.fixture(scope="module")
def runs(clone: Path) -> tuple[Path, Path, Path]:
    """One process; two, killed in the fourth step; and the same two, started again and finished."""
    one, killed, two = clone / "one", clone / "killed", clone / "two"
    train(small_config(**{"mesh.host_devices": 8} | RUN), one)  # in this process, which has eight devices
    script = start(clone, two)
    deadline = time.monotonic() + 1800
    while len(lines(two / "metrics.jsonl")) < 3:
        assert script.poll() is None and time.monotonic() < deadline, log_of(two).read_text()
        time.sleep(0.02)
    os.kill(children(script.pid)[1], signal.SIGKILL)
    assert script.wait(timeout=120) == 128 + signal.SIGKILL
    assert children(script.pid) == []
    shutil.copytree(two, killed)
    assert start(clone, two).wait(timeout=1800) == 0, log_of(two).read_text()
    assert log_of(two).read_text().count("resumed after step 2") == 1
    return one, killed, two


def test_rollouts_are_the_same_token_for_token(runs: tuple[Path, Path, Path]) -> None:
    one, killed, two = runs
    forks = crops = 0
    for step in range(4):
        name = f"rollouts/step_{step:06d}.jsonl"
        expected = lines(one / name)
        assert len(expected) == 8 * 4
        forks += sum(record["origin"] == "fork" for record in expected)
        crops += sum(len(record["boxes"]) for record in expected)
        for folder in (killed, two) if step < 3 else (two,):
            for before, after in zip(expected, lines(folder / name), strict=True):
                assert_same({k: v for k, v in before.items() if k not in INEXACT}, after)
                for field in INEXACT:
                    assert_close(before[field], after[field])
                assert after["image"] is None or (folder / after["image"]).is_file()
    assert forks > 0 and crops > 0


def assert_same(expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert {name: found[name] for name in expected} == expected


def assert_close(expected: Any, found: Any) -> None:
    """The same structure, with numbers equal to some 1e-5 (what is told to five digits may round to either side)."""
    if isinstance(expected, dict):
        assert expected.keys() == found.keys()
        expected, found = list(expected.values()), [found[name] for name in expected]
    if isinstance(expected, list):
        for pair in zip(expected, found, strict=True):
            assert_close(*pair)
    else:
        assert found == pytest.approx(expected, rel=1e-5, abs=3e-5)


def test_metrics_are_the_same(runs: tuple[Path, Path, Path]) -> None:
    one, killed, two = runs
    expected = lines(one / "metrics.jsonl")
    assert [row["step"] for row in expected] == [0, 1, 2, 3, 4]
    assert len(lines(killed / "metrics.jsonl")) == 3
    for folder in (killed, two):
        found = lines(folder / "metrics.jsonl")
        for before, after in zip(expected, found, strict=folder == two):
            assert before.keys() - {"process/devices"} == after.keys() - {"resumed", "process/devices"}
            for name, value in before.items():
                if not name.startswith(("time/", "speed/", "memory/", "compilations", "process/")):
                    assert after[name] == pytest.approx(value, abs=1e-5, rel=1e-5), (before["step"], name)
    # Nothing is compiled after the first step.
    assert len({row["compilations"] for row in lines(killed / "metrics.jsonl")}) == 1
    assert any(row["rollout/forks_granted"] > 0 for row in expected[:3])


def test_only_process_0_speaks_and_writes(runs: tuple[Path, Path, Path]) -> None:
    two = runs[2]
    assert (two / "report" / "index.html").is_file()
    assert log_of(two).read_text().count("report in ") == 1
    devices = [row["process/devices"] for row in lines(two / "metrics.jsonl") if "process/devices" in row]
    assert [text.partition(",")[0] for text in devices] == ["8 cpu devices of 2 processes"] * 2  # began and went on
    if importlib.util.find_spec("tensorboardX"):
        assert len(list((two / "tensorboard").iterdir())) == 2
    assert not list(two.glob("**/*.new"))


def test_exported_weights_are_the_same(runs: tuple[Path, Path, Path]) -> None:
    one, _, two = runs
    names = sorted(path.name for path in (one / "export").iterdir())
    assert names == sorted(path.name for path in (two / "export").iterdir())
    expected, found = (load_file(folder / "export" / "model.safetensors") for folder in (one, two))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        # AdamW's first steps turn rounding errors of tiny gradients into whole steps; few elements are that small.
        apart = np.abs(tensor.astype(np.float32) - found[name].astype(np.float32))
        assert np.mean(apart) < 1e-5, name


def test_an_evaluation_is_the_same(clone: Path) -> None:
    """Row for row; and byte for byte when the same processes are started again on half of the file."""
    one, two = clone / "evaluated_by_one", clone / "evaluated_by_two"
    masking = {"evaluate.masking": True}
    evaluate(small_config(**{"mesh.host_devices": 8} | RUN | masking), one)
    assert start(clone, two, "--mode=evaluate", **masking).wait(timeout=900) == 0, log_of(two).read_text()
    for before, after in zip(*(lines(folder / "evaluation" / "masking.jsonl") for folder in (one, two)), strict=True):
        assert_same(before, after)
    expected, found = (lines(folder / "evaluation" / "predictions.jsonl") for folder in (one, two))
    assert len(expected) == 12 and sum(len(row["boxes"]) for row in expected) > 6
    for before, after in zip(expected, found, strict=True):
        assert_same({name: value for name, value in before.items() if name != "box_entropy"}, after)
        assert_close(before["box_entropy"], after["box_entropy"])
    names = ("predictions.jsonl", "results.json", "synthetic/predictions.jsonl", "synthetic/masking.jsonl")
    whole = [(two / "evaluation" / name).read_bytes() for name in names]
    for name, content in zip(names[2:], whole[2:], strict=True):
        (two / "evaluation" / name).write_bytes(content[: len(content) // 2])
    assert start(clone, two, "--mode=evaluate", **masking).wait(timeout=900) == 0, log_of(two).read_text()
    assert [(two / "evaluation" / name).read_bytes() for name in names] == whole
    assert log_of(two).read_text().count("evaluated the model folder") == 2


def test_nothing_hangs_when_one_process_has_no_tool_call(clone: Path, runs: tuple[Path, Path, Path]) -> None:
    with socket.socket() as free:
        free.bind(("", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    overrides = json.dumps({name: str(value) for name, value in ({"mesh.host_devices": 4} | RUN).items()})
    command = [sys.executable, str(REPOSITORY / "tests" / "share_rollouts.py"), "4", str(clone / "shared"), overrides]
    shared = environment(clone) | {"MEDVR_PROCESSES": "2", "MEDVR_COORDINATOR": coordinator}
    both = [
        subprocess.Popen(command, cwd=clone, env=shared | {"MEDVR_PROCESS_ID": str(number)}, stderr=subprocess.PIPE)
        for number in range(2)
    ]
    for process in both:
        assert process.communicate(timeout=900)[1] is not None and process.returncode == 0
    busy, idle = (json.loads((clone / f"shared.{number}.json").read_text()) for number in range(2))
    for found in (busy, idle):
        assert all(found["told"])
        assert found["shared_error"] == "example 7: no such image"
    first, second = busy["rollouts"]
    assert first == second and all(t["zooms"] for t in first)
    first, second = idle["rollouts"]
    assert all(t["zooms"] for t in first) and not any(t["zooms"] for t in second)
    assert [t["texts"] for t in second] == [t["texts"][:1] for t in first]


ALONE = """
import os, jax
from medvr_jax import distributed, processes
from medvr_jax.errors import UserError
distributed.initialise(processes.read_processes(os.environ))
with distributed.ending_together():
    assert distributed.gather_json(jax.process_index()) == [0, 1]
    assert not distributed.any_process(False)  # from now on they are connected; else it takes a heartbeat's 100 s
    if jax.process_index() == 1:
        raise UserError("mine alone")
    distributed.any_process(True)
"""


def test_slurm_is_detected_and_who_fails_alone_does_not_leave_the_other_waiting(clone: Path) -> None:
    """With the variables of a SLURM step of two tasks."""
    step = {"SLURM_JOB_ID": str(10000 + os.getpid() % 4096), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    shared = environment(clone) | step | {"SLURM_STEP_NUM_TASKS": "2", "MEDVR_PROCESSES": "auto"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ALONE],
            cwd=REPOSITORY,
            env=shared | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [1, 2]
    assert errors[1].splitlines()[-1] == "medvr_jax: mine alone"


def test_a_wrong_mesh_is_an_error_of_both(clone: Path) -> None:
    """Found before the processes look for each other; the script ends with their status."""
    script = start(clone, clone / "wrong", mesh__data=3)
    assert script.wait(timeout=300) == 2
    expected = "mesh: data 3 x fsdp 1 x tensor 1 does not give mesh.host_devices x MEDVR_PROCESSES = 8"
    assert log_of(clone / "wrong").read_text().count(expected) >= 1


def test_a_supervised_recipe_runs_in_one_process(clone: Path) -> None:
    command = [sys.executable, "-m", "medvr_jax.main", "--config=configs/tiny_warmup.py", "--workdir=w"]
    shared = environment(clone) | {"MEDVR_PROCESSES": "auto"}
    done = subprocess.run(command, cwd=clone, env=shared, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "MEDVR_PROCESSES: found 'auto', but trainer = 'supervised' runs in one process" in done.stderr


def test_processes_are_read_from_the_environment() -> None:
    assert read_processes({}) == Processes(1, 0, None)
    assert read_processes({"MEDVR_PROCESSES": "1"}) == Processes(1, 0, None)
    assert read_processes({"MEDVR_PROCESSES": "auto"}) == Processes(None, None, None)
    full = {"MEDVR_PROCESSES": "4", "MEDVR_PROCESS_ID": "3", "MEDVR_COORDINATOR": "host:1234"}
    assert read_processes(full) == Processes(4, 3, "host:1234")
    wrong = [
        ({"MEDVR_PROCESSES": "many"}, "MEDVR_PROCESSES: found 'many'"),
        ({"MEDVR_PROCESSES": "0"}, "MEDVR_PROCESSES: found '0'"),
        ({"MEDVR_PROCESS_ID": "0"}, "MEDVR_PROCESS_ID: found '0'"),
        ({"MEDVR_PROCESSES": "auto", "MEDVR_COORDINATOR": "a:1"}, "MEDVR_COORDINATOR: found 'a:1'"),
        (full | {"MEDVR_PROCESS_ID": "4"}, "MEDVR_PROCESS_ID: found 4, allowed is 0 to 3"),
        (full | {"MEDVR_PROCESS_ID": ""}, "MEDVR_PROCESS_ID: found ''"),
        (full | {"MEDVR_COORDINATOR": "host"}, "MEDVR_COORDINATOR: found 'host', needed is HOST:PORT"),
    ]
    for variables, message in wrong:
        with pytest.raises(UserError, match=message):
            read_processes(variables)


def test_one_process_gathers_from_itself() -> None:
    rows = distributed.Rows(2, np.arange(2), np.ones(2, bool))
    arrays = {"a": np.arange(2)}
    assert distributed.gather_rows(arrays, rows) == arrays
    assert distributed.gather_json({"a": 1}) == [{"a": 1}]
    assert distributed.any_process(True) and not distributed.any_process(False)
    with pytest.raises(UserError, match="as it was"), distributed.together():
        raise UserError("as it was")
