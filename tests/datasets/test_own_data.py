"""The user's own questions: tables, faults of all kinds found in one pass, and runs that refuse or skip them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import base
from medvr_jax.datasets.questions import read_questions
from medvr_jax.datasets.source import make_source
from medvr_jax.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
GOOD = {"image": "a.png", "question": "What?", "answer": "cyst", "options": ["mass", "cyst"]}


def picture(kind: str, side: int = 64) -> bytes:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images: sound ones, and ones that are damaged in all manners."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("a.png", "b.png", "c d.png"):
        (folder / name).write_bytes(picture("PNG"))
    (folder / "a.jpg").write_bytes(picture("JPEG", 5))
    (folder / "grey.tif").write_bytes(picture("TIFF"))
    (folder / "no_image.png").write_bytes(b"not an image")
    (folder / "empty.jpg").write_bytes(b"")
    for kind in ("png", "jpg", "tif", "bmp"):
        name = {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper())
        (folder / f"half.{kind}").write_bytes(picture(name)[: len(picture(name)) // 2])
    (folder / "folder.png").mkdir()
    return folder


def test_damaged_images_are_found_before_the_run(folder: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({**GOOD, "id": name, "image": name}) + "\n" for name in names))
    report = tmp_path / "faults.jsonl"
    found = read_questions(file, folder, on_error="skip", report=report)
    sound = {"a.png", "b.png", "c d.png", "a.jpg", "grey.tif"}
    assert {example.id for example in found} == sound
    listed = [json.loads(line) for line in report.read_text().splitlines()]
    assert {int(fault["where"].rpartition(":")[2]) for fault in listed} == {
        1 + names.index(name) for name in set(names) - sound
    }
    assert Counter(fault["kind"] for fault in listed) == {"broken_image": 6, "missing_image": 1}
    # The header of half an image is whole.
    found = read_questions(file, folder, on_error="skip", look_at="header")
    assert {"half.png", "half.jpg", "half.bmp"} <= {example.id for example in found}
    assert not {"no_image.png", "empty.jpg", "folder.png"} & {example.id for example in found}


def test_all_faults_of_a_line_are_told(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(
        json.dumps({**GOOD, "id": 1})
        + "\n\n"
        + json.dumps({"image": "gone.png", "question": " ", "answer": "Z", "options": ["a", "b"], "colour": 1, "id": 1})
        + "\n"
    )
    report = tmp_path / "faults.jsonl"
    with pytest.raises(UserError, match=r"5 faults \(.*1 repeated_id") as caught:
        read_questions(file, folder, report=report)
    assert str(report) in str(caught.value)
    kinds = [json.loads(line)["kind"] for line in report.read_text().splitlines()]
    assert sorted(kinds) == ["bad_answer", "missing_image", "no_question", "repeated_id", "unknown_key"]


def test_faults_of_both_files_are_told_together(folder: Path, tmp_path: Path) -> None:
    data = base.get_config().data
    data.update(name="jsonl", image_folder=str(folder))
    for split in ("train", "test"):
        data[f"{split}_file"] = str(tmp_path / f"{split}.jsonl")
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(GOOD) + "\n{broken\n")
    with pytest.raises(UserError) as caught:
        make_source(data, 0, tmp_path / "faults").load(("train", "test"))
    assert f"{tmp_path}/train.jsonl:2: not JSON" in str(caught.value)
    assert f"; {tmp_path}/test.jsonl:2: not JSON" in str(caught.value) and "\n" not in str(caught.value)
    assert {path.name for path in (tmp_path / "faults").iterdir()} == {"train_file.jsonl", "test_file.jsonl"}


def test_answers_keep_their_kind(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    lines = [
        {"image": "a.png", "question": "有病变吗?", "answer": "是", "language": "zh", "question_type": "abnormality"},
        {"image": "a.png", "question": "Is it?", "answer": "NO"},
        {"image": "a.png", "question": "Which?", "answer": "a", "options": ["A", "a"]},
        {"image": "a.png", "question": "Which?", "answer": "A", "options": ["B", "A"]},
        {"image": "a.png", "question": "How many?", "answer": 2.5},
        {"image": "a.png", "question": "有病变吗?", "answer": "没有", "language": "zh"},
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines)
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = read_questions(file, folder)
    assert [(e.answer, e.answer_kind) for e in found] == [
        ("是", "yes_no"),
        ("NO", "yes_no"),
        ("B", "choice"),
        ("B", "choice"),
        ("2.5", "open"),
        ("没有", "yes_no"),
    ]
    assert (found[0].language, found[0].question_type, found[1].language) == ("zh", "abnormality", "en")


# ------------------------------------------------------------------------------------------------------------- tables

TABLE = (
    "\ufeffid,image,question,option_A,option_B,option_C,answer,modality",
    'q1,a.png,"What, then?",mass,cyst,,cyst,CT',
    ',b.png,"Two\nlines, one ""cell""",x,y,z,C,',
    "q3,c d.png,Is it?,,,,yes,MRI",
)


