"""What a user gets wrong costs one line and exit status 2, through the real entry point."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs import tiny_cpu
from medvr_jax import configuration
from medvr_jax.workdir import prepare_workdir

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = REPOSITORY / "medvr_jax" / "assets" / "tiny"


def run_main(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m medvr_jax.main` from another folder, as a user may."""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), JAX_PLATFORMS="cpu")
    command = [sys.executable, "-m", "medvr_jax.main", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def write_questions(folder: Path, image: bytes | None = None) -> Path:
    """A JSONL file of two questions about images/a.png."""
    (folder / "images").mkdir()
    if image is not None:
        (folder / "images" / "a.png").write_bytes(image)
    line = {"image": "a.png", "question": "What is it?", "options": ["a", "b"], "answer": "A"}
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps({"id": number, **line}) + "\n" for number in range(2)))
    return file


def jsonl_flags(file: Path, images: Path) -> list[str]:
    return [
        "--config.data.name=jsonl",
        f"--config.data.train_file={file}",
        f"--config.data.test_file={file}",
        f"--config.data.image_folder={images}",
    ]


def unknown_field(folder: Path) -> tuple[list[str], str]:
    return ["--config.rollout.temprature=1"], "rollout.temprature: unknown field, the nearest valid name is"


def wrong_type(folder: Path) -> tuple[list[str], str]:
    return ["--config.steps=many"], "steps: found 'many', allowed is a whole number"


def missing_image_folder(folder: Path) -> tuple[list[str], str]:
    return jsonl_flags(write_questions(folder), folder / "nowhere"), f"data.image_folder: '{folder}/nowhere' is not a"


def corrupt_safetensors(folder: Path) -> tuple[list[str], str]:
    model = folder / "model"
    shutil.copytree(TINY, model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return [f"--config.model.path={model}"], str(weights)


def workdir_of_another_config(folder: Path) -> tuple[list[str], str]:
    config = tiny_cpu.get_config()
    config.seed = 5
    prepare_workdir(folder / "run", configuration.validate(config), "train")
    (folder / "run" / "metrics.jsonl").write_text("{}\n")
    return [], f"{folder}/run belongs to another config: seed was 5, now 0"


def unwritable_workdir(folder: Path) -> tuple[list[str], str]:
    (folder / "file").touch()  # not a folder: no permission bits, which the superuser passes over
    return [f"--workdir={folder}/file/run"], f"{folder}/file/run cannot be written to"


def unknown_mode(folder: Path) -> tuple[list[str], str]:
    return [
        "--mode=learn"
    ], "--mode=learn: value should be one of <train|evaluate|export|report|leaks|plan|ask|experiment>"


def unknown_variant(folder: Path) -> tuple[list[str], str]:
    return [f"--config={REPOSITORY}/configs/tiny_cpu.py:zooom"], "variant 'zooom', allowed are text, zoom, evr"


def one_trajectory(folder: Path) -> tuple[list[str], str]:
    return ["--config.rollout.trajectories=1"], "rollout.trajectories: found 1, allowed is 2 or more"


def negative_steps(folder: Path) -> tuple[list[str], str]:
    return ["--config.steps=-5"], "steps: found -5, allowed is 1 or more"


def unreadable_image(folder: Path) -> tuple[list[str], str]:
    file = write_questions(folder, image=b"\x89PNG\r\n\x1a\n, but the rest is missing")
    return jsonl_flags(file, folder / "images"), f"{folder}/images/a.png"


def unknown_flag(folder: Path) -> tuple[list[str], str]:
    return ["--wrokdir=x"], "--wrokdir: unknown flag, the nearest valid one is --workdir"


def missing_recipe(folder: Path) -> tuple[list[str], str]:
    return ["--config=nowhere.py"], "--config: 'nowhere.py' is not a file"


def experiment_without_arms(folder: Path) -> tuple[list[str], str]:
    return ["--mode=experiment"], "experiment.arms: found (), but --mode=experiment runs the arms"


KINDS = (
    unknown_field,
    wrong_type,
    missing_image_folder,
    corrupt_safetensors,
    workdir_of_another_config,
    unwritable_workdir,
    unknown_mode,
    unknown_variant,
    one_trajectory,
    negative_steps,
    unreadable_image,
    unknown_flag,
    missing_recipe,
    experiment_without_arms,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_one_line_and_exit_status_2(kind, tmp_path: Path) -> None:
    arguments, message = kind(tmp_path)
    default = [f"--config={REPOSITORY}/configs/tiny_cpu.py", f"--workdir={tmp_path}/run"]
    result = run_main(tmp_path, *default, *arguments)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("medvr_jax: ") and message in result.stderr
    assert "Traceback" not in result.stdout


def test_missing_flags_are_named(tmp_path: Path) -> None:
    for arguments, message in (
        (["--config=x.py"], "--workdir: missing"),
        (["--workdir=run"], "--config: missing"),
        (["--workdir=run", "--mode=export"], "holds no config.json"),
        (["--workdir=run", "--config.steps"], "--config.steps: found no value"),
        (["train"], "found argument 'train'"),
        (["--stesp=3"], "--stesp: unknown flag, the nearest valid one is --config.steps"),
        (["--modee=export"], "--modee: unknown flag, the nearest valid one is --mode"),
        (["--temperature", "2"], "--temperature: unknown flag, the nearest valid one is --config.rollout.temperature"),
    ):
        result = run_main(tmp_path, *arguments)
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and message in result.stderr
    assert not (tmp_path / "run").exists()


def test_help_is_no_failure(tmp_path: Path) -> None:
    result = run_main(tmp_path, "--help")
    assert result.returncode == 0 and "--workdir" in result.stdout, result.stderr


def test_a_report_needs_the_runs_folder_only(tmp_path: Path) -> None:
    model, workdir = tmp_path / "model", tmp_path / "run"
    shutil.copytree(TINY, model)
    config = tiny_cpu.get_config()
    config.model.path = str(model)
    prepare_workdir(workdir, configuration.validate(config), "train")
    shutil.rmtree(model)
    metrics = workdir / "metrics.jsonl"
    for text, message in (
        ("", f"{metrics} holds no row"),
        ('{"loss": 1}\n', f"{metrics}, line 1: step: found nothing"),
    ):
        metrics.write_text(text)
        result = run_main(tmp_path, f"--workdir={workdir}", "--mode=report")
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and message in result.stderr
        assert not (workdir / "report").exists()
    metrics.write_text('{"step": 0, "reward/total": 0.5}\n')
    result = run_main(tmp_path, f"--workdir={workdir}", "--mode=report")
    assert result.returncode == 0, result.stderr
    assert (workdir / "report" / "index.html").is_file()
    assert run_main(tmp_path, f"--workdir={workdir}", "--mode=export").returncode == 2


def test_checking_a_configuration_imports_nothing_heavy() -> None:
    heavy = ("jax", "flax", "orbax", "transformers", "torch", "tensorstore")
    code = f"import sys, medvr_jax.main; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
