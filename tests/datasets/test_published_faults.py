"""Every kind of fault in the published files: found, counted, with its place, and nothing else is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.published import boxes
from medvr_jax.datasets.published.answers import BadAnswer, letter_of, letter_of_text
from medvr_jax.datasets.published.checks import checked
from medvr_jax.datasets.sets import SETS
from medvr_jax.errors import UserError
from tests.datasets import samples


def read(name: str, folder: Path, split: str, variant: str = "") -> tuple[list[str], Faults]:
    """(ids of the sound records, faults)."""
    published, faults = SETS[name], Faults(name)
    records = checked(published.read(folder, variant or published.variants[0], split, faults), faults)
    return [record.example.id for record in records], faults


def both_splits(folder: Path) -> tuple[set[str], dict[str, int], str]:
    """OmniMedVQA's ids, kinds of faults (each once) and what the faults say."""
    read_both = [read("omnimedvqa", folder, split) for split in ("train", "test")]
    faults = Faults("omnimedvqa")
    faults.extend(dict.fromkeys(fault for _, found in read_both for fault in found.list))
    return {i for ids, _ in read_both for i in ids}, faults.counts(), "\n".join(fault.line() for fault in faults.list)


def test_faults_of_omnimedvqa(tmp_path: Path) -> None:
    written = samples.write_omnimedvqa(tmp_path)
    source = tmp_path / "QA_information/Open-access/Chest CT Scan.json"
    changes = {
        0: {"gt_answer": "Melanoma"},
        4: {"option_A": "Asthma", "gt_answer": "Asthma"},
        5: {"option_A": None, "option_B": None, "option_C": ""},
        6: {"question": " "},
        7: {"image_path": "Images/none.png"},
        8: {"question_id": written[9]["question_id"]},
        10: {"question_id": None},
    }
    records = [{**record, **changes.get(number, {})} for number, record in enumerate(written[:12])]
    samples.write_json(source, [*records, "no object"])
    (tmp_path / written[11]["image_path"]).write_bytes(b"no image at all")
    ids, counts, lines = both_splits(tmp_path)
    faulty = {written[number]["question_id"] for number in (0, 4, 5, 6, 7, 8, 10, 11)}
    # Of the two records with one id the first stays, whatever splits they belong to.
    assert ids == {record["question_id"] for record in written} - faulty
    assert counts == {
        "repeated_id": 1,
        "bad_answer": 1,
        "ambiguous_answer": 1,
        "bad_options": 1,
        "missing_question": 1,
        "missing_image": 1,
        "missing_id": 1,
        "broken_image": 1,
        "not_object": 1,
    }
    assert "Chest CT Scan.json, record 1, question_id Chest CT Scan_0000: answer 'Melanoma' is none of" in lines
    assert "record 13" in lines and "Images/none.png" in lines


def test_records_outside_the_public_splits_and_broken_files(tmp_path: Path) -> None:
    written = samples.write_omnimedvqa(tmp_path)
    samples.write_public_splits(tmp_path, written[:-1])
    (tmp_path / "QA_information/Open-access/Broken.json").write_text('[{"question_id": ')
    samples.write_json(tmp_path / "QA_information/Open-access/Dictionary.json", {"a": 1})
    ids, counts, lines = both_splits(tmp_path)
    assert len(ids) == 23 and counts == {"not_json": 2, "not_in_splits": 1}
    assert "Broken.json: cannot be read" in lines and "Dictionary.json: found dict" in lines


def test_repeated_ids_keep_the_first(tmp_path: Path) -> None:
    samples.write_medxpertqa_mm(tmp_path)
    path = tmp_path / "MM/test.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[2] + "\n{}\nnot JSON\n[]\n")
    ids, faults = read("medxpertqa_mm", tmp_path, "test")
    assert ids == [f"MM-{number}" for number in range(6)]
    assert faults.counts() == {"not_json": 1, "not_object": 1, "missing_id": 1, "repeated_id": 1}
    assert "already used by test.jsonl:3" in faults.list[0].message and faults.list[0].where.startswith("test.jsonl:7")


def test_medxpertqa_labels_options_and_images(tmp_path: Path) -> None:
    samples.write_medxpertqa_mm(tmp_path)
    path = tmp_path / "MM/test.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0]["label"] = "F"
    records[1]["options"] = {"A": "one", "C": "other"}
    records[2]["images"] = []
    records[3]["images"] = ["MM-3-a.jpeg", 7]
    (tmp_path / "images/MM-4-c.jpeg").unlink()
    samples.write_lines(path, records)
    ids, faults = read("medxpertqa_mm", tmp_path, "test")
    assert ids == ["MM-5"]
    assert faults.counts() == {"missing_image": 3, "bad_answer": 1, "bad_options": 1}


