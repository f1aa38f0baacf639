"""The benchmarks still run and assert their work: each once at the smallest size. No time is looked at."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.benchmarks import (
    consensus,
    decode,
    fixed_turns,
    loglog,
    measure,
    models,
    profile_costs,
    prompts,
    reading,
    rollout,
    scaling,
    startup,
    tables,
    train_groups,
    update,
)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Others may use the machine, and the compiler need not make programs fast."""
    monkeypatch.setattr(measure.QUIET, "seconds", 0.0)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_consensus(tmp_path: Path) -> None:
    found = consensus.run(4, 1, str(tmp_path))
    assert json.loads((tmp_path / "consensus.json").read_text())["figures"] == found["figures"]
    assert {row["CCA"] for row in found["table"]} >= {"ours", "shapely"}
    seconds = found["seconds"]
    assert found["figures"]["ratios"]["shapely"]["paired_median"] == seconds["shapely"][0] / seconds["ours"][0]


def test_decode() -> None:
    found = decode.run(["nano"], 1, 4, 60, None)
    assert found["figures"]["nano"]["bound_ms"]["memory"] > 0


def test_rollout() -> None:
    found = rollout.run(
        ["nano"], 1, None, slots=2, prompt_tokens=80, image_side=84, crop_side=56, sampled=3, variants=("own crops",)
    )
    assert found["figures"]["nano, own crops"]["crops encoded"] == [2]


def test_update() -> None:
    found = update.run(
        "nano", 1, prompt="image", slots=2, prompt_tokens=80, response=32, observation=24, image_side=56, crop_side=56,
        autocast=False, output=None,
    )  # fmt: skip
    assert found["figures"]["gradient_difference"] < 1e-4
    assert found["figures"]["tokens_per_distinct_token"] <= 1.1


def test_scaling(tmp_path: Path) -> None:
    base = scaling.Case("nano", P=80, T=40, image_side=56, crop_side=56)
    found = scaling.run(base, {"M": (1, 2)}, 1, str(tmp_path), ("rollout", "update"))
    assert "constant_s" in found["figures"]["rollout, M"]
    assert (tmp_path / "scaling.svg").read_text().count("<circle") == 4


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


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Callable[..., measure.Quiet]:
    """Says what others take of the machine, look by look, without waiting between two looks."""

    def make(shares: list[float], **settings: Any) -> measure.Quiet:
        quiet, taken = measure.Quiet(share=0.1, **settings), iter(shares)
        monkeypatch.setattr(measure, "QUIET", quiet)
        monkeypatch.setattr(measure, "_others", lambda before, after: next(taken))
        monkeypatch.setattr(measure.time, "sleep", lambda seconds: None)
        return quiet

    return make


