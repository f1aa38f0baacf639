"""`--mode=ask` through the real entry point, as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from medvr_jax.asking.request import NOTICE
from tests.inputs.test_image_formats import huge_png

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = f"--config={REPOSITORY}/configs/tiny_cpu.py"


def run_ask(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs --mode=ask from another folder."""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), JAX_PLATFORMS="cpu", **variables)
    command = [sys.executable, "-m", "medvr_jax.main", "--mode=ask", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def text_file(path: Path) -> str:
    path.write_text("What is in this image?\n")
    return f"--image: {path}: not a readable image (of no known format; readable are PNG"


def empty_file(path: Path) -> str:
    path.touch()
    return f"--image: {path}: not a readable image (an empty file)"


def truncated_jpeg(path: Path) -> str:
    Image.effect_noise((200, 200), 60).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-2000])
    return f"--image: {path}: not a readable image (OSError: image file is truncated"


def huge_image(path: Path) -> str:
    path.write_bytes(huge_png(30_000))
    return f"--image: {path}: not a readable image (900,000,000 pixels; data.max_image_pixels allows 100,000,000)"


def missing_file(path: Path) -> str:
    return f"--image: no such file {path}"


@pytest.mark.parametrize("kind", [text_file, empty_file, truncated_jpeg, huge_image, missing_file])
def test_what_is_no_image_costs_one_line(kind: Callable[[Path], str], tmp_path: Path) -> None:
    message = kind(tmp_path / "image")
    result = run_ask(
        tmp_path, RECIPE, f"--image={tmp_path}/image", "--question=What is it?", f"--workdir={tmp_path}/run"
    )
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith(f"medvr_jax: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--question="], "--question: found ''"),
        (["--question=a", "--frame=x"], "--frame"),
        (["--question=a", "--window=1"], "--window: found '1', allowed is CENTRE,WIDTH"),
        (["--question=a", "--workdir=nothing"], "--workdir: nothing holds no checkpoint; train there first, or give"),
        (["--workdir=a", "--mode=evaluate"], "--image: found 'a.png', but only --mode=ask takes it"),
        (["--question=a"], "--workdir: missing"),
        (["--question=a", RECIPE, "MEDVR_PROCESSES"], "MEDVR_PROCESSES: found '2', but --mode=ask runs in one process"),
    ],
    ids=["question", "frame", "window", "no checkpoint", "other mode", "no workdir", "processes"],
)
def test_flags_that_make_no_sense(arguments: list[str], message: str, tmp_path: Path) -> None:
    """Told before anything is loaded."""
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    several = {"MEDVR_PROCESSES": "2", "MEDVR_PROCESS_ID": "0", "MEDVR_COORDINATOR": "localhost:1"}
    variables = several if "MEDVR_PROCESSES" in arguments else {}
    given = [argument for argument in arguments if argument != "MEDVR_PROCESSES"]
    result = run_ask(tmp_path, "--image=a.png", *given, **variables)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert message in result.stderr


def test_a_ct_is_asked_from_the_model_folder(tmp_path: Path) -> None:
    """With a window of one's own, and characters that are not in the tiny vocabulary; no run is needed."""
    scan = get_testdata_file("CT_small.dcm", download=False)
    result = run_ask(tmp_path, RECIPE, f"--image={scan}", "--question=Was ist 肝?", "--window=40,400")
    assert result.returncode == 0, result.stderr
    assert (
        result.stdout.startswith(NOTICE)
        and "CT_small.dcm (DICOM), 128 x 128; the model sees 112 x 112" in result.stdout
    )
    (folder,) = (tmp_path / "runs" / "ask").iterdir()
    answer = json.loads((folder / "answer.json").read_text("utf-8"))
    assert answer["image"]["window"] == [40.0, 400.0] and answer["question"] == "Was ist 肝?"
    assert not list(tmp_path.glob("runs/config.json"))