def test_a_table_says_what_lines_of_json_say(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("\n".join(TABLE) + "\n", encoding="utf-8")
    first, second, third = read_questions(file, folder)
    assert (first.id, first.options, first.answer, first.modality) == ("q1", ("mass", "cyst"), "B", "CT")
    assert (second.id, second.question, second.answer) == ("train-3", 'Two\nlines, one "cell"', "C")
    assert (third.options, third.answer_kind, third.images) == ((), "yes_no", (folder / "c d.png",))
    file.write_text("images,question,options,answer\na.png; b.png,Which?,mass | cyst,A\n", encoding="utf-8")
    (both,) = read_questions(file, folder)
    assert both.images == (folder / "a.png", folder / "b.png") and both.options == ("mass", "cyst")


def test_faults_of_a_table_name_the_first_line_of_their_row(folder: Path, tmp_path: Path) -> None:
    file, report = tmp_path / "train.CSV", tmp_path / "faults.jsonl"
    rows = [
        b"image,question,option_A,option_B,answer",
        b"a.png,What?,mass,cyst,A",
        b'a.png,"Two\nlines",mass,cyst,Z',
        b"a.png,What?,mass,cyst",
        b"a.png,caf\xe9?,mass,cyst,A",
        b"",
        b"gone.png,What?,mass,cyst,A",
        b"a.png,What?,,cyst,A",
        b'a.png,What?,"mass"s,cyst,A',
        b'a.png,"never closed,mass,cyst,A',
    ]
    file.write_bytes(b"\n".join(rows) + b"\n")
    found = read_questions(file, folder, on_error="skip", report=report)
    assert len(found) == 1
    listed = [json.loads(line) for line in report.read_text().splitlines()]
    assert [(int(fault["where"].rpartition(":")[2]), fault["kind"]) for fault in listed] == [
        (3, "bad_answer"),
        (5, "bad_row"),
        (6, "not_utf8"),
        (8, "missing_image"),
        (9, "bad_options"),
        (10, "not_csv"),
        (11, "not_csv"),
    ]
    assert all("read as one" not in fault["message"] for fault in listed)


def test_a_quotation_mark_that_nothing_closes(folder: Path, tmp_path: Path) -> None:
    """What it swallows is said."""
    file, report = tmp_path / "train.csv", tmp_path / "faults.jsonl"
    file.write_text('image,question,answer\na.png,What?,yes\na.png,"What?,yes\na.png,Where?,no\n')
    assert len(read_questions(file, folder, on_error="skip", report=report)) == 1
    (fault,) = map(json.loads, report.read_text().splitlines())
    assert fault["where"].endswith("train.csv:3") and fault["message"].endswith("lines 3 to 4 read as one")


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ("image,question,answer,colour", "found 'colour'"),
        ("image,question,answer,answer", "'answer' 2 times"),
        ("image,question", "no 'answer'"),
        ("question,answer", "exactly one of image and images"),
        ("image,question,answer,option_A,option_C", "without a gap"),
        ("image,question,answer,options,option_A", "one of them"),
        ("", "no 'question'"),
    ],
)
def test_a_header_that_cannot_be_used(folder: Path, tmp_path: Path, header: str, word: str) -> None:
    file = tmp_path / "train.csv"
    file.write_text(f"{header}\na.png,What?,yes\n")
    with pytest.raises(UserError, match=f"train.csv:1: columns.*{word}"):
        read_questions(file, folder, on_error="skip")


# ------------------------------------------------------------------------- ten thousand lines, fifty of them are wrong


def planted() -> Iterator[tuple[str, bytes]]:
    """(kind, line) of 25 different faults."""

    def line(**changes: object) -> bytes:
        return json.dumps(GOOD | changes).encode()

    yield "not_json", b"{broken"
    yield "not_json", line()[:-1]
    yield "not_json", b"[" * 100_000
    yield "not_utf8", line(question="caf?").replace(b"caf?", b"caf\xe9")
    yield "not_object", b'["a.png", "What?", "A"]'
    yield "not_object", b"null"
    yield "repeated_key", line()[:-1] + b', "answer": "mass"}'
    yield "unknown_key", line(colour="red")
    yield "not_text", line(question="What\ud800?")
    yield "no_question", line(question="  ")
    yield "bad_question", line(question=["What?"])
    yield "no_answer", json.dumps({k: v for k, v in GOOD.items() if k != "answer"}).encode()
    yield "no_answer", line(answer="")
    yield "bad_answer", line(answer="Z")
    yield "bad_answer", line(answer="tumour")
    yield "bad_options", line(options=["one"])
    yield "bad_options", line(options={"A": "cyst", "C": "mass"})
    yield "bad_options", line(options=["cyst", "cyst", "mass"])
    yield "bad_id", line(id=None)
    yield "bad_boxes", line(boxes=[[0.5, 0, 0.2, 1]])
    yield "missing_image", line(image="gone.png")
    yield "bad_images", line(image=7)
    yield "no_image", json.dumps({k: v for k, v in GOOD.items() if k != "image"}).encode()
    yield "broken_image", line(image="half.jpg")
    yield "repeated_id", line(id="n0")


