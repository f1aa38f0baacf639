"""The benchmarks still run and assert their work: each once at the smallest size. No time is looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from tests.benchmarks import consensus, decode, loglog, measure, reading, rollout, scaling, startup, tables, update


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Others may use the machine, and the compiler need not make programs fast."""
    monkeypatch.setattr(measure.QUIET, "share", 1.0)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_consensus(tmp_path: Path) -> None:
    found = consensus.run(4, 1, str(tmp_path))
    assert json.loads((tmp_path / "consensus.json").read_text())["figures"] == found["figures"]
    assert {row["CCA"] for row in found["table"]} >= {"ours", "shapely"}


def test_decode() -> None:
    found = decode.run(["nano"], 1, 4, 60, None)
    assert found["figures"]["nano"]["bound_ms"]["memory"] > 0


def test_rollout() -> None:
    found = rollout.run(
        ["nano"], 1, None, slots=2, prompt_tokens=80, image_side=84, crop_side=56, sampled=3, variants=("own crops",)
    )
    assert found["figures"]["nano, own crops"]["crops encoded"] == 2


def test_update() -> None:
    found = update.run(
        "nano", 1, prompt="image", slots=2, prompt_tokens=80, response=32, observation=24, image_side=56, crop_side=56,
        autocast=False, output=None,
    )  # fmt: skip
    assert found["figures"]["gradient_difference"] < 1e-4
    assert found["figures"]["tokens_per_distinct_token"] <= 1.1


def test_scaling(tmp_path: Path) -> None:
    base = scaling.Case("nano", P=80, T=40, image_side=56, crop_side=56)
    found = scaling.run(base, {"M": (1, 2)}, 1, str(tmp_path), ("rollout",))
    assert "constant_s" in found["figures"]["rollout, M"]
    assert (tmp_path / "scaling.svg").read_text().count("<circle") == 2


def test_reading(tmp_path: Path) -> None:
    found = reading.run(1, 2, 0, 0.0, str(tmp_path), ("PNG, grey, 448", "JPEG, colour, 1024"))
    assert [row["images"] for row in found["table"]] == ["PNG, grey, 448", "JPEG, colour, 1024"]
    reading.write_stream(tmp_path, 80)
    assert len(reading.stream(tmp_path, 128)["memory"]) == 1


def test_startup_reads_whole_rows_only(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert startup._first_row(file) is None
    file.write_text('{"step": 0')
    assert startup._first_row(file) is None
    file.write_text('{"step": 0}\n{"st')
    assert startup._first_row(file) == {"step": 0}


def test_figures() -> None:
    assert measure.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert scaling.split([1, 2, 3], [5, 7, 9]) == pytest.approx({"constant_s": 3, "per_trajectory_s": 2})
    ratios = measure.ratios({"a": [1, 2, 3], "b": [2, 6, 12]}, "a", "b")
    assert (ratios["ratio_of_medians"], ratios["paired_median"]) == (3, 3)
    assert tables.markdown([{"name": "x", "value": 12345.6}]).splitlines()[-1] == "| x | 12,346 |"
    assert "exponent 2.00" in loglog.panel("T", {"update": [(1, 1), (2, 4)]}, {"update": 2.0})


def test_rounds_that_others_disturb_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = measure.Quiet(share=0.1, patience=2)
    monkeypatch.setattr(measure, "QUIET", quiet)
    monkeypatch.setattr(quiet, "wait", lambda: None)
    shares = iter([0.9, 0.9, 0.0, 0.0])  # warm-up, disturbed, and the two that count
    monkeypatch.setattr(measure, "_others", lambda before, after: next(shares))
    times = measure.take_turns({"a": lambda: 1}, 2, lambda name, result: float(result))
    assert times == {"a": [1.0, 1.0]} and quiet.repeated == 1
