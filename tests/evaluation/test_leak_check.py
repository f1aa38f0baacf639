"""`--mode=leaks`: the images of test questions that a run learns from, by the entry point's own way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medvr_jax import main, workdir
from medvr_jax.configuration import load_config
from medvr_jax.errors import UserError
from tests.datasets import samples


def check(folder: Path, **fields: object) -> None:
    """Runs the mode on a recipe whose model folder is not there."""
    overrides = [(name.replace("__", "."), str(value)) for name, value in fields.items()]
    config = load_config("configs/medvr_qwen2_5_vl_7b.py", overrides, mode="leaks")
    workdir.prepare_workdir(folder, config, "leaks")
    main.run_mode(config, str(folder), "leaks")


def test_slake_leaks_through_chinese_training_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two sets are learned from; of the sets that are asked for, one leaks."""
    samples.write_slake(tmp_path / "manual/slake")
    samples.write_path_vqa(tmp_path / "manual/path_vqa")
    folders = {"data__manual_dir": tmp_path / "manual", "data__data_dir": tmp_path / "prepared"}
    common = {"data__name": "sets", "data__sets": "slake:2,path_vqa:1", **folders}
    check(tmp_path / "run", **common, evaluate__sets="slake/en")
    said = capsys.readouterr().out
    assert "slake/en: 1 of 1 test images, and with them 2 of 2 questions (100.0 %), are among the" in said
    found = json.loads((tmp_path / "run/leaks/slake/en/leaks.json").read_text())
    assert found["train"]["name"] == "training questions of slake, path_vqa" and found["leaking_test_ids"] == ["4", "5"]
    assert found["leaks"][0]["train_ids"] == ["slake/1", "slake/2"]
    assert str(tmp_path / "run/leaks/slake/en/leaks.md") in said
    # Without other sets, the run's own test questions, set by set, and all of them.
    check(tmp_path / "own", **common, data__test_examples=1)
    tests = {name: json.loads((tmp_path / f"own/leaks/{name}/leaks.json").read_text())["test"] for name in SIZES}
    assert {name: test["examples"] for name, test in tests.items()} == SIZES


SIZES = {name: samples.COUNTS[name]["test"] for name in ("slake", "path_vqa")}


def test_own_images(tmp_path: Path) -> None:
    """Only what a selection keeps is learned from; faults are listed in the run's folder."""
    for seed in range(3):
        samples.write_image(tmp_path / f"{seed}.png", seed)
    lines = [{"id": str(n), "image": f"{n}.png", "question": "Why?", "answer": "so"} for n in range(3)]
    samples.write_lines(tmp_path / "train.jsonl", [*lines[:2], {"id": "no question"}])
    samples.write_lines(tmp_path / "test.jsonl", lines[1:])
    files = {f"data__{split}_file": tmp_path / f"{split}.jsonl" for split in ("train", "test")}
    check(tmp_path / "run", **files, data__image_folder=tmp_path, data__on_error="skip")
    found = json.loads((tmp_path / "run/leaks/jsonl/leaks.json").read_text())
    assert found["leaking_test_ids"] == ["1"] and found["test"]["examples"] == 2
    assert (tmp_path / "run/faults/train_file.jsonl").is_file()
    scored = [{"id": str(n), "scores": {"strict": {"correct": n}}} for n in range(2) for _ in range(2)]
    scored[0]["scores"] = {"strict": {"correct": 1}}
    samples.write_lines(tmp_path / "scored.jsonl", scored)
    selected = {"data__filter_file": tmp_path / "scored.jsonl"}
    check(tmp_path / "run", **files, data__image_folder=tmp_path, data__on_error="skip", **selected)
    assert json.loads((tmp_path / "run/leaks/jsonl/leaks.json").read_text())["leaking_test_ids"] == []


def test_what_has_no_end_cannot_be_searched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.name: found 'synthetic', whose examples never end"):
        check(tmp_path, data__name="synthetic")