@pytest.fixture(scope="module")
def large(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    """A file of 10,000 lines, and the kind of fault by line."""
    rng = np.random.default_rng(8)
    sound = ["a.png", "b.png", "c d.png", "a.jpg", "grey.tif"]
    lines = [json.dumps(GOOD | {"id": f"n{i}", "image": sound[i % len(sound)]}).encode() for i in range(10_000)]
    places = rng.permutation(np.arange(1, 10_000))[:50]
    faults = list(planted()) * 2
    for place, (_, line) in zip(places, faults, strict=True):
        lines[place] = line
    file = tmp_path_factory.mktemp("large") / "train.jsonl"
    file.write_bytes(b"\n".join(lines))
    return file, {int(place) + 1: kind for place, (kind, _) in zip(places, faults, strict=True)}


def test_every_planted_fault_is_reported_with_its_line(
    large: tuple[Path, dict[int, str]], folder: Path, tmp_path: Path
) -> None:
    file, expected = large
    report = tmp_path / "faults.jsonl"
    began = time.process_time()
    with pytest.raises(UserError, match="50 faults") as caught:
        read_questions(file, folder, report=report)
    assert time.process_time() - began < 10  # about 1 on an idle core
    listed = [json.loads(line) for line in report.read_text().splitlines()]
    assert {int(fault["where"].removeprefix(f"{file}:")): fault["kind"] for fault in listed} == expected
    assert [f["where"] for f in listed] == [f"{file}:{line}" for line in sorted(expected)]
    message = str(caught.value)
    assert "\n" not in message and all(f"{n} {kind}" in message for kind, n in Counter(expected.values()).items())
    assert all(f"{file}:{line}: " in message for line in sorted(expected)[:3]) and str(report) in message


def run_main(file: Path, images: Path, workdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A short run of the quick start on these questions, through the real entry point."""
    settings = {
        "name": "jsonl", "train_file": file, "test_file": file, "image_folder": images, "prompts_per_step": 4,
        "test_examples": 8, "evaluation_batch": 8,
    }  # fmt: skip
    command = [sys.executable, "-m", "medvr_jax.main", f"--config={REPOSITORY}/configs/tiny_cpu.py:text"]
    command += [f"--workdir={workdir}", "--config.steps=1", "--config.mesh.host_devices=1", *arguments]
    command += ["--config.rollout.trajectories=2", "--config.export_at_end=false"]
    command += ["--config.prompt.sizes=1", "--config.rollout.sizes=1", "--config.rollout.response_length=16"]
    command += [f"--config.data.{name}={value}" for name, value in settings.items()]
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), JAX_PLATFORMS="cpu")
    return subprocess.run(command, cwd=workdir.parent, env=environment, capture_output=True, text=True, timeout=600)


def test_faults_end_a_run_with_status_2(large: tuple[Path, dict[int, str]], folder: Path, tmp_path: Path) -> None:
    file, expected = large
    result = run_main(file, folder, tmp_path / "run")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    report = tmp_path / "run" / "faults" / "train_file.jsonl"
    assert f"data.train_file: {file}: 50 faults" in result.stderr and str(report) in result.stderr
    listed = [json.loads(line) for line in report.read_text().splitlines()]
    assert [(fault["where"], fault["kind"]) for fault in listed] == [
        (f"{file}:{line}", kind) for line, kind in sorted(expected.items())
    ]
    assert len(listed) == 50 and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_skipping_faults_trains_on_the_rest(large: tuple[Path, dict[int, str]], folder: Path, tmp_path: Path) -> None:
    file, expected = large
    result = run_main(file, folder, tmp_path / "run", "--config.data.on_error=skip")
    assert result.returncode == 0, result.stderr
    assert f"skipped 50 of 10000 lines: data.train_file: {file}: 50 faults" in result.stdout
    for split in ("train", "test"):
        listed = (tmp_path / "run" / "faults" / f"{split}_file.jsonl").read_text().splitlines()
        assert len(listed) == len(expected)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1] and np.isfinite(rows[0]["train/loss"])
