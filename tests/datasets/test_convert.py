"""ChestX-ray8, ISIC and GEMeX, as published, become lines of the grounding set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvr_jax.datasets.published import convert
from medvr_jax.datasets.sets import read_set
from medvr_jax.errors import UserError
from tests.datasets import samples


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_chestxray8(tmp_path: Path) -> None:
    table = tmp_path / "BBox_List_2017.csv"
    table.write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "1_0.png,Nodule,16,12,32,24,,,\n1_0.png,Nodule,0.5,0,8,8\n1_0.png,Mass,0,0,64.3,48,,,\n"
        "2_0.png,Mass,1,1,2,2,,,\n1_0.png,Mass,90,1,2,2,,,\n"
    )
    samples.write_image(tmp_path / "images_001/images/1_0.png", 0)
    count, faults = convert.convert("chestxray8", table, tmp_path, tmp_path / "manual/grounding/test.jsonl")
    assert count == 2 and faults.counts() == {"bad_box": 1, "missing_image": 1}
    nodule, mass = lines(tmp_path / "manual/grounding/test.jsonl")
    assert nodule["boxes"] == [[0.25, 0.25, 0.75, 0.75], [0.5 / 64, 0, 8.5 / 64, 8 / 48]]
    assert (mass["boxes"], mass["id"]) == ([[0, 0, 1, 1]], "1_0-Mass")
    assert len(lines(tmp_path / "manual/grounding/test.faults.jsonl")) == 2
    prepared = read_set("grounding", "test", data_dir=tmp_path / "prepared", manual_dir=tmp_path / "manual")
    assert [example.question for example in prepared] == [
        "Can the nodule be seen in this image?",
        "Can the mass be seen in this image?",
    ]


def test_isic(tmp_path: Path) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[12:36, 16:48] = 255
    (tmp_path / "masks").mkdir()
    for name in ("ISIC_1_segmentation", "ISIC_2_Segmentation", "ISIC_3_segmentation", "other"):
        Image.fromarray(mask if "2" not in name else mask * 0).save(tmp_path / f"masks/{name}.png")
    for name in ("ISIC_1", "ISIC_2"):
        samples.write_image(tmp_path / f"images/{name}.jpg", 0)
    count, faults = convert.convert("isic", tmp_path / "masks", tmp_path / "images", tmp_path / "out.jsonl")
    assert count == 1 and faults.counts() == {"missing_image": 2, "bad_box": 1}
    (line,) = lines(tmp_path / "out.jsonl")
    assert (line["boxes"], line["image"]) == ([[0.25, 0.25, 0.75, 0.75]], "images/ISIC_1.jpg")


def test_gemex(tmp_path: Path) -> None:
    box = "<think>right lung [0, 0, 84, 84]</think>"
    located = "<response><answer>Yes</answer><location><ref>r</ref><box>[84, 168, 168, 336]</box></location></response>"
    rows = [
        {
            "image_path": "/files/p10/a.jpg",
            "question": "Effusion?",
            "question_type": "closed",
            "response": box + located,
        },
        {"image_path": "/files/p10/a.jpg", "question": "What?", "response": f"{box}<answer> Edema </answer>"},
        {"image_path": "/files/p10/a.jpg", "question": "What?", "response": "<answer>Edema</answer>"},
        {"image_path": "/files/p10/a.jpg", "question": "What?", "response": box},
        {"image_path": "/files/p10/b.jpg", "question": "What?", "response": f"{box}<answer>Edema</answer>"},
        {"image_path": "/files/p10/a.jpg", "question": "What?", "response": "<answer>a</answer>[0, 0, 400, 9]"},
    ]
    samples.write_parquet(tmp_path / "train.parquet", rows)
    samples.write_image(tmp_path / "mimic/files/p10/a.jpg", 0)
    count, faults = convert.convert("gemex", tmp_path / "train.parquet", tmp_path / "mimic", tmp_path / "out.jsonl")
    assert faults.counts() == {"bad_answer": 1, "bad_box": 1, "missing_boxes": 1, "missing_image": 1}
    closed, open_ = lines(tmp_path / "out.jsonl")
    assert count == 2 and closed["boxes"] == [[0.25, 0.5, 0.5, 1]] and closed["answer"] == "Yes"
    assert open_["boxes"] == [[0, 0, 0.25, 0.25]] and open_["answer"] == "Edema"


def test_tables_with_too_few_columns(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("Image Index\n1_0.png\n")
    count, faults = convert.convert("chestxray8", tmp_path / "table.csv", tmp_path, tmp_path / "out.jsonl")
    assert count == 0 and faults.counts() == {"not_csv": 1}


def test_the_command_and_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="isic: no such file or folder"):
        convert.convert("isic", tmp_path / "none", tmp_path, tmp_path / "out.jsonl")
    assert convert.main(["isic", str(tmp_path / "none"), str(tmp_path), "out"]) == 2
    assert convert.main(["padchest"]) == 2
    assert "allowed: chestxray8|isic|gemex" in capsys.readouterr().err
    (tmp_path / "masks").mkdir()
    assert convert.main(["isic", str(tmp_path / "masks"), str(tmp_path), str(tmp_path / "out.jsonl")]) == 0
    assert "0 lines" in capsys.readouterr().out
