"""The launch scripts: what they install and when, and that they work from any folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# Stands in for .venv/bin/python: writes down how it was called, in place of installing or running anything.
RECORDER = """#!/usr/bin/env bash
echo "$(pwd) $* ${MALLOC_TOP_PAD_:-}" >> "$RECORD"
[[ "$*" == *"$FAIL_ON"* ]] && exit 3
exit 0
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the scripts and a `.venv` whose programs only write down their calls."""
    folder = tmp_path / "clone"
    shutil.copytree(REPOSITORY / "launch", folder / "launch")
    shutil.copytree(REPOSITORY / ".ci", folder / ".ci")
    for name in ("requirements.txt", "requirements-extras.txt", "requirements-test.txt"):
        shutil.copy(REPOSITORY / name, folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "ruff"):
        program = folder / ".venv" / "bin" / name
        program.write_text(RECORDER)
        program.chmod(0o755)
    return folder


def launch(clone: Path, script: str, *arguments: str, fail_on: str = "nothing") -> tuple[int, list[str]]:
    """Runs a script from elsewhere; returns its exit status and the calls it made."""
    record = clone.parent / "record"
    record.write_text("")
    environment = dict(os.environ, RECORD=str(record), FAIL_ON=fail_on)
    status = subprocess.run(["bash", str(clone / script), *arguments], cwd="/", env=environment).returncode
    calls = record.read_text().splitlines()
    assert all(call.startswith(f"{clone} ") for call in calls)
    return status, [call.removeprefix(f"{clone} ").strip() for call in calls]


def test_packages_are_installed_once(clone: Path) -> None:
    status, calls = launch(clone, "launch/quickstart.sh", "--config.steps=3")
    assert status == 0
    assert [("pip install" in call, "-r requirements.txt" in call) for call in calls] == [(True, True), (False, False)]
    run = "-m medvr_jax.main --config=configs/tiny_cpu.py --workdir=runs/tiny --config.steps=3"
    assert calls[1] == f"{run} 268435456"

    assert launch(clone, "launch/quickstart.sh")[1] == [run.removesuffix(" --config.steps=3") + " 268435456"]
    with (clone / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    assert len(launch(clone, "launch/quickstart.sh")[1]) == 2


def test_a_failed_installation_is_not_taken_for_done(clone: Path) -> None:
    status, calls = launch(clone, "launch/quickstart.sh", fail_on="pip install")
    assert status == 3 and len(calls) == 1
    assert len(launch(clone, "launch/quickstart.sh")[1]) == 2


@pytest.mark.parametrize(("fail_on", "expected"), [("nothing", 0), ("pytest", 3), ("check .", 3), ("pip install", 3)])
def test_status_of_the_test_script(clone: Path, fail_on: str, expected: int) -> None:
    status, calls = launch(clone, ".ci/run", "-k", "rope", fail_on=fail_on)
    assert status == expected
    if fail_on != "pip install":
        assert calls[-1] == "-m pytest -q -n 2 --dist loadfile --timeout=1200 -k rope"
        assert [call for call in calls if call.startswith("check")] == ["check ."]


def test_an_unsuitable_python_is_refused(clone: Path) -> None:
    shutil.rmtree(clone / ".venv")
    environment = dict(os.environ, PYTHON="false")
    result = subprocess.run(
        ["bash", str(clone / "launch" / "quickstart.sh")], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr == "No Python 3.11 or 3.12 found (tried: false); set PYTHON=/path/to/python\n"


def test_every_pin_is_exact_and_torch_is_for_tests_only() -> None:
    for name in ("requirements.txt", "requirements-extras.txt", "requirements-test.txt"):
        lines = [line.partition("#")[0].strip() for line in (REPOSITORY / name).read_text().splitlines()]
        for line in filter(None, lines):
            assert re.fullmatch(r"[A-Za-z0-9_-]+==[0-9][0-9.]*(; python_version (<|>=) \"3\.12\")?", line), line
            assert name == "requirements-test.txt" or not line.startswith("torch")
