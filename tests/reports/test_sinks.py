"""Sinks beside metrics.jsonl, read back with TensorBoard's own reader and from Weights & Biases' own files."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medvr_jax.configuration import load_config
from medvr_jax.reports.metrics import read_metrics
from medvr_jax.reports.shown import shown_groups, trajectory_text
from medvr_jax.reports.sinks import Sinks, open_sinks, scalars
from tests.reports.made_run import NASTY, made_group, picture

REPOSITORY = Path(__file__).resolve().parents[2]
CENTRE = np.array([0.5, 0.5])


def config(**report: Any) -> Any:
    overrides = [(f"report.{name}", str(value)) for name, value in report.items()]
    return load_config("configs/tiny_cpu.py", overrides)


def row(step: int, value: float) -> dict[str, Any]:
    return {
        "step": step,
        "reward/total": value,
        "train/kl": float("nan"),
        "memory/none": None,
        "resumed": True,
        "x": "y",
    }


def rollouts(step: int) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Two groups, of which one has an image."""
    rng = np.random.default_rng(step)
    records = [record for group in (0, 1) for record in made_group(rng, step, group, 4, 0.5, CENTRE)]
    records[0]["turns"][0] |= {"text": NASTY + "\n```\n# no heading", "observation": NASTY}
    return records, {f"made-{step}-0": picture(rng, CENTRE)}


def interrupted(workdir: Path, settings: Any) -> None:
    """Six rows; gone on with at step 4, as after a crash behind the checkpoint of 4 steps, in a later second: W&B names
    its folders by the second."""
    with open_sinks(settings, workdir, 0) as sinks:
        for step in range(6):
            if step in (0, 5):
                sinks.show(step, *rollouts(step))
            sinks.write(row(step, 0.1 * step))
    time.sleep(1.0)
    with open_sinks(settings, workdir, 4) as sinks:
        for step in range(4, 8):
            if step in (5, 7):
                sinks.show(step, *rollouts(step))
            sinks.write(row(step, 10.0 + step))


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def events(workdir: Path) -> Any:
    """The run as TensorBoard reads it: everything as tensors."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_accumulator")
    found = reader.EventAccumulator(str(workdir / "tensorboard"), size_guidance={"tensors": 0})
    found.Reload()
    return found


def curve(found: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.tensor_proto.float_val[0]) for event in found.Tensors(tag)]


def steps(found: Any, tag: str) -> list[int]:
    return [event.step for event in found.Tensors(tag)]


def test_tensorboard_reads_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    interrupted(tmp_path, config(tensorboard=True))
    found = events(tmp_path)
    kept = [(r["step"], r["reward/total"]) for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert [step for step, _ in kept] == list(range(8))
    assert np.allclose(curve(found, "reward/total"), kept)
    assert np.isnan([value for _, value in curve(found, "train/kl")]).all()
    tags = {"reward/total", "train/kl", "rollouts/group_00", "rollouts/group_00/text_summary"}
    assert set(found.Tags()["tensors"]) == tags
    assert steps(found, "rollouts/group_00") == steps(found, "rollouts/group_00/text_summary") == [0, 5, 7]

    records, _ = rollouts(0)
    width, height, picture = found.Tensors("rollouts/group_00")[0].tensor_proto.string_val
    image = Image.open(io.BytesIO(picture))
    assert image.mode == "RGB" and image.size == (int(width), int(height)) == (448, 448)
    (text,) = found.Tensors("rollouts/group_00/text_summary")[0].tensor_proto.string_val
    clean = NASTY.encode("utf-8", "replace").decode()
    assert clean in text.decode() and "````\n" in text.decode()
    assert all(f"slot {record['slot']} · " in text.decode() for record in records[:4])


def test_tensorboard_switched_on_late_has_the_rows_before(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    with open_sinks(config(), tmp_path, 0) as sinks:
        for step in range(3):
            sinks.write(row(step, step))
    with open_sinks(config(tensorboard=True), tmp_path, 3) as sinks:
        sinks.write(row(3, 3))
    assert curve(events(tmp_path), "reward/total") == [(0, 0), (1, 1), (2, 2), (3, 3)]


# ---- Weights & Biases ------------------------------------------------------------------------------------------------


def logged(file: Path) -> list[bytes]:
    """The records of a W&B file: behind 7 bytes, LevelDB's log format without looking at its checksums."""
    data, place, records, part = file.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # too little for a header: zeros
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        part += data[place + 7 : place + 7 + length]
        if kind in (1, 4):  # whole, or the last part
            records.append(part)
            part = b""
        place += 7 + length
    return records


