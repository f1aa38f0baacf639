"""Whole runs through the entry point's own functions: resume bit for bit, variants, compilations, what a run leaves."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from medvr_jax import assembly
from medvr_jax.training.checkpoints import Checkpoints
from medvr_jax.training.loop import train
from medvr_jax.training.trainer import Trainer, make_train_state
from tests.tiny_run import SMALL, small_config
from tests.training.test_profiling import events

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = {"steps": 4, "checkpoint_every": 2, "evaluate_every": 2, "report.rollouts_every": 1, "report.tensorboard": True}
KEYS = """step eval/accuracy eval/hit_rate eval/mean_iou reward/total reward/accuracy reward/format reward/tool
base/right_rate base/reward_total base/hit_rate audit/hit_rate
rollout/tool_rate rollout/valid_call_rate rollout/forks_asked rollout/forks_granted train/loss train/kl train/entropy
train/grad_norm train/sampler_drift train/zero_spread_groups compilations compilations_from_cache time/compile
speed/sampled_tokens_per_second speed/trained_tokens_per_second speed/model_flops_rollout speed/model_flops_update
speed/utilisation_rollout speed/utilisation_update speed/decode_bandwidth_share padding/prompt padding/response
padding/crops memory/peak_process_gib time/preprocess time/vision time/prefill time/decode time/tool time/extend
time/reward time/update time/reshard time/checkpoint time/evaluate""".split()
OF_THE_PROCESS = ("time/", "speed/", "memory/", "compilations", "resumed", "process/")


def command(workdir: Path) -> list[str]:
    overrides = [f"--config.{name}={value}" for name, value in (SMALL | RUN | {"mesh.host_devices": 2}).items()]
    return [sys.executable, "-m", "medvr_jax.main", "--config=configs/tiny_cpu.py", f"--workdir={workdir}", *overrides]


def start(workdir: Path) -> subprocess.Popen:
    log = (workdir.parent / f"{workdir.name}.log").open("a")
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command(workdir), cwd=REPOSITORY, stdout=log, stderr=log, env=environment)


def rows(workdir: Path) -> list[dict[str, Any]]:
    file = workdir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One run without interruption, and one killed after its first checkpoint, in the middle of what follows."""
    folder = tmp_path_factory.mktemp("runs")
    whole, killed = folder / "whole", folder / "killed"
    assert start(whole).wait(timeout=900) == 0, (folder / "whole.log").read_text()
    process = start(killed)
    deadline = time.monotonic() + 900
    while len(rows(killed)) < 3:  # the row of step 2: behind the checkpoint of two steps, before that of four
        assert process.poll() is None and time.monotonic() < deadline, (folder / "killed.log").read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "export").exists()
    assert start(killed).wait(timeout=900) == 0, (folder / "killed.log").read_text()
    assert "resumed after step 2" in (folder / "killed.log").read_text()
    return whole, killed


def test_killed_and_resumed_equals_uninterrupted(runs: tuple[Path, Path]) -> None:
    whole, killed = runs

    def stable(workdir: Path) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in row.items() if not name.startswith(OF_THE_PROCESS)} for row in rows(workdir)
        ]

    assert stable(whole) == stable(killed)
    assert [row["step"] for row in stable(whole)] == [0, 1, 2, 3, 4]
    for step in range(4):
        name = f"rollouts/step_{step:06d}.jsonl"
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert sum(row.get("rollout/forks_granted", 0) for row in rows(whole)) > 0
    states = [restored(workdir) for workdir in runs]
    for first, second in zip(*map(jax.tree.leaves, states), strict=True):
        assert np.asarray(first).tobytes() == np.asarray(second).tobytes()


def restored(workdir: Path) -> Any:
    parts = assembly.assemble(small_config(mesh__host_devices=2), jax.devices()[:2])
    checkpoints = Checkpoints(workdir, 2)
    assert checkpoints.latest() == 4
    state, _ = checkpoints.restore(4, make_train_state(parts)[0])
    checkpoints.close()
    return state


def test_a_resumed_run_repeats_no_step_in_tensorboard(runs: tuple[Path, Path]) -> None:
    """As TensorBoard reads both runs; the killed one has rows of steps that it did again."""
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_accumulator")
    for workdir in runs:
        found = reader.EventAccumulator(str(workdir / "tensorboard"), size_guidance={"tensors": 0})
        found.Reload()
        for name in ("reward/total", "eval/accuracy"):
            events = [(event.step, event.tensor_proto.float_val[0]) for event in found.Tensors(name)]
            assert np.allclose(events, [(row["step"], row[name]) for row in rows(workdir) if name in row]), name
        assert [event.step for event in found.Tensors("rollouts/group_00")] == [0, 1, 2, 3]


def test_a_run_leaves_what_it_promises(runs: tuple[Path, Path]) -> None:
    whole, _ = runs
    found = rows(whole)
    assert not set(KEYS) - set(found[0])
    assert any(name.startswith("time/") for name in found[0])
    for name in ("config.json", "export/model.safetensors", "export/tokenizer.json", "report/index.html"):
        assert (whole / name).is_file(), name
    assert json.loads((whole / "config.json").read_text())["steps"] == 4
    trajectory = json.loads((whole / "rollouts/step_000000.jsonl").read_text().splitlines()[0])
    assert trajectory["turns"] and len(trajectory["token_ids"]) == len(trajectory["entropy"])
    spoken = zip(trajectory["pieces"], trajectory["sampled"], strict=True)
    assert "".join(piece for piece, own in spoken if own) == "".join(turn["text"] for turn in trajectory["turns"])


