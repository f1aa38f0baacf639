"""Answers of any model in a file, scored by the same rules; nothing of a model is loaded."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from medvr_jax.configuration import load_config
from medvr_jax.datasets import sets as sets_module
from medvr_jax.datasets.example import Example
from medvr_jax.datasets.synthetic import SyntheticTask
from medvr_jax.errors import UserError
from medvr_jax.evaluation import questions
from medvr_jax.evaluation.elsewhere import evaluate_elsewhere

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = [SyntheticTask().example("test", index) for index in range(12)]
RIGHT = [{"id": example.id, "text": f"<answer>{example.answer}</answer>"} for example in EXAMPLES]


def write(file: Path, lines: Sequence[object]) -> Path:
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def overrides(file: Path, **more: object) -> list[tuple[str, str]]:
    found = {"data.test_examples": 12, "evaluate.predictions_file": file}
    found |= {f"evaluate.{name}": value for name, value in more.items()}
    return [(name, str(value)) for name, value in found.items()]


def score(file: Path, workdir: Path, **more: object) -> dict[str, Any]:
    evaluate_elsewhere(load_config("configs/tiny_cpu.py", overrides(file, **more), mode="evaluate"), workdir)
    return json.loads((workdir / "evaluation" / f"file_{file.stem}" / "results.json").read_text())


def refused(file: Path, workdir: Path, **more: object) -> str:
    with pytest.raises(UserError) as caught:
        score(file, workdir, **more)
    return str(caught.value)


def test_no_model_and_no_device_is_needed(tmp_path: Path) -> None:
    """Through the entry point, with platforms that jax does not have and a model folder that does not exist."""
    lines = [*RIGHT[:9], *({"id": one["id"], "text": "no idea"} for one in RIGHT[9:])]
    file = write(tmp_path / "other model.jsonl", lines[::-1])
    flags = [f"--config.{name}={value}" for name, value in overrides(file)] + ["--config.model.path=nowhere"]
    command = [sys.executable, "-m", "medvr_jax.main", "--config=configs/tiny_cpu.py", "--mode=evaluate", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "no_such_devices"}
    command.append(f"--workdir={tmp_path / 'run'}")
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run/evaluation/file_other-model"
    assert f"evaluated other model: {folder}/table.md" in done.stdout
    results = json.loads((folder / "results.json").read_text())
    assert results["scores"]["strict"] == 0.75 and results["examples"] == 12
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().split("\n")[:-1]]
    assert [row["id"] for row in rows] == [example.id for example in EXAMPLES]  # in the order of the questions
    assert rows[0]["response"] == lines[0]["text"] and rows[0]["dataset"] == "synthetic"
    assert "0.750" in (folder / "table.md").read_text()


def test_samples_are_told_by_number(tmp_path: Path) -> None:
    lines = [one | {"sample": sample} for sample in (1, 0, 2) for one in RIGHT]
    lines[0] = lines[0] | {"text": "<answer>no letter</answer>"}
    results = score(write(tmp_path / "a.jsonl", lines), tmp_path)
    assert (results["samples"], results["answers"], results["scores"]["strict"]) == (3, 36, 35 / 36)


def test_a_changed_file_is_scored_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.jsonl", RIGHT)
    assert score(file, tmp_path)["scores"]["strict"] == 1.0
    assert "started afresh" not in capsys.readouterr().out
    write(file, [*RIGHT[:-1], RIGHT[-1] | {"text": ""}])
    assert score(file, tmp_path)["scores"]["strict"] == 11 / 12
    assert "started afresh, as answers was" in capsys.readouterr().out


def test_wrong_lines_are_named(tmp_path: Path) -> None:
    lines: list[object] = [
        "{not json",
        [1],
        {"id": EXAMPLES[0].id},
        RIGHT[0] | {"text": None},
        RIGHT[0] | {"sample": -1},
        RIGHT[0] | {"anser": "A"},
        *RIGHT,
        RIGHT[3],
        {"id": True, "text": ""},
    ]
    message = refused(write(tmp_path / "a.jsonl", lines), tmp_path)
    assert message.startswith(f"evaluate.predictions_file: {tmp_path}/a.jsonl: 8 wrong lines: line 1: not JSON")
    for part in (
        "line 2: found list, allowed is a JSON object",
        "line 3: text: found nothing, allowed is text",
        "line 4: text: found None",
        "line 5: sample: found -1, allowed is a whole number, 0 or more; and 3 more",
    ):
        assert part in message
    message = refused(write(tmp_path / "b.jsonl", [*RIGHT, RIGHT[3]]), tmp_path)
    assert f"line 13: id '{EXAMPLES[3].id}', sample 0 was already on line 4" in message
    (tmp_path / "c.jsonl").write_bytes(b"\xff")
    assert "c.jsonl: not UTF-8 text" in refused(tmp_path / "c.jsonl", tmp_path)


def test_missing_answers_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(write(tmp_path / "a.jsonl", RIGHT[2:]), tmp_path)
    assert f"2 answers are missing: synthetic: id '{EXAMPLES[0].id}', sample 0; synthetic: id" in message
    message = refused(write(tmp_path / "a.jsonl", [*RIGHT, RIGHT[0] | {"sample": 1}]), tmp_path)
    assert "11 answers are missing" in message
    more = [*RIGHT, {"id": "of another set", "text": "A"}]
    assert score(write(tmp_path / "a.jsonl", more), tmp_path)["scores"]["strict"] == 1.0
    assert "1 lines answer questions that are not asked" in capsys.readouterr().out


class Lazy(Sequence):
    """Examples that are made when they are asked for, as those of published sets."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def published(name: str, config: Any) -> Sequence[Example]:
    """Three sets: yes/no and open questions of one, choices of the two others; ids are numbers from 1 in each."""
    if name == "vqa_rad":
        first = Example("1", (b"a",), "Is it?", (), "yes", "yes_no", dataset="vqa_rad")
        second = Example("2", (b"b",), "Where?", (), "left lung", "open", dataset="vqa_rad")
        return Lazy([first, second])
    dataset, _, variant = name.partition("/")
    options, prefix = ("a", "b", "c"), variant.removeprefix("v1")
    return Lazy([Example(f"{prefix}{i}", (b"c",), "?", options, "B", "choice", dataset=dataset) for i in (1, 2)])


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_published", published)


