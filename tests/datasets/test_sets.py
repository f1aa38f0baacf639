"""Published sets through their tensorflow-datasets builders and `read_set`: the same questions, without TensorFlow."""

from __future__ import annotations

import csv
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.published import builders
from medvr_jax.datasets.published.checks import checked
from medvr_jax.datasets.sets import SETS, PreparedSet, find_set, prepare_set, read_set
from medvr_jax.errors import UserError
from tests.datasets import samples


def folders(root: Path) -> dict[str, Any]:
    return {"data_dir": root / "prepared", "manual_dir": root / "manual"}


def write(name: str, root: Path) -> Path:
    """The sample of a set below root/manual."""
    folder = root / "manual" / name
    samples.WRITERS[name](folder)
    return folder


@pytest.mark.parametrize("name", sorted(SETS))
def test_what_is_read_back_is_what_the_files_hold(tmp_path: Path, name: str) -> None:
    folder = write(name, tmp_path)
    published = SETS[name]
    for split in published.splits_in(folder, published.variants[0]):
        prepared = read_set(name, split, **folders(tmp_path))
        raw = list(checked(published.read(folder, published.variants[0], split, Faults("")), Faults("")))
        assert len(prepared) == len(raw) > 0
        assert prepared.ids == [record.example.id for record in raw]
        if name in samples.COUNTS:
            assert len(prepared) == samples.COUNTS[name][split]
        for index, record in enumerate(raw):  # in the files' order, all fields, images as the very bytes
            expected = {**vars(record.example), "images": tuple(builders.encode(record)["images"])}
            assert vars(prepared[index]) == expected
            assert prepared.audit(index).regions == record.regions
            assert prepared.audit(index).mask == (record.mask.read_bytes() if record.mask else None)
    assert "tensorflow" not in sys.modules


def test_random_access(tmp_path: Path) -> None:
    write("medxpertqa_mm", tmp_path)
    prepared = read_set("medxpertqa_mm", "test", **folders(tmp_path))
    assert prepared[-1].id == "MM-5" and [example.id for example in prepared[1:4]] == ["MM-1", "MM-2", "MM-3"]
    assert len(list(prepared)) == 6 and len(prepared[5].images) == 6
    assert all(image.startswith(b"\x89PNG") or image.startswith(b"\xff\xd8") for image in prepared[5].images)
    with pytest.raises(IndexError):
        prepared[6]
    copy = pickle.loads(pickle.dumps(prepared))
    assert isinstance(copy, PreparedSet) and copy[3] == prepared[3]


def test_a_builder_is_a_plain_tfds_one(tmp_path: Path) -> None:
    folder = write("slake", tmp_path)
    builder = tfds.builder("slake/en", data_dir=str(tmp_path / "tfds"))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(folder)), file_format="array_record"
    )
    source = builder.as_data_source("test")
    assert [record["id"] for record in source] == [b"4", b"5"]
    assert builder.info.splits["test"].num_examples == 2 and builder.info.features["images"]
    again = tfds.builder("slake/en", data_dir=str(tmp_path / "tfds"))
    assert again.info.splits["train"].num_examples == 1


def test_large_splits_have_several_files_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders, "_SHARD_BYTES", 3000)
    folder = write("pmc_vqa", tmp_path)
    rows = [json.loads(json.dumps(row)) for row in _rows(folder / "test_2.csv")] * 5
    samples.write_table(folder / "test_2.csv", rows)
    prepared = read_set("pmc_vqa/v2", "test", **folders(tmp_path))
    assert len(list((tmp_path / "prepared/pmc_vqa/v2").glob("*/*test*array_record*"))) > 3
    assert prepared.ids == [example.id for example in prepared] == [f"test_2-{number}" for number in range(25)]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_image_bytes_may_end_in_zeros(tmp_path: Path) -> None:
    folder = write("grounding", tmp_path)
    content = (folder / "a.png").read_bytes() + b"\0\0\0"
    (folder / "a.png").write_bytes(content)
    assert read_set("grounding", "test", **folders(tmp_path))[0].images == (content,)


