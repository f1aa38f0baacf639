"""Two processes that read files, stopped after a step and started again, see what one process sees."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from medvr_jax.training.loop import train
from tests.datasets.test_stream import write_lesions
from tests.tiny_run import SMALL, small_config

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = {
    "data.name": "jsonl", "data.prompts_per_step": 8, "data.test_examples": 8, "rollout.trajectories": 2,
    "prompt.bucket": 112, "checkpoint_every": 1, "evaluate_every": 2, "report.rollouts_every": 1,
    "optimizer.schedule": "constant", "export_at_end": False,
}  # fmt: skip


def both(folder: Path, steps: int, settings: dict[str, Any]) -> list[subprocess.CompletedProcess[str]]:
    """A run of two processes with four devices each."""
    with socket.socket() as free:
        free.bind(("", 0))
        shared = {"MEDVR_PROCESSES": "2", "MEDVR_COORDINATOR": f"localhost:{free.getsockname()[1]}"}
    command = [sys.executable, "-m", "medvr_jax.main", "--config=configs/tiny_cpu.py:text", f"--workdir={folder}"]
    overrides = SMALL | settings | {"mesh.host_devices": 4, "steps": steps}
    command += [f"--config.{name}={value}" for name, value in overrides.items()]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"), "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | cache | shared | {"MEDVR_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    texts = [process.communicate(timeout=900) for process in started]
    return [
        subprocess.CompletedProcess(command, process.returncode, *text)
        for process, text in zip(started, texts, strict=True)
    ]


def test_processes_share_one_stream(tmp_path: Path) -> None:
    write_lesions(tmp_path, 12)
    (tmp_path / "broken.jsonl").write_text((tmp_path / "train.jsonl").read_text() + '\n{"image": "0.png"')
    files = {"data.train_file": tmp_path / "train.jsonl", "data.test_file": tmp_path / "train.jsonl"}
    settings = RUN | files | {"data.image_folder": tmp_path}
    train(small_config("text", **settings | {"mesh.host_devices": 8, "steps": 2}), tmp_path / "one")
    for steps in (1, 2):
        for done in both(tmp_path / "two", steps, settings):
            assert done.returncode == 0, done.stderr
    seen = []
    for step in range(2):
        name = f"rollouts/step_{step:06d}.jsonl"
        records = [
            [json.loads(line) for line in (tmp_path / run / name).read_text().splitlines()] for run in ("one", "two")
        ]
        told = [[(r["group"], r["slot"], r["prompt_id"]) for r in of_run] for of_run in records]
        assert told[0] == told[1] and len(told[0]) == 16
        if step == 0:  # behind an update, whose sums are taken in another order, a draw may fall otherwise
            assert [r["token_ids"] for r in records[0]] == [r["token_ids"] for r in records[1]]
        seen += [identity for _, slot, identity in told[0] if slot == 0]
    assert len(set(seen[:12])) == 12  # an epoch

    broken = settings | {"data.train_file": tmp_path / "broken.jsonl"}
    for number, done in enumerate(both(tmp_path / "broken", 1, broken)):
        assert done.returncode == 2 and f"{tmp_path}/broken.jsonl:13: not JSON" in done.stderr, (number, done.stderr)
    assert len((tmp_path / "broken" / "faults" / "train_file.jsonl").read_text().splitlines()) == 1