def test_faults_of_tables(tmp_path: Path) -> None:
    samples.write_pmc_vqa(tmp_path)
    path = tmp_path / "test_2.csv"
    with path.open("ab") as stream:
        stream.write(b"9,a.jpg,c,q, A:x, B:y, C:z, D:w,E,test\r\n")
        stream.write(b"9,a.jpg,c,q, A:x, B:y, C:, D:w,A,test\r\n")
        stream.write(b"9,a.jpg,too few\r\n\r\n")
        stream.write(b"9,a.jpg,\xff\xfe,q, A:x, B:y, C:z, D:w,A,test\r\n")
        stream.write(b"9,none.jpg,c,q, A:x, B:y, C:z, D:w,A,test\r\n")
    ids, faults = read("pmc_vqa", tmp_path, "test")
    assert len(ids) == 5
    assert faults.counts() == {"not_csv": 2, "bad_answer": 1, "bad_options": 1, "missing_image": 1}
    assert faults.list[0].where == "test_2.csv:12"  # captions have line breaks


def test_faults_of_parquet(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": samples.encoded(samples.picture(0)), "path": None}, "question": "q?", "answer": ""},
        {"image": {"bytes": None, "path": "a.jpg"}, "question": "q?", "answer": "a"},
        {"image": {"bytes": b"\x89PNG and no more", "path": None}, "question": "q?", "answer": "a"},
    ]
    samples.write_parquet(tmp_path / "data/test-00000-of-00002.parquet", rows)
    (tmp_path / "data/test-00001-of-00002.parquet").write_bytes(b"PAR1 broken")
    ids, faults = read("path_vqa", tmp_path, "test")
    assert not ids
    assert faults.counts() == {"bad_answer": 1, "broken_image": 1, "missing_image": 1, "not_parquet": 1}


def test_slake_boxes_that_are_none(tmp_path: Path) -> None:
    samples.write_slake(tmp_path)
    boxes_file = tmp_path / "imgs/xmlab0/detection.json"
    samples.write_json(boxes_file, [{"Liver": [60, 40, 30, 30]}, {"Spleen": [1, 2, 3]}, {"Lung": [1, 1, 9, 9]}])
    ids, faults = read("slake", tmp_path, "test")
    assert len(ids) == 4  # the questions are sound
    assert faults.counts() == {"bad_box": 2} and faults.list[0].where == "xmlab0/detection.json"
    boxes_file.write_text("{")
    assert read("slake", tmp_path, "test")[1].counts() == {"bad_box": 1}
    boxes_file.unlink()
    (tmp_path / "imgs/xmlab1/source.jpg").unlink()
    assert read("slake_detection", tmp_path, "test")[1].counts() == {"missing_boxes": 1}
    assert read("slake_detection", tmp_path, "train")[1].counts() == {"missing_image": 1}


def test_grounding_without_boxes(tmp_path: Path) -> None:
    samples.write_grounding(tmp_path)
    lines = [
        {"image": "a.png", "boxes": [], "label": "x"},
        {"image": "a.png", "boxes": [[0.5, 0.5, 0.2, 0.9]], "label": "x"},
        {"image": "a.png", "boxes": [[10, 10, 20, 20]], "label": "x"},
        {"image": "a.png", "boxes": 3, "label": "x"},
        {"boxes": [[0, 0, 1, 1]], "label": "x"},
        {"image": "a.png", "boxes": [[0, 0, 1, 1]]},
    ]
    samples.write_lines(tmp_path / "test.jsonl", lines)
    ids, faults = read("grounding", tmp_path, "test")
    assert not ids
    assert faults.counts() == {"bad_box": 3, "missing_boxes": 1, "missing_image": 1, "missing_question": 1}


@pytest.mark.parametrize("name", sorted(SETS))
def test_missing_files_are_answered_with_instructions(tmp_path: Path, name: str) -> None:
    published = SETS[name]
    with pytest.raises(UserError, match=f"{name}: no such folder .*none"):
        published.require(tmp_path / "none", published.variants[0])
    with pytest.raises(UserError) as error:
        published.require(tmp_path, published.variants[0])
    assert published.instructions in str(error.value) and "\n" not in str(error.value)


def test_letters_of_answers() -> None:
    options = ("Yes", "No", "no.", "B")
    assert letter_of_text("No", options) == "B"  # case counts where it must
    assert letter_of("D", options) == "D" and letter_of("B", options) == "D"  # an option's text wins over a letter
    assert letter_of("A", options) == "A" and letter_of("yes.", options) == "A"
    with pytest.raises(BadAnswer, match="several"):
        letter_of("NO", options)
    for wrong in ("", "E", "maybe"):
        with pytest.raises(BadAnswer, match="none of"):
            letter_of(wrong, options)


def test_boxes_from_masks_and_numbers() -> None:
    mask = np.zeros((40, 80), bool)
    mask[10:20, 40:60] = mask[15, 70] = True
    assert boxes.from_mask(mask) == (0.5, 0.25, 71 / 80, 0.5)
    assert boxes.from_corner_and_size([10, 20, 30, 40], (100, 100)) == pytest.approx((0.1, 0.2, 0.4, 0.6))
    assert boxes.from_corners([-0.01, 0, 1.01, 1]) == (0, 0, 1, 1)
    for numbers in ([0, 0, 0, 1], [0.5, 0, 0.2, 1], [0, 0, float("nan"), 1], [0, 0, 1], "box", [0, 0, 2, 2]):
        with pytest.raises(ValueError, match="box"):
            boxes.from_corners(numbers)
    with pytest.raises(ValueError, match="empty"):
        boxes.from_mask(np.zeros((3, 3)))
