"""`--mode=plan` as a user meets it: tables, files, and one line for what cannot be planned or does not fit."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medvr_jax import configuration
from medvr_jax.errors import UserError
from medvr_jax.planning.advice import advise
from medvr_jax.planning.compiler import bytes_needed
from medvr_jax.planning.run import plan

REPOSITORY = Path(__file__).resolve().parents[2]
SEVEN = "configs/medvr_qwen2_5_vl_7b.py"
SMALL = {"data.prompts_per_step": 4, "data.evaluation_batch": 4, "rollout.trajectories": 4}
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


def loaded(recipe, **fields):
    overrides = [(name.replace("__", "."), str(value)) for name, value in fields.items()]
    return configuration.load_config(recipe, overrides, files=False)


def test_on_a_processor_without_data_or_weights(tmp_path):
    """From another folder, through the entry point; no run is needed in the workdir."""
    overrides = [f"--config.{name}={value}" for name, value in SMALL.items()]
    command = [sys.executable, "-m", "medvr_jax.main", f"--config={REPOSITORY}/configs/tiny_cpu.py", "--mode=plan"]
    command += ["--topology=cpu", f"--workdir={tmp_path}/plan", *overrides]
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert (tmp_path / "plan" / "plan.md").read_text().strip() == done.stdout.strip()
    names = ["reshard", "vision", "slice", "prefill", "decode", "crops", "extend", "update"]
    assert [row["name"] for row in figures["programs"]] == names
    assert figures["fits"] is None and figures["devices"] == 2
    assert figures["peak"] == max(row["total"] for row in figures["programs"])
    assert "compiled" not in done.stdout


def test_what_does_not_fit_says_what_to_change(capsys, tmp_path):
    """2B whole on one small GPU; the table comes first."""
    config = loaded("configs/medvlm_r1_qwen2_vl_2b.py", mesh__fsdp=1, model__remat="none")
    with pytest.raises(UserError) as caught:
        plan(config, "l40s:1", "2B", str(tmp_path))
    message, printed = str(caught.value), capsys.readouterr().out
    assert message.startswith("--topology: Does not fit: ") and "--config." in message
    assert "| update |" in printed and "ESTIMATE" in printed
    assert "Does not fit" not in printed and "Does not fit: " in (tmp_path / "plan.md").read_text()  # said once
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["fits"] is False and figures["peak"] > figures["memory"]


def test_advice_takes_what_changes_no_result_first():
    meshes = {"mesh__data": -1, "mesh__fsdp": 1, "mesh__tensor": 1}
    config = loaded(SEVEN, data__prompts_per_step=64, grpo__micro_batch_groups=64, data__evaluation_batch=64, **meshes)
    needs = lambda c: 10.0 * c.grpo.micro_batch_groups / c.mesh.tensor + c.grpo.kl_weight  # noqa: E731
    found = advise(config, 8, needs, 350.0)
    assert found.fits and found.changes == {"grpo.micro_batch_groups": 32}
    assert found.bytes == needs(config) / 2 + config.grpo.kl_weight / 2


@pytest.mark.parametrize(
    ("topology", "fields", "message"),
    [
        ("v9:4", {}, "--topology: found 'v9:4'"),
        ("h100:6", {}, "mesh: data=1, fsdp=-1, tensor=4 do not multiply to the 6 devices"),
        ("h100:24", {}, "data.prompts_per_step: found 256, allowed are multiples of the mesh's data x fsdp = 6"),
        ("h100:8", {"mesh__fsdp": 1, "mesh__tensor": 8}, "mesh.tensor: found 8"),
        ("h100:8", {"model__architecture": "qwen9"}, "model.architecture: found 'qwen9', allowed are qwen2.5-vl-3b"),
        ("h100:8", {"model__architecture": ""}, "model.path: '' holds no config.json"),
        (
            "h100:8",
            {"model__path": "medvr_jax/assets/tiny"},
            "model.architecture: found 'qwen2.5-vl-7b' with text vocab_size = 152064, but medvr_jax/assets/tiny",
        ),
    ],
)
def test_wrong_input_costs_one_line(topology, fields, message):
    with pytest.raises(UserError) as caught:
        plan(loaded(SEVEN, **fields), topology, "7B", None)
    assert str(caught.value).startswith(message)


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed here")
def test_a_tpu_needs_the_compiler():
    with pytest.raises(UserError) as caught:
        plan(loaded(SEVEN), "v5p:4x4x2", "7B", None)
    assert str(caught.value).startswith("--topology: v5p:4x4x2 needs the libtpu compiler; pip install")


def test_the_compilers_refusals_are_understood():
    new = "the total memory required for HLO temporaries (126.61G) exceeds available HBM (95.74G)."
    old = "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.5G of 15.75G hbm."
    assert bytes_needed(new) == int(126.61 * 2**30) and bytes_needed(old) == int(17.5 * 2**30)
    assert bytes_needed("INTERNAL: Mosaic failed") is None


@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed (requirements-tpu.txt)")
def test_compiled_for_a_tpu(tmp_path):
    """The tiny recipe on four chips, in a process of its own: libtpu is loaded once and keeps its settings."""
    overrides = [f"--config.{name}={value}" for name, value in SMALL.items()]
    command = [sys.executable, "-m", "medvr_jax.main", "--config=configs/tiny_cpu.py:zoom", "--mode=plan"]
    command += ["--topology=v5e:2x2", f"--workdir={tmp_path}", "--config.mesh.fsdp=2", *overrides]
    command += ["--config.mesh.host_devices=1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "plan.json").read_text())["programs"]}
    for name, row in rows.items():
        assert row["compiled"]["fits"] and row["compiled"]["temporaries"] > 0, name
        assert row["compiled"]["operations"] > 0 or name == "reshard", name
    assert rows["update"]["compiled"]["traffic"]["sent"], "gradients cross the devices"
    assert "| update |" in done.stdout and "Fits: " in done.stdout
