"""The masking test with policies whose answers depend on a known region: every figure against what it must be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medvr_jax import assembly
from medvr_jax.configuration import load_config
from medvr_jax.errors import UserError
from medvr_jax.evaluation import run
from medvr_jax.evaluation.masking import SHOWN_QUESTIONS
from medvr_jax.evaluation.masks import MASKS
from medvr_jax.evaluation.statistics import Bootstrap
from tests.evaluation.looking_policy import (
    CORNER,
    SIDE,
    MadeEngine,
    letter,
    looks,
    made_ready,
    made_set,
    square,
)
from tests.tiny_run import small_config

COUNT = 30
SIZES = {"data__evaluation_batch": 8, "data__prompts_per_step": 8}


@pytest.fixture(scope="module")
def parts() -> assembly.Parts:
    return assembly.assemble(small_config(**SIZES), splits=())


def evaluated(
    monkeypatch: pytest.MonkeyPatch,
    parts: assembly.Parts,
    workdir: Path,
    engine: MadeEngine,
    sets: Sequence[tuple[str, int, bool]] = (("made", COUNT, True),),
    **overrides: object,
) -> dict[str, Any]:
    """results.json of the made-up policy's evaluation. sets: names, numbers of questions, and whether with boxes."""
    questions = [made_set(*one) for one in sets]
    monkeypatch.setattr(run, "read_questions", lambda *_: questions)
    monkeypatch.setattr(run, "make_ready", lambda *_: made_ready(parts, questions, engine))
    config = small_config(**({"evaluate__masking": True} | SIZES | overrides))
    run.evaluate(config, workdir)
    return json.loads((workdir / "evaluation" / "results.json").read_text())


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def bootstrapped(values: Sequence[float]) -> tuple[float, float]:
    """The ends of the interval by drawing questions one by one."""
    values, generator = np.asarray(values), np.random.default_rng(5)
    drawn = values[generator.integers(0, len(values), (4000, len(values)))].mean(1)
    return tuple(np.quantile(drawn, (0.025, 0.975)))


def test_who_looks_changes_the_answer(monkeypatch: Any, parts: Any, tmp_path: Path) -> None:
    engine = MadeEngine()
    results = evaluated(monkeypatch, parts, tmp_path, engine)
    masking = results["masking"]["overall"]
    assert results["masking"]["sets"] == {"made": masking} and results["masking"]["against"] == {}
    # Without the square the ground is seen, which says D, as does the corner.
    plain = [letter(i) if looks(i) else "D" for i in range(COUNT)]
    gone = [float(looks(i) and letter(i) != "D") for i in range(COUNT)]
    right = [float(said == letter(i)) for i, said in enumerate(plain)]
    right_gone = [float(letter(i) == "D") for i in range(COUNT)]
    assert 0.3 < np.mean(gone) < 0.7
    assert masking["questions"] == COUNT and masking["accuracy"] == results["accuracy"] == np.mean(right)
    assert tuple(masking["masks"]) == MASKS
    for mask, found in masking["masks"].items():
        changed, after = (gone, right_gone) if mask in ("zoomed", "lesion") else ([0.0] * COUNT, right)
        assert found["changed"]["questions"] == COUNT and found["changed"]["mean"] == np.mean(changed)
        assert found["accuracy_before"] == np.mean(right) and found["accuracy"]["mean"] == np.mean(after)
        assert found["overlapping"] == 0
    for mask in ("zoomed", "lesion"):
        found = masking["differences"][mask]
        assert found["questions"] == COUNT and found["difference"] == np.mean(gone)
        assert (found["low"], found["high"]) == pytest.approx(bootstrapped(gone), abs=0.035)
        assert found["low"] > 0.2
    assert len(engine.asked) >= 5 * COUNT


def test_rows_say_what_was_blanked(monkeypatch: Any, parts: Any, tmp_path: Path) -> None:
    evaluated(monkeypatch, parts, tmp_path, MadeEngine())
    rows = rows_of(tmp_path / "evaluation" / "masking.jsonl")
    assert rows == rows_of(tmp_path / "evaluation" / "made" / "masking.jsonl")
    assert [(row["id"], row["mask"]) for row in rows] == [(f"q{i}", mask) for i in range(COUNT) for mask in MASKS]
    for row in rows:
        index = int(row["id"][1:])
        (region,) = [[round(SIDE * edge) for edge in box] for box in row["region"]]
        looked = square(index) if looks(index) else CORNER
        about = looked if row["mask"] in ("zoomed", "random") else square(index)
        if row["mask"] in ("zoomed", "lesion"):
            assert tuple(region) == about
        else:
            assert (region[2] - region[0], region[3] - region[1]) == (about[2] - about[0], about[3] - about[1])
            apart = region[2] <= about[0] or about[2] <= region[0] or region[3] <= about[1] or about[3] <= region[1]
            assert apart and 0 <= min(region) and max(region) <= SIDE and not row["overlaps"]
        assert row["before"] == (letter(index) if looks(index) else "D")
        assert row["changed"] == (row["prediction"] != row["before"]) and row["scores"]["strict"]["correct"] in (0, 1)