def sent(workdir: Path, rows: int) -> tuple[set[str], list[dict[str, Any]]]:
    """Ids of the W&B runs, and the rows of their history, from the files that `wandb sync` would send.

    A process of its own writes them, on a laden machine a while after the run has ended: so many rows are waited for.
    """
    deadline = time.monotonic() + 60
    while len((found := _sent(workdir))[1]) < rows and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _sent(workdir: Path) -> tuple[set[str], list[dict[str, Any]]]:
    from wandb.proto.wandb_internal_pb2 import Record

    ids, history = set(), []
    for file in sorted(workdir.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        for record in map(Record.FromString, logged(file)):
            if record.run.run_id:
                ids.add(record.run.run_id)
            if record.history.item:
                entry: dict[str, Any] = {}
                for item in record.history.item:  # parts of a picture or a table have names of two words
                    *outer, name = item.nested_key
                    (entry.setdefault(outer[0], {}) if outer else entry)[name] = json.loads(item.value_json)
                history.append(entry)
    return ids, history


def test_wandb_keeps_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    interrupted(tmp_path, config(wandb="offline"))
    ids, history = sent(tmp_path, 8)
    assert len(ids) == 1
    assert [entry["_step"] for entry in history] == list(range(8))
    # What was sent stays: 4 and 5 are the first process's.
    values = [entry["reward/total"] for entry in history]
    assert np.allclose(values, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 16, 17])
    assert [i for i, entry in enumerate(history) if "rollouts/group_00" in entry] == [0, 5, 7]
    assert history[0]["rollouts/group_00"]["_type"] == "image-file"
    (table,) = tmp_path.glob(f"wandb/*/files/{history[0]['rollouts/texts']['path']}")
    texts = [line[2] for line in json.loads(table.read_text())["data"]]
    assert len(texts) == 4 and NASTY.encode("utf-8", "replace").decode() in texts[0]


def test_a_new_run_in_the_same_folder_is_a_new_wandb_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    for _ in range(2):
        with open_sinks(config(wandb="offline"), tmp_path, 0) as sinks:
            sinks.write(row(0, 1.0))
    ids, history = sent(tmp_path, 2)
    assert len(ids) == len(history) == 2


def test_wandb_is_told_what_the_configuration_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that keeps what it is given."""
    asked: dict[str, Any] = {}
    run = SimpleNamespace(log=lambda *a, **k: None, finish=lambda **arguments: asked.update(arguments), url="")
    stand_in = ModuleType("wandb")
    stand_in.init = lambda **arguments: asked.update(arguments) or run
    stand_in.Settings = dict
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.delitem(sys.modules, "medvr_jax.reports.weights_and_biases", raising=False)
    names = {"wandb": "online", "wandb_project": "zoom", "wandb_entity": "team", "wandb_name": "first"}
    with pytest.raises(KeyboardInterrupt), open_sinks(config(**names), tmp_path, 0):
        raise KeyboardInterrupt
    monkeypatch.delitem(sys.modules, "medvr_jax.reports.weights_and_biases")
    assert [asked[name] for name in ("mode", "project", "entity", "name")] == list(names.values())
    assert asked["config"]["evr"]["gamma"] == 0.5 and asked["resume"] == "allow"
    assert asked["exit_code"] == 1  # the run was interrupted


# ---- what fails ------------------------------------------------------------------------------------------------------


def test_a_missing_package_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for package, module in (("tensorboardX", "tensorboard"), ("wandb", "weights_and_biases")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, f"medvr_jax.reports.{module}", raising=False)
    interrupted(tmp_path, config(tensorboard=True, wandb="online"))
    hint = "is not installed (pip install -r requirements-extras.txt); the run goes on without it"
    lines = capfd.readouterr().err.splitlines()
    assert (
        lines
        == [  # of both processes
            f"medvr_jax: report.tensorboard: package tensorboardX {hint}",
            f"medvr_jax: report.wandb: package wandb {hint}",
        ]
        * 2
    )
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == list(range(8))


UNREACHABLE = """
import sys
from medvr_jax.configuration import load_config
from medvr_jax.reports import weights_and_biases
from medvr_jax.reports.sinks import open_sinks