def test_several_sets(tmp_path: Path, sets: None) -> None:
    lines = [
        {"dataset": "vqa_rad", "id": 1, "text": "Yes."},
        {"dataset": "vqa_rad", "id": "2", "text": "the left lung"},
        {"dataset": "pmc_vqa", "id": "1", "text": "B"},
        {"dataset": "pmc_vqa", "id": "2", "text": "A"},
        {"id": "en1", "text": "b"},
        {"id": "en2", "text": "B"},
    ]
    names = "vqa_rad,slake/en,pmc_vqa"
    file = write(tmp_path / "a.jsonl", lines)
    results = score(file, tmp_path, sets=names)
    folder = tmp_path / "evaluation/file_a"
    assert {name: found["strict"] for name, found in results["sets"].items()} == {
        "vqa_rad": 0.5,
        "slake/en": 1.0,
        "pmc_vqa": 0.5,
    }
    assert (folder / "slake/en/predictions.jsonl").is_file() and (folder / "pmc_vqa/predictions.jsonl").is_file()
    main = json.loads((folder / "tables.json").read_text())["rules"]["strict"]["main"]["a"]["sets"]
    assert {name: figure["mean"] for name, figure in main.items()} == {"vqa_rad": 0.5, "slake": 1.0, "pmc_vqa": 0.5}
    assert score(file, tmp_path, sets="vqa_rad", questions=1)["scores"]["strict"] == 1.0

    lines[4]["dataset"] = lines[5]["dataset"] = "slake"  # as rows of predictions.jsonl have it
    assert score(write(file, lines), tmp_path, sets=names)["sets"]["slake/en"]["strict"] == 1.0

    del lines[2]["dataset"]
    message = refused(write(tmp_path / "b.jsonl", lines), tmp_path, sets=names)
    assert """line 3: id '1' is in vqa_rad and pmc_vqa; say which one as "dataset\"""" in message
    assert "share the question '1'" in refused(file, tmp_path, sets="pmc_vqa,pmc_vqa/v1")