def test_recorded_positions_are_indices_into_the_recorded_tokens(runs: tuple[Path, Path]) -> None:
    """A fork shares its parent's tokens up to its position, where the parent's box begins."""
    forks = 0
    for file in sorted((runs[0] / "rollouts").glob("*.jsonl")):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for fork in (record for record in records if record["origin"] == "fork"):
            (parent,) = (r for r in records if (r["group"], r["slot"]) == (fork["group"], fork["parent"]))
            start = fork["fork_position"]
            assert fork["token_ids"][:start] == parent["token_ids"][:start] and fork["sampled"][start]
            (decision,) = (d for d in parent["decisions"] if d["granted"] and d["child"] == fork["slot"])
            assert decision["position"] == start and decision["eligible"] and decision["asked"]
            forks += fork["token_ids"][start] != parent["token_ids"][start]
    assert forks  # some differ in the very first token


def test_nothing_is_compiled_after_the_first_step(runs: tuple[Path, Path]) -> None:
    """Through checkpoints, evaluations and the end of the run."""
    counts = [row["compilations"] for row in rows(runs[0])]
    assert counts[0] > 0 and len(set(counts)) == 1


def test_a_resumed_run_says_so(runs: tuple[Path, Path]) -> None:
    whole, killed = runs
    assert [row["step"] for row in rows(killed) if row.get("resumed")] == [2]
    assert not any("resumed" in row for row in rows(whole))
    summary = (killed / "report/summary.md").read_text()
    assert "the last by step 2; resumed, and so compiled anew, with step 2." in summary


def test_a_finished_run_is_left_as_it_is(runs: tuple[Path, Path]) -> None:
    """Started again it evaluates nothing; an export that is missing is made."""
    whole, _ = runs
    names = ("metrics.jsonl", "config.json", "export/model.safetensors")
    before = [(whole / name).read_bytes() for name in names]
    written = (whole / "metrics.jsonl").stat().st_mtime_ns
    shutil.rmtree(whole / "export")
    done = subprocess.run(command(whole), cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == f"{whole} is finished: all 4 updates are done and evaluated"
    assert second.startswith("exported step 4") and third.startswith("report in")
    assert [(whole / name).read_bytes() for name in names] == before
    assert (whole / "metrics.jsonl").stat().st_mtime_ns == written


def test_the_other_modes_work_on_the_run(runs: tuple[Path, Path]) -> None:
    whole, _ = runs
    before = (whole / "export/model.safetensors").read_bytes()
    for mode in ("evaluate", "export", "report"):
        # No --config: the run's own.
        line = [sys.executable, "-m", "medvr_jax.main", f"--workdir={whole}", f"--mode={mode}"]
        done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    assert (whole / "export/model.safetensors").read_bytes() == before
    results = json.loads((whole / "evaluation/results.json").read_text())
    assert results["accuracy"] == rows(whole)[-1]["eval/accuracy"]
    assert results["hit_rate"] == rows(whole)[-1]["eval/hit_rate"]
    lines = (whole / "evaluation/predictions.jsonl").read_text().splitlines()
    assert len(lines) == 8 == results["examples"]
    assert "accuracy" in (whole / "evaluation/table.md").read_text()


@pytest.mark.parametrize("variant", ["text", "zoom", "evr", "cca"])
def test_every_variant_runs(variant: str, tmp_path: Path) -> None:
    """Two steps each on eight devices; what distinguishes the variants shows in the figures."""
    sizes = {"data__prompts_per_step": 8, "mesh__host_devices": 8, "rollout__trajectories": 4}
    config = small_config(variant, steps=2, export_at_end=False, report__profile_steps="1", **sizes)
    train(config, tmp_path)
    assert [folder.name for folder in (tmp_path / "profile").iterdir()] == ["step_000001"]
    for names in events(tmp_path / "profile/step_000001"):
        assert "while" in " ".join(names)  # the sampling loop is among them
    row = rows(tmp_path)[1]
    assert np.isfinite(row["train/loss"]) and row["train/sampler_drift"] < 1e-4
    zooms = variant != "text"
    assert (row["rollout/tool_rate"] > 0.5) == zooms
    assert (row["rollout/forks_granted"] + row["rollout/fresh"] > 0) == (variant == "evr")
    assert ("fork/right_rate" in row) == (row["rollout/forks_granted"] > 0)
    lines = (tmp_path / "rollouts/step_000001.jsonl").read_text().splitlines()
    tool = [r for r in map(json.loads, lines) if r["correct"] and r["boxes"]]
    assert all(r["rewards"]["tool"] == 1.0 for r in tool if variant in ("zoom", "evr"))
    assert all(r["rewards"]["tool"] in (0.5, 1.0) for r in tool)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__freeze_vision_tower": False},
        {"grpo__updates_per_batch": 2, "grpo__micro_batch_groups": 2},
        {"grpo__skip_zero_spread": True, "grpo__aggregation": "sequence", "optimizer__schedule": "cosine"},
    ],
)
def test_options_of_the_update(changes: dict[str, object]) -> None:
    """Each option trains, and does something: the parameters end elsewhere than without it."""
    changed = two_steps(**changes)
    assert np.isfinite(changed["embedding"]).all()
    moved = [not np.array_equal(two_steps()[key], changed[key]) for key in ("embedding", "vision")]
    assert moved[0]
    assert moved[1] == ("model__freeze_vision_tower" in changes)


@functools.cache
def two_steps(**changes: object) -> dict[str, np.ndarray]:
    """Two arrays of the parameters after two steps."""
    config = small_config(steps=2, export_at_end=False, rollout__trajectories=4, **changes)
    trainer = Trainer(assembly.assemble(config, jax.devices()[:1]))
    for step in range(2):
        trainer.step(step)
    params = trainer.state.params
    return {
        "embedding": np.asarray(params["embedding"][...]),
        "vision": np.asarray(params["vision"]["patch_kernel"][...]),
    }
