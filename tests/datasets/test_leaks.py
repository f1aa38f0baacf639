"""The leak report: planted copies are found, by what they share, and nothing else is."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvr_jax.datasets import leaks
from medvr_jax.datasets.example import Example
from medvr_jax.datasets.sets import read_set
from tests.datasets.samples import encoded, picture, write_slake


def example(identity: str, *images: bytes | Path) -> Example:
    return Example(identity, images, "What?", (), "so", "open")


def large(seed: int) -> Image.Image:
    return picture(seed, (320, 240))


def train_and_test() -> tuple[list[Example], list[Example]]:
    """Twenty images each; test images 0 to 3 are copies of the training images 0 to 3."""
    train = [example(f"train-{n}", encoded(large(n))) for n in range(20)]
    train.append(example("train-again", encoded(large(0))))  # the same file in another question
    copies = [
        encoded(large(0)),
        encoded(large(1), compress_level=1),
        encoded(large(2), "JPEG", quality=40),
        encoded(large(3).resize((97, 73)), "JPEG", quality=85),
    ]
    others = [encoded(large(100 + n)) for n in range(16)]
    return train, [example(f"test-{n}", image) for n, image in enumerate(copies + others)]


def test_planted_copies_and_no_others() -> None:
    report = leaks.find_leaks(*train_and_test())
    found = [(leak.kind, leak.test_ids, leak.train_ids) for leak in report.leaks]
    assert found == [
        ("file", ("test-0",), ("train-0", "train-again")),
        ("pixels", ("test-1",), ("train-1",)),
        *sorted(
            [("picture", ("test-2",), ("train-2",)), ("picture", ("test-3",), ("train-3",))], key=_distance(report)
        ),
    ]
    assert report.counts() == {"file": 1, "pixels": 1, "picture": 2}
    assert (report.train_images, report.test_images, report.test_examples) == (20, 20, 20)
    assert set(report.leaking_ids()) == {f"test-{number}" for number in range(4)}
    assert max(leak.distance for leak in report.leaks) <= leaks.THRESHOLD


def _distance(report: leaks.LeakReport):
    distances = {leak.test_ids: leak.distance for leak in report.leaks}
    return lambda found: (distances[found[1]], found[1])


def test_copies_are_near_and_others_far() -> None:
    """The threshold has room on both sides."""
    originals = np.array([leaks.picture_hash(large(n)) for n in range(60)])
    for number in range(60):
        small = Image.fromarray(np.asarray(large(number).resize((113, 85))))
        jpeg = encoded(small, "JPEG", quality=50)
        with Image.open(io.BytesIO(jpeg)) as copy:
            distances = leaks._bits(originals ^ leaks.picture_hash(copy.convert("RGB")))
        assert distances[number] <= leaks.THRESHOLD - 4
        assert np.delete(distances, number).min() >= 3 * leaks.THRESHOLD


def test_flat_pictures_are_compared_exactly() -> None:
    grey = [Image.new("L", (64, 64), level) for level in (10, 11, 200)]
    report = leaks.find_leaks(
        [example("a", encoded(grey[0]))], [example(str(n), encoded(g)) for n, g in enumerate(grey)]
    )
    assert [(leak.kind, leak.test_ids) for leak in report.leaks] == [("file", ("0",))]


def test_no_leak_no_image_and_broken_images(tmp_path: Path) -> None:
    train = [example("none"), example("broken", b"broken"), example("gone", tmp_path / "gone.png")]
    report = leaks.find_leaks(train, [example("t", encoded(large(0)))])
    assert not report.leaks and [fault.kind for fault in report.faults] == ["broken_image", "missing_image"]
    assert not leaks.find_leaks([], []).leaks
    cut = encoded(large(0), "JPEG")[:-300]
    assert [fault.kind for fault in leaks.find_leaks([example("cut", cut)], []).faults] == ["broken_image"]


def test_chunks_and_thresholds_change_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = train_and_test()
    whole = leaks.find_leaks(train, test)
    monkeypatch.setattr(leaks, "_CHUNK", 3)
    assert leaks.find_leaks(train, test) == whole
    assert leaks.find_leaks(train, test, threshold=0).counts() != whole.counts()


def test_reports(tmp_path: Path) -> None:
    report = leaks.find_leaks(*train_and_test(), train_name="slake/all train", test_name="slake/en test")
    markdown, everything = leaks.write_leaks(tmp_path / "report", report)
    text = markdown.read_text()
    assert "4 of 20 test images, and with them 4 of 20 questions (20.0 %)" in text
    assert "| the picture | 2 |" in text and "| file | 0 | test-0 | train-0, train-again |" in text
    content = json.loads(everything.read_text())
    assert content["pairs"] == {"file": 1, "pixels": 1, "picture": 2} and len(content["leaks"]) == 4
    assert content["leaks"][0] == {
        "kind": "file",
        "distance": 0,
        "test_ids": ["test-0"],
        "train_ids": ["train-0", "train-again"],
    }
    assert (
        content["test"] == {"name": "slake/en test", "images": 20, "examples": 20} and content["threshold_bits"] == 16
    )


def test_slake_leaks_through_chinese_training_questions(tmp_path: Path) -> None:
    write_slake(tmp_path / "manual/slake")
    folders = {"data_dir": tmp_path / "prepared", "manual_dir": tmp_path / "manual"}
    test = read_set("slake/en", "test", **folders)
    assert not leaks.find_leaks(read_set("slake/en", "train", **folders), test).leaks
    report = leaks.find_leaks(read_set("slake/all", "train", **folders), test)
    assert [(leak.kind, leak.test_ids, leak.train_ids) for leak in report.leaks] == [("file", ("4", "5"), ("1", "2"))]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sets by name, own files by their names; what is missing is said, with status 2."""
    write_slake(tmp_path / "manual/slake")
    common = [f"--manual_dir={tmp_path}/manual", f"--data_dir={tmp_path}/prepared", f"--output={tmp_path}/report"]
    assert leaks.main(["--train=slake", "--test=slake/en", *common]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("1 of 1 test images, and with them 2 of 2 questions (100.0 %)")
    assert said.endswith(str(tmp_path / "report/leaks.md"))
    assert json.loads((tmp_path / "report/leaks.json").read_text())["leaking_test_ids"] == ["4", "5"]
    line = {"image": "xmlab1/source.jpg", "question": "What?", "answer": "MRI"}
    (tmp_path / "own.jsonl").write_text(json.dumps(line) + "\n")
    own = [f"--train={tmp_path}/own.jsonl", f"--image_folder={tmp_path}/manual/slake/imgs"]
    assert leaks.main([*own, "--test=slake", "--test_split=train", *common]) == 0
    assert json.loads((tmp_path / "report/leaks.json").read_text())["leaking_test_ids"] == ["0"]
    assert leaks.main(["--train=slake", "--test=vqa_rad", *common]) == 2
    assert "vqa_rad: no such folder" in capsys.readouterr().err
