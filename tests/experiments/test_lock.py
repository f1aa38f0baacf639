"""One process at a time makes the runs of an experiment."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medvr_jax.errors import UserError
from medvr_jax.experiments.lock import only_process

HOLD = """
import sys, time
from pathlib import Path
from medvr_jax.experiments.lock import only_process
with only_process(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="--workdir: another process is making the runs of .*grid; wait until"):
            with only_process(folder):
                raise AssertionError("two processes hold the folder")
        assert (folder / "lock").is_file()
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with only_process(folder):  # what a killed process leaves holds nobody up
        pass
    with only_process(folder):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"--workdir: .*lock cannot be locked \(No locks available\)"):
        with only_process(tmp_path):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written to: Permission denied"), only_process(tmp_path / "grid"):
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "grid").write_text("")
    with pytest.raises(UserError, match="--workdir: .*grid cannot be written to"), only_process(tmp_path / "grid"):
        pass