def test_who_guesses_does_not(monkeypatch: Any, parts: Any, tmp_path: Path, capsys: Any) -> None:
    """A policy without a tool: only the true boxes can be blanked; and it is told from one that looks."""
    evaluated(monkeypatch, parts, tmp_path / "looks", MadeEngine())
    guesses = evaluated(
        monkeypatch,
        parts,
        tmp_path / "guesses",
        MadeEngine(zooms=False),
        evaluate__compare_with=str(tmp_path / "looks"),
    )["masking"]
    assert list(guesses["overall"]["masks"]) == ["lesion", "random_lesion"]
    assert guesses["overall"]["differences"] == {
        "lesion": {"questions": COUNT, "difference": 0.0, "low": 0.0, "high": 0.0}
    }
    (against,) = guesses["against"].values()
    gone = np.mean([looks(i) and letter(i) != "D" for i in range(COUNT)])
    assert (against["first"], against["second"], against["difference"]) == (0, gone, -gone)
    assert against["questions"] == COUNT and against["high"] < -0.2
    other = str(tmp_path / "guesses" / "evaluation")
    looking = evaluated(monkeypatch, parts, tmp_path / "looks", MadeEngine(), evaluate__compare_with=other)["masking"]
    (against,) = looking["against"].values()
    assert against["difference"] == gone and against["low"] > 0.2 and set(against["sets"]) == {"made"}
    text = (tmp_path / "looks" / "evaluation" / "masking.md").read_text()
    assert f"| {COUNT} | {100 * gone:.1f} | 0.0 | +{100 * gone:.1f} [+" in text
    # Another evaluation without the test is compared in everything else.
    evaluated(monkeypatch, parts, tmp_path / "plain", MadeEngine(zooms=False), evaluate__masking=False)
    plain = str(tmp_path / "plain")
    looking = evaluated(monkeypatch, parts, tmp_path / "looks", MadeEngine(), evaluate__compare_with=plain)["masking"]
    assert looking["against"] == {}
    assert " has no masking test; it is compared in all else" in capsys.readouterr().out