weights_and_biases._PATIENCE = 1
with open_sinks(load_config("configs/tiny_cpu.py", [("report.wandb", "online")]), sys.argv[1], 0) as sinks:
    sinks.write({"step": 0, "reward/total": 1.0})
"""


@pytest.mark.parametrize(
    ("key", "reason"), [("0" * 40, "giving up after"), ("", "No API key configured")], ids=["no service", "no key"]
)
def test_a_service_out_of_reach_costs_one_line(key: str, reason: str, tmp_path: Path) -> None:
    """In a process of its own, whose only address of the service is a port that nobody listens at."""
    pytest.importorskip("wandb")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    environment |= {"WANDB_API_KEY": key} if key else {}
    line = [sys.executable, "-c", UNREACHABLE, str(tmp_path / "run")]
    done = subprocess.run(
        line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("medvr_jax: report.wandb: ") and reason in warning
    assert warning.endswith("; the run goes on without it")
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 1


def test_a_sink_that_fails_later_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing:
        def __init__(self, last: int) -> None:
            self.rows: list[int] = []
            self.last, self.closed = last, False

        def show(self, step: int, groups: Any) -> None:
            pass

        def write(self, row: Any) -> None:
            if row["step"] > self.last:
                raise OSError(28, "No space left on device")
            self.rows.append(row["step"])

        def close(self, failed: bool) -> None:
            self.closed = not failed

    first, second = Failing(1), Failing(9)
    with Sinks(tmp_path, 0, {"report.first": lambda _: first, "report.second": lambda _: second}) as sinks:
        for step in range(4):
            sinks.write(row(step, 0.0))
    assert first.rows == [0, 1] and second.rows == [0, 1, 2, 3] and second.closed
    assert capsys.readouterr().err.splitlines() == [
        "medvr_jax: report.first: [Errno 28] No space left on device; the run goes on without it"
    ]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_boxes_are_drawn_where_they_are() -> None:
    """Blue for a right trajectory over orange for a wrong one, white for the true box; none inside."""
    grey = io.BytesIO()
    Image.new("RGB", (1024, 512), (100, 100, 100)).save(grey, "PNG")
    records, _ = rollouts(3)
    two = [
        record | {"true_boxes": [[0.75, 0.5, 1.2, 0.9]], "boxes": [[0.25, 0.25, 0.5, 0.75]]} for record in records[:2]
    ]
    two[0]["correct"], two[1] = True, two[1] | {"correct": False, "boxes": [[0.0, 0.0, 0.125, 1.0]]}
    (group,) = shown_groups(two, {"made-3-0": grey.getvalue()})
    pixels = np.asarray(group.picture)
    assert pixels.shape == (256, 512, 3)
    colours = {"right": (0x5F, 0xD0, 0xFF), "wrong": (0xFF, 0xAB, 0x70), "true": (255, 255, 255)}
    found = {name: np.argwhere((pixels == colour).all(-1)) for name, colour in colours.items()}
    for name, box in {"right": (64, 128, 191, 256), "wrong": (0, 0, 255, 64), "true": (128, 383, 230, 511)}.items():
        edges = (*found[name].min(0), *found[name].max(0))
        assert np.abs(np.subtract(edges, box)).max() <= 1, name
    assert (pixels[100, 200] == 100).all()
    assert "(1 of 2 right, 2 zoomed)" in group.caption


def test_fences_hold_any_text() -> None:
    records, _ = rollouts(0)
    text = trajectory_text(records[0])
    assert text.count("\n````\n") >= 1 and "\n```\n# no heading" in text
    assert "reward" in text.splitlines()[0] and NASTY not in text.splitlines()[0]


def test_only_numbers_are_curves() -> None:
    assert scalars({"step": 3, "a": 1, "b": np.float32(2.5), "c": True, "d": "text", "e": None}) == {"a": 1.0, "b": 2.5}