def test_rounds_that_others_disturb_are_repeated(
    others: Callable[..., measure.Quiet], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = [0.9, 0.9, 0.0, 0.0]  # warm-up, disturbed, and the two that count
    for patience in (0, 2):
        quiet = others(shares, patience=patience)
        monkeypatch.setattr(quiet, "wait", lambda: None)
        results = iter([0.5, 1.0, 2.0, 3.0])
        times = measure.take_turns({"a": lambda results=results: next(results)}, 2, lambda name, result: result)
        assert times == {"a": [2.0, 3.0] if patience else [1.0, 2.0]}
        assert (quiet.repeated, quiet.disturbed) == ((1, 0) if patience else (0, 1))


def test_disturbed_steps_in_a_row_are_repeated(
    others: Callable[..., measure.Quiet], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = others([0.9, 0.0, 0.9, 0.0])
    monkeypatch.setattr(quiet, "wait", lambda: None)
    seen: list[int] = []
    counter = iter(range(4))
    times = measure.back_to_back("a", lambda: next(counter), 2, seen.append)
    assert (len(times), seen, quiet.repeated) == (2, [0, 1, 2, 3], 1)


def test_waiting_is_told_once_and_can_be_left_out(
    others: Callable[..., measure.Quiet], capsys: pytest.CaptureFixture[str]
) -> None:
    others([0.5, 0.3, 0.0]).wait()
    (line,) = capsys.readouterr().err.splitlines()
    assert "others take 50% of the machine" in line and "60 s at most" in line and "--wait=0" in line
    others([], seconds=0.0).wait()  # does not even look
    others([0.9, 0.9], seconds=0.0)
    measure.take_turns({"a": lambda: 1}, 1, lambda name, result: None)
    assert "waiting" not in capsys.readouterr().err


def test_a_short_contender_is_called_as_long_as_the_others(others: Callable[..., measure.Quiet]) -> None:
    others([0.0] * 8)
    calls = dict.fromkeys(("ours", "peer"), 0)

    def work(name: str, seconds: float) -> str:
        calls[name] += 1
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return name

    contenders = {"ours": lambda: work("ours", 0.001), "peer": lambda: work("peer", 0.02)}
    times = measure.take_turns(contenders, 2, lambda name, result: None, short=["ours"])
    assert calls["peer"] == 3 and calls["ours"] > 1 + 2 * 5
    assert all(0.001 <= seconds < 0.01 for seconds in times["ours"]), "the mean of a call"


def test_profile_costs_by_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "plugins" / "a.trace.json.gz"
    trace.parent.mkdir()
    seconds = {"fusion.1": 3.0, "dot.2": 4.0, "while.3": 100.0, "add.4": 1.0, "fusion.5": 2.0}
    events = [
        {"ph": "X", "dur": 1e6 * value, "args": {"hlo_op": name, "hlo_module": "jit_a"}}
        for name, value in seconds.items()
    ]
    trace.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    hlo = """HloModule jit_a, entry_computation_layout={()->f32[]}
  %fusion.1 = f32[2]{0} fusion(), metadata={op_name="jit(a)/while/body/closed_call/sampling/entropy/reduce_sum"}
  %dot.2 = f32[2]{0} dot(), metadata={op_name="jit(a)/while/body/transpose(jvp(attention))/mlp/dot_general"}
  %add.4 = f32[2]{0} add(), metadata={op_name="jit(a)/head"}
  ROOT %fusion.5 = f32[2]{0} fusion(), metadata={op_name="jit(a)/sampling/reduce_max"}
"""
    (tmp_path / "x.after_optimizations.txt").write_text(hlo)
    monkeypatch.setattr("sys.argv", ["profile_costs.py", str(tmp_path), f"--hlo={tmp_path}"])
    profile_costs.main()
    phases = capsys.readouterr().out.split("\n\n")[1].splitlines()[2:]
    assert phases == [
        "| mlp | 4 | 40.0% |", "| entropy | 3 | 30.0% |", "| sampling | 2 | 20.0% |", "| other | 1 | 10.0% |",
    ]  # fmt: skip


def test_the_decode_program_names_its_phases(tmp_path: Path) -> None:
    model = models.load_model("nano", tmp_path)
    encoder = models.make_encoder(model.folder, prompt_side=28, crop_side=28)
    turns = fixed_turns.FixedTurns((3,), 0, lambda trajectory, turn: (0, 0, 28, 28))
    engine = fixed_turns.make_engine(model, encoder, turns, slots=2, prompt_tokens=60, images=0)
    program = engine.programs.decode

    def compiled(*arguments: Any) -> Any:
        text = program.lower(*arguments).compile().as_text()
        (tmp_path / "decode.after_optimizations.txt").write_text(text)
        return program(*arguments)

    engine.programs = engine.programs._replace(decode=compiled)
    decoding = engine.start(model.params, [prompts.make_prompt(encoder, 60, images=0)])
    decoding.reset()
    decoding.run()
    names = profile_costs.read_names(tmp_path).values()
    phases = {profile_costs.phase(name) for name in names}
    assert phases >= {"attention", "mlp", "head", "sampling", "random", "entropy", "append"}
    products = {profile_costs.phase(name) for name in names if "dot_general" in name}
    assert products == {"attention", "mlp", "head"}


@pytest.mark.parametrize("arguments", [["/no/such"], [".", "--hlo=/no/such"]])
def test_profile_costs_of_nothing(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["profile_costs.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        profile_costs.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "/no/such" in line


def test_the_work_of_an_update_is_counted_in_whole_sequences() -> None:
    sequences = np.array([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9, 4]])
    sampled = np.array([[True, True], [True, False], [True, True]])
    work = train_groups.GroupOfWork(None, sequences, [], sampled, np.array([1.0, 2.0, -1.0]), 2, 1, 0)
    assert work.distinct_tokens == 2 + 2 + 1 + 2
    assert work.loss() == pytest.approx(-(2 * 1 + 1 * 2 - 2 * 1) / 5)
