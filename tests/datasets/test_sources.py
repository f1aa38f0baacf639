"""The synthetic task's promises, the JSONL reader's checks, and the stream protocol."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import base
from medvr_jax.datasets.questions import read_questions
from medvr_jax.datasets.source import make_source
from medvr_jax.datasets.synthetic import CLASSES, SyntheticTask
from medvr_jax.errors import UserError


def test_examples_are_pure_functions_and_streams_are_disjoint():
    task = SyntheticTask(seed=3)
    assert task.example("train", 5) == SyntheticTask(seed=3).example("train", 5)
    examples = [task.example(split, i) for split in ("train", "test", "warmup") for i in range(20)]
    examples += [SyntheticTask(seed=4).example("train", i) for i in range(5)]
    assert len({example.images[0] for example in examples}) == len(examples)
    assert len({example.id for example in examples}) == len(examples)


def test_the_box_holds_the_lesion_and_the_answer_its_class():
    task = SyntheticTask()
    for index in range(30):
        example, scene = task.example("test", index), task.scene("test", index)
        pixels = np.asarray(Image.open(io.BytesIO(example.images[0])))
        np.testing.assert_array_equal(pixels, scene.pixels)
        x1, y1, x2, y2 = (round(v * 448) for v in example.boxes[0])
        assert (x2 - x1, y2 - y1) == (28, 28) and 0 <= x1 and x2 <= 448
        bright = np.argwhere(pixels > 140)
        assert (bright >= [y1, x1]).all() and (bright < [y2, x2]).all() and len(bright) > 100
        assert example.options["ABCD".index(example.answer)] == CLASSES[scene.label]
        # The stripes' direction: the structure tensor of the lesion's gradient, independent of how it was drawn.
        dy, dx = np.gradient(pixels[y1 + 5 : y2 - 5, x1 + 5 : x2 - 5].astype(float))
        diagonal = (dx * dy).sum() / np.hypot((dx * dx).sum(), (dy * dy).sum())
        expected = (
            0
            if abs(diagonal) < 0.3 and (dy**2).sum() > (dx**2).sum()
            else 1
            if abs(diagonal) < 0.3
            else 2
            if diagonal > 0
            else 3
        )
        assert scene.label == expected


def test_classes_are_balanced_and_equally_bright():
    task = SyntheticTask()
    means, counts = [[] for _ in CLASSES], np.zeros(4)
    for index in range(400):
        scene = task.scene("train", index)
        x1, y1, x2, y2 = scene.box
        counts[scene.label] += 1
        means[scene.label].append(
            scene.pixels[y1:y2, x1:x2].max() and np.mean(scene.pixels[y1 + 7 : y2 - 7, x1 + 7 : x2 - 7])
        )
    assert counts.min() > 70
    averages = [np.mean(m) for m in means]
    assert max(averages) - min(averages) < 6


def test_marker_images_hold_a_square_and_no_lesion():
    task = SyntheticTask()
    scene, example = task.scene("warmup", 1, marker=True), task.marker_example("warmup", 1)
    x1, y1, x2, y2 = scene.box
    level = scene.pixels[y1, x1]
    assert (scene.pixels[y1:y2, x1:x2] == level).all() and (scene.pixels > 140).sum() == 28 * 28
    scenes = [task.scene("warmup", i, marker=True) for i in range(40)]
    levels = {int(scene.pixels[scene.box[1], scene.box[0]]) for scene in scenes}
    assert min(levels) >= 150 and max(levels) < 240 and len(levels) > 20
    assert "square" in example.question and "lesion" not in example.question
    assert scene.box != task.scene("warmup", 1).box


def test_making_examples_is_fast():
    task = SyntheticTask()
    task.example("train", 0)
    start = time.process_time()
    for index in range(60):
        task.example("train", index)
    assert 60 / (time.process_time() - start) > 150  # over 300 on an idle core


def data_section(**fields) -> ConfigDict:
    data = base.get_config().data
    data.update(fields)
    return data


def test_synthetic_source_streams_by_position():
    source = make_source(data_section(), seed=1)
    whole = source.train(0, 6)
    assert [e.id for e in source.train(2, 3)] == [e.id for e in whole[2:5]]
    other = make_source(data_section(), seed=2)
    assert {e.id for e in other.train(0, 6)}.isdisjoint(e.id for e in whole)
    assert [e.id for e in other.test(4)] == [e.id for e in source.test(4)]


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    return tmp_path


def write(folder, *records) -> str:
    path = folder / "data.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return path


GOOD = {"image": "a.png", "question": "What?", "answer": "cyst", "options": ["mass", "cyst"]}


def test_jsonl_reads_all_kinds(folder):
    records = [
        GOOD,
        {**GOOD, "id": "x", "answer": "b"},
        {**GOOD, "options": {"B": "cyst", "A": "mass"}, "answer": "A"},
        {"images": ["a.png", "b.png"], "question": "Is it?", "answer": "Yes", "boxes": [[0, 0, 0.5, 1]]},
        {"image": "b.png", "question": "How many?", "answer": 3, "modality": "CT"},
        "",
    ]
    examples = read_questions(write(folder, *records), folder)
    assert [(e.answer, e.answer_kind) for e in examples] == [
        ("B", "choice"),
        ("B", "choice"),
        ("A", "choice"),
        ("Yes", "yes_no"),
        ("3", "open"),
    ]
    assert examples[0].id == "data-1" and examples[1].id == "x"
    assert examples[2].options == ("mass", "cyst") and len(examples[3].images) == 2
    assert examples[3].boxes == ((0.0, 0.0, 0.5, 1.0),) and examples[4].modality == "CT"


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{broken", "not JSON"),
        ("[1]", "object"),
        ({**GOOD, "colour": 1}, "colour"),
        ({**GOOD, "image": "gone.png"}, "gone.png"),
        ({**GOOD, "images": ["a.png"]}, "exactly one"),
        ({**GOOD, "image": 7}, "file names"),
        ({**GOOD, "question": " "}, "question"),
        ({"image": "a.png", "question": "What?"}, "answer: found nothing"),
        ({**GOOD, "answer": "Z"}, "A to B"),
        ({**GOOD, "options": ["one"]}, "options"),
        ({**GOOD, "options": {"A": "x", "C": "y"}}, "letters"),
        ({**GOOD, "boxes": [[0, 0, 9, 1]]}, "boxes"),
        ({**GOOD, "id": []}, "id"),
        ({**GOOD, "id": "first"}, "already used on line 1"),
        ({**GOOD, "question": "What\ud800?"}, r"question: found '\\ud800'"),
        ({**GOOD, "options": {"A": "mass", "B": "\udc00"}}, r"options: found '\\udc00'"),
        ({**GOOD, "id": "\ud800"}, r"id: found '\\ud800'"),
    ],
)
def test_jsonl_errors_name_the_line(folder, line, word):
    with pytest.raises(UserError, match=f"data.jsonl:2: .*{word}") as caught:
        read_questions(write(folder, {**GOOD, "id": "first"}, line), folder)
    assert "\n" not in str(caught.value)


def test_jsonl_missing_things(folder):
    with pytest.raises(UserError, match="data.test_file: no such file"):
        read_questions(folder / "none.jsonl", folder, field="data.test_file")
    with pytest.raises(UserError, match="data.image_folder"):
        read_questions(write(folder, GOOD), folder / "none")
    with pytest.raises(UserError, match="no example"):
        read_questions(write(folder, ""), folder)
    (folder / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(UserError, match="UTF-8"):
        read_questions(folder / "latin.jsonl", folder)


def test_jsonl_epochs_are_seeded_permutations(folder):
    path = write(folder, *[{**GOOD, "id": f"n{i}"} for i in range(7)])
    data = data_section(name="jsonl", train_file=str(path), test_file=str(path), image_folder=str(folder))
    source = make_source(data, seed=5)
    first, second = ([e.id for e in source.train(epoch * 7, 7)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) and first != second
    assert [e.id for e in source.train(5, 4)] == first[5:] + second[:2]
    assert [e.id for e in make_source(data, seed=5).train(0, 7)] == first
    assert [e.id for e in make_source(data, seed=6).train(0, 7)] != first
    assert [e.id for e in source.test(3)] == ["n0", "n3", "n6"] and len(source.test(99)) == 7
    with pytest.raises(UserError, match="data.train_file: not set"):
        make_source(data_section(name="jsonl", train_file="", test_file="", image_folder=str(folder)), 0).train(0, 1)