def test_faults_are_refused_or_left_out_and_listed(tmp_path: Path) -> None:
    folder = write("path_vqa", tmp_path)
    rows = [{"image": {"bytes": b"broken", "path": None}, "question": "q?", "answer": "a"}] * 2
    samples.write_parquet(folder / "data/test-00002-of-00003.parquet", rows)
    report = tmp_path / "prepared/path_vqa/default/faults.jsonl"
    with pytest.raises(UserError, match=r"path_vqa/default: 2 faults \(2 broken_image\); .*faults.jsonl"):
        read_set("path_vqa", "test", **folders(tmp_path))
    assert len(report.read_text().splitlines()) == 2
    assert not list(tmp_path.glob("prepared/path_vqa/default/*/*.array_record*"))

    prepared = read_set("path_vqa", "test", on_error="skip", **folders(tmp_path))
    assert len(prepared) == 4
    assert [json.loads(line)["kind"] for line in report.read_text().splitlines()] == ["broken_image"] * 2
    with pytest.raises(UserError, match="prepared without 2 faulty records"):
        read_set("path_vqa", "test", **folders(tmp_path))


def test_images_that_end_too_early_are_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their headers are whole; all of each image is read before anything is written."""
    folder = write("pmc_vqa", tmp_path)
    rows = _rows(folder / "test_2.csv")
    image = folder / "figures" / rows[0]["Figure_path"]
    image.write_bytes(image.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be read"):
        read_set("pmc_vqa", "test", **folders(tmp_path))
    prepared = read_set("pmc_vqa", "test", on_error="skip", **folders(tmp_path))
    sound = [f"test_2-{n}" for n, row in enumerate(rows) if row["Figure_path"] != rows[0]["Figure_path"]]
    assert prepared.ids == [example.id for example in prepared] == sound and len(sound) < len(rows)
    said = capsys.readouterr().out
    assert "left out: " in said and "broken_image" in (tmp_path / "prepared/pmc_vqa/v2/faults.jsonl").read_text()
    read_set("pmc_vqa", "test", on_error="skip", **folders(tmp_path))
    assert "faulty records, listed in" in capsys.readouterr().out  # every time


def test_a_fault_seen_from_two_splits_is_one_fault(tmp_path: Path) -> None:
    folder = tmp_path / "manual/omnimedvqa"
    written = samples.write_omnimedvqa(folder)
    samples.write_json(
        folder / "QA_information/Open-access/Other.json", [{**written[0], "question_id": "x", "gt_answer": "?"}]
    )
    prepare_set("omnimedvqa/ct", on_error="skip", **folders(tmp_path))
    report = (tmp_path / "prepared/omnimedvqa/ct/faults.jsonl").read_text()
    assert [json.loads(line)["kind"] for line in report.splitlines()] == ["bad_answer"]


def test_only_splits_with_files_are_prepared(tmp_path: Path) -> None:
    folder = write("pmc_vqa", tmp_path)
    (folder / "train_2.csv").unlink()
    with pytest.raises(UserError, match="files of test but not of train; from https"):
        read_set("pmc_vqa", "train", **folders(tmp_path))
    assert len(read_set("pmc_vqa", "test", **folders(tmp_path))) == 5
    with pytest.raises(UserError, match="prepared without a split 'train'"):
        read_set("pmc_vqa", "train", **folders(tmp_path))


def test_sets_without_a_usable_question(tmp_path: Path) -> None:
    write("omnimedvqa", tmp_path)
    with pytest.raises(UserError, match="omnimedvqa/x_ray: .* holds no usable question"):
        read_set("omnimedvqa/x_ray", "test", **folders(tmp_path))


def test_instructions_where_files_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vqa_rad: no such folder .*flaviagiammarino/vqa-rad"):
        read_set("vqa_rad", "test", **folders(tmp_path))
    assert all(
        builder.MANUAL_DOWNLOAD_INSTRUCTIONS == SETS[name].instructions for name, builder in builders.BUILDERS.items()
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(AssertionError, match="flaviagiammarino/path-vqa"):  # tfds' own words
        builders.BUILDERS["path_vqa"](data_dir=str(tmp_path)).download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=str(empty)), file_format="array_record"
        )


def test_names() -> None:
    assert find_set("slake") == (SETS["slake"], "all") and find_set("slake/zh")[1] == "zh"
    assert find_set("pmc_vqa")[1] == "v2" and find_set("omnimedvqa")[1] == "all"
    for name, said in (("slike", "allowed: omnimedvqa, "), ("slake/fr", "variants of slake: all, en, zh")):
        with pytest.raises(UserError, match=said):
            find_set(name)
    with pytest.raises(UserError, match="no split 'dev'; allowed: validation, test"):
        read_set("medxpertqa_mm", "dev", data_dir="a", manual_dir="b")
    with pytest.raises(UserError, match="data.on_error"):
        prepare_set("slake", data_dir="a", manual_dir="b", on_error="stop")