def test_a_mixture_is_evaluated_set_by_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sets that a run learns from have the same ids; their test questions are told apart."""
    read = {"vqa_rad": published("vqa_rad", None), "slake/en": published("slake/", None)}
    monkeypatch.setattr(sets_module, "read_set", lambda name, split, **folders: read[name])
    lines = [{"dataset": "vqa_rad", "id": n, "text": t} for n, t in ((1, "Yes."), (2, "right lung"))]
    lines += [{"dataset": "slake/en", "id": n, "text": "B"} for n in (1, 2)]
    file = write(tmp_path / "a.jsonl", lines)
    changes = [("data.name", "sets"), ("data.sets", "vqa_rad:1,slake/en:2"), *overrides(file)]
    evaluate_elsewhere(load_config("configs/tiny_cpu.py", changes, mode="evaluate"), tmp_path)
    results = json.loads((tmp_path / "evaluation/file_a/results.json").read_text())
    assert {name: found["strict"] for name, found in results["sets"].items()} == {"vqa_rad": 0.5, "slake/en": 1.0}
    assert results["data"] == "vqa_rad, slake/en" and results["answers"] == 4


def test_own_questions_need_no_training_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(EXAMPLES[0].images[0])
    question = {"id": "1", "image": "a.png", "question": "Is it?", "answer": "yes"}
    write(tmp_path / "test.jsonl", [question, {"id": "2"}])
    changes = [("data.name", "jsonl"), ("data.image_folder", str(tmp_path)), ("data.on_error", "skip")]
    changes += overrides(write(tmp_path / "a.jsonl", [{"id": "1", "text": "Yes."}]))
    with pytest.raises(UserError, match="data.test_file: '' is not a file"):
        load_config("configs/tiny_cpu.py", changes, mode="evaluate")
    changes.append(("data.test_file", str(tmp_path / "test.jsonl")))
    evaluate_elsewhere(load_config("configs/tiny_cpu.py", changes, mode="evaluate"), tmp_path / "run")
    assert json.loads((tmp_path / "run/evaluation/file_a/results.json").read_text())["scores"]["strict"] == 1.0
    assert "test.jsonl:2" in (tmp_path / "run/faults/test_file.jsonl").read_text()


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", RIGHT)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    score(file, tmp_path)
    assert json.loads((tmp_path / "evaluation/file_a/results.json").read_text())["scores"]["strict"] == 1.0


def test_two_models_are_compared_in_pairs(tmp_path: Path) -> None:
    better, worse = RIGHT, [one | {"text": "" if index < 4 else one["text"]} for index, one in enumerate(RIGHT)]
    score(write(tmp_path / "worse.jsonl", worse), tmp_path)
    other = tmp_path / "evaluation/file_worse"
    score(write(tmp_path / "better.jsonl", better), tmp_path, compare_with=other)
    tables = json.loads((tmp_path / "evaluation/file_better/tables.json").read_text())
    paired = tables["rules"]["strict"]["against"]["worse"]["synthetic"]
    assert (paired["first"], paired["second"], paired["wins"], paired["losses"]) == (1.0, 8 / 12, 4, 0)
    assert list(tables["rules"]["strict"]["main"]) == ["better", "worse"]


TOLD = [
    {"modality": "CT"},
    {"question_type": "organ"},
    {"language": "zh"},
    {"dataset": "x"},
    {"boxes": ((0, 0, 1, 1),)},
]


def test_questions_are_read_a_few_at_a_time_and_known_by_all_they_hold() -> None:
    base = questions.question_set("a", Lazy(EXAMPLES[:3]))
    assert base.ids == tuple(example.id for example in EXAMPLES[:3]) and base.places()[EXAMPLES[2].id] == 2
    assert questions.question_set("b", Lazy(EXAMPLES[:3])).digest == base.digest
    for change in ({"question": "Else?"}, {"answer": "X"}, {"images": (b"other",)}, {"options": ("a", "b")}, *TOLD):
        changed = [dataclasses.replace(EXAMPLES[0], **change), *EXAMPLES[1:3]]
        assert questions.question_set("a", Lazy(changed)).digest != base.digest
    with pytest.raises(UserError, match="the id 'synthetic-0-test-0-lesion' is that of two questions, 0 and 2"):
        questions.question_set("a", Lazy([EXAMPLES[0], EXAMPLES[1], EXAMPLES[0]]))
    with pytest.raises(UserError, match="a: holds no question"):
        questions.question_set("a", Lazy([]))
