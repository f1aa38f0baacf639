"""The launch scripts for several processes: what they would run, and what they say to wrong arguments."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
RUN = ["--config=configs/tiny_cpu.py", "--workdir=/shared/my runs", '--config.prompt.system=Say "it\'s $HOME".']
GKE = {
    "NAME": "medvr-7b", "IMAGE": "registry.example/medvr_jax:1", "CLAIM": "shared", "ACCELERATOR": "tpu-v5p-slice",
    "TOPOLOGY": "4x4x2", "HOSTS": "8", "CHIPS": "4",
}  # fmt: skip
DRY = [
    ("processes.sh", ["3"], {}),
    ("worker.sh", ["tpu"], {}),
    ("tpu_pod.sh", ["my-pod", "us-east5-a"], {}),
    ("slurm_gpu.sh", ["2", "8"], {}),
    ("gke.sh", [], GKE),
]


def launch(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a script where none of the programs it would call can be found, beside the shell's own."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")} | variables
    command = ["bash", str(LAUNCH / script), *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_scripts_are_sound_bash(script: str) -> None:
    assert subprocess.run(["bash", "-n", LAUNCH / script]).returncode == 0


@pytest.mark.parametrize(("script", "arguments", "variables"), DRY)
def test_a_dry_run_prints_what_would_run(script: str, arguments: list[str], variables: dict[str, str]) -> None:
    done = launch(script, "--dry-run", *arguments, *RUN, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    wanted = "launch/worker.sh" if script in ("gke.sh", "tpu_pod.sh") else "medvr_jax.main"
    assert wanted in done.stdout
    if script == "gke.sh":
        assert yaml.safe_load(done.stdout)["metadata"]["name"] == "medvr-7b"
        return
    # What follows the program is, to a shell, the arguments as they were given.
    (line, *_) = [line for line in done.stdout.splitlines() if wanted in line]
    words = shlex.split(line)
    if script == "tpu_pod.sh":
        words = shlex.split(words[-1])
    assert [word for word in words if word in RUN] == RUN


@pytest.mark.parametrize(("script", "arguments", "variables"), DRY)
def test_wrong_arguments_are_told_the_usage(script: str, arguments: list[str], variables: dict[str, str]) -> None:
    for number in range(len(arguments)):
        wrong = [*arguments[:number], "--config=a", *arguments[number + 1 :]]
        assert refused(launch(script, *wrong, *RUN)).startswith(f"launch/{script}: found '--config=a', needed is ")
    for name in variables:
        assert refused(launch(script, *RUN, **(variables | {name: ""}))).startswith(f"launch/gke.sh: {name}: found ''")
    for dry in ([], ["--dry-run"]):
        assert "no arguments for medvr_jax.main" in refused(launch(script, *dry, *arguments, **variables))


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (2, "")
    assert f"usage: {'NAME=' if 'gke' in done.stderr else 'bash launch/'}" in done.stderr
    return done.stderr


def test_processes_differ_in_their_number_only() -> None:
    lines = launch("processes.sh", "--dry-run", "3", *RUN).stdout.splitlines()
    assert [line.replace(f"MEDVR_PROCESS_ID={n}", "MEDVR_PROCESS_ID=0") for n, line in enumerate(lines)] == [
        lines[0]
    ] * 3


def test_every_host_of_a_slice_gets_a_pod() -> None:
    job = yaml.safe_load(launch("gke.sh", "--dry-run", *RUN, **GKE).stdout)["spec"]["replicatedJobs"][0]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 8
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x2",
    }
    (worker,) = pod["containers"]
    assert worker["command"] == ["bash", "launch/worker.sh", "tpu"]
    assert worker["args"] == RUN
    assert worker["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "shared"}


def test_slurm_gets_a_task_per_gpu() -> None:
    text = launch("slurm_gpu.sh", "--dry-run", "2", "8", *RUN, SBATCH_FLAGS="--partition=gpu --time=8:00:00").stdout
    (line,) = [line for line in text.splitlines() if line.startswith("sbatch ")]
    flags = shlex.split(line.partition("<<")[0])
    assert {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=gpu", "--time=8:00:00"} < set(flags)
    assert "export MEDVR_PROCESSES=auto" in text and "srun --kill-on-bad-exit=1" in text


@pytest.mark.parametrize(("failing", "expected"), [("none", 0), ("0", 7), ("1", 7)])
def test_one_failing_process_ends_the_others(tmp_path: Path, failing: str, expected: int) -> None:
    """With a stand-in for python: the process named fails, the others would go on for a minute."""
    folder = tmp_path / "clone"
    (folder / "launch").mkdir(parents=True)
    for name in ("processes.sh", "environment.sh"):
        (folder / "launch" / name).write_text((LAUNCH / name).read_text())
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/usr/bin/env bash\n"
        '[ "$1" = -c ] && { echo 12345; exit; }\n'
        f'[ "$MEDVR_PROCESS_ID" = {failing} ] && exit 7\n'
        f"[ {failing} = none ] || exec sleep 60\n"
        'echo "$MEDVR_PROCESS_ID of $MEDVR_PROCESSES at $MEDVR_COORDINATOR: $*"\n'
    )
    python.chmod(0o755)
    for name in ("requirements.txt", ".venv/installed-requirements.txt"):
        (folder / name).write_text("")
    command = ["bash", str(folder / "launch" / "processes.sh"), "3", "--workdir=a b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == expected
    if failing == "none":
        told = [f"{number} of 3 at localhost:12345: -m medvr_jax.main --workdir=a b" for number in range(3)]
        assert sorted(done.stdout.splitlines()) == told