def test_sets_with_boxes_and_without(monkeypatch: Any, parts: Any, tmp_path: Path) -> None:
    sets = (("boxed", 12, True), ("unboxed", 18, False))
    found = evaluated(monkeypatch, parts, tmp_path, MadeEngine(), sets)["masking"]
    assert list(found["sets"]["boxed"]["masks"]) == list(MASKS)
    assert list(found["sets"]["unboxed"]["masks"]) == ["zoomed", "random"]
    gone = {name: [looks(i) and letter(i) != "D" for i in range(count)] for name, count, _ in sets}
    masks = found["overall"]["masks"]
    assert masks["zoomed"]["changed"]["questions"] == 30 and masks["lesion"]["changed"]["questions"] == 12
    assert masks["zoomed"]["changed"]["mean"] == pytest.approx(np.mean(gone["boxed"] + gone["unboxed"]))
    assert masks["lesion"]["changed"]["mean"] == pytest.approx(np.mean(gone["boxed"]))
    for name in gone:
        assert found["sets"][name]["differences"]["zoomed"]["difference"] == pytest.approx(np.mean(gone[name]))
    text = (tmp_path / "evaluation" / "masking.md").read_text()
    assert text.startswith("# Masking, ") and text.count("| all |") == 6
    assert "## Masking\n" in (tmp_path / "evaluation" / "table.md").read_text()
    nothing = evaluated(monkeypatch, parts, tmp_path / "b", MadeEngine(zooms=False), (("unboxed", 9, False),))[
        "masking"
    ]
    assert nothing["overall"]["masks"] == {} and nothing["overall"]["differences"] == {}
    assert "Nothing could be masked" in (tmp_path / "b" / "evaluation" / "masking.md").read_text()
    assert not (tmp_path / "b" / "evaluation" / "masking_shown").exists()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_and_started_again(monkeypatch: Any, parts: Any, tmp_path: Path) -> None:
    """Nothing that was answered is asked again, and the files end with the same bytes; a torn line is no row."""
    evaluated(monkeypatch, parts, tmp_path / "whole", MadeEngine())
    plain_batches = -(-COUNT // 8)
    killed = MadeEngine(broken_at=plain_batches + 5)
    with pytest.raises(KeyboardInterrupt):
        evaluated(monkeypatch, parts, tmp_path / "killed", killed)
    file = tmp_path / "killed" / "evaluation" / "made" / "masking.jsonl"
    kept = file.read_bytes()
    assert kept.count(b"\n") == 5 * 8
    file.write_bytes(kept + b'{"id": "q1", "mask": "zoo')
    second = MadeEngine()
    evaluated(monkeypatch, parts, tmp_path / "killed", second)
    assert second.calls == 4 * COUNT // 8 - 5
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    third = MadeEngine()
    evaluated(monkeypatch, parts, tmp_path / "killed", third)
    assert third.calls == 0 and files(tmp_path / "killed") == files(tmp_path / "whole")


def test_without_it_no_figures_stay(monkeypatch: Any, parts: Any, tmp_path: Path) -> None:
    evaluated(monkeypatch, parts, tmp_path, MadeEngine())
    results = evaluated(monkeypatch, parts, tmp_path, MadeEngine(), evaluate__masking=False)
    assert "masking" not in results
    assert not any(
        (tmp_path / "evaluation" / name).exists() for name in ("masking.jsonl", "masking.md", "masking_shown")
    )
    assert "Masking" not in (tmp_path / "evaluation" / "table.md").read_text()
    again = MadeEngine()
    assert "masking" in evaluated(monkeypatch, parts, tmp_path, again) and again.calls == 0


def test_other_answers_are_asked_anew(monkeypatch: Any, parts: Any, tmp_path: Path, capsys: Any) -> None:
    """Where the policy looked is part of what the rows depend on."""
    evaluated(monkeypatch, parts, tmp_path, MadeEngine())
    predictions = tmp_path / "evaluation" / "made" / "predictions.jsonl"
    lines = predictions.read_text().split("\n")
    lines[1] = json.dumps(json.loads(lines[1]) | {"boxes": [[0.0, 0.0, 0.25, 0.25]]})
    predictions.write_text("\n".join(lines))
    capsys.readouterr()
    evaluated(monkeypatch, parts, tmp_path, MadeEngine())
    assert "masking.jsonl: started afresh, as answers was" in capsys.readouterr().out


def test_what_a_page_shows(monkeypatch: Any, parts: Any, tmp_path: Path) -> None:
    evaluated(monkeypatch, parts, tmp_path, MadeEngine())
    folder = tmp_path / "evaluation" / "masking_shown"
    shown = json.loads((folder / "shown.json").read_text())
    changed = [any(one["changed"] for one in entry["masks"]) for entry in shown]
    assert len(shown) == SHOWN_QUESTIONS and sum(changed) == SHOWN_QUESTIONS // 2
    for entry, has_changed in zip(shown, changed, strict=True):
        index = int(entry["id"][1:])
        assert has_changed == (looks(index) and letter(index) != "D")
        assert [one["mask"] for one in entry["masks"]] == list(MASKS) and entry["answer"] == letter(index)
        with Image.open(folder / entry["image"]) as image:
            x, y = ((a + b) // 2 for a, b in zip(square(index)[:2], square(index)[2:], strict=True))
            assert (
                image.size == (SIDE, SIDE) and abs(image.getpixel((x, y)) - 50 * "ABCD".index(letter(index)) - 40) < 9
            )
    few = evaluated(monkeypatch, parts, tmp_path / "few", MadeEngine(), (("made", 5, True),))
    assert few["masking"]["overall"]["questions"] == 5
    assert len(json.loads((tmp_path / "few/evaluation/masking_shown/shown.json").read_text())) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate.endpoint": "http://localhost:1/v1", "evaluate.model": "m"}, "found true with evaluate.endpoint"),
        ({"evaluate.predictions_file": __file__}, "found true with evaluate.predictions_file"),
        ({"evaluate.samples": "4", "evaluate.temperature": "1"}, "found true with evaluate.temperature = 1"),
    ],
)
def test_what_cannot_be_masked_is_refused(changes: dict[str, str], message: str) -> None:
    overrides = [("evaluate.masking", "true"), *changes.items()]
    with pytest.raises(UserError, match=f"^evaluate.masking: {message}[^\n]*$"):
        load_config("configs/tiny_cpu.py", overrides, files=False, mode="evaluate")


def test_intervals_are_those_of_the_bootstrap() -> None:
    """What `bootstrapped` above is held against."""
    values = np.array([1.0] * 13 + [0.0] * 17)
    found = Bootstrap().interval(Bootstrap().means(values))
    assert found == pytest.approx(bootstrapped(values), abs=0.035)
