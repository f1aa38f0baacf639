"""Small samples of every published set, in its published layout and with its oddities.

`WRITERS[name](folder)` writes the files of a set into MANUAL_DIR/name; `COUNTS[name]` says how many sound questions the
splits of the default variant then have. None of the samples has a fault.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A grey picture with structure of its own."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write_image(path: Path, seed: int, size: tuple[int, int] = (64, 48)) -> bytes:
    content = encoded(picture(seed, size), "JPEG" if path.suffix == ".jpg" else "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return content


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_lines(path: Path, lines: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def omnimedvqa_record(number: int, **changes: Any) -> dict[str, Any]:
    """One record of a source file; a change to None takes the key out."""
    record = {
        "dataset": "Chest CT Scan",
        "question_id": f"Chest CT Scan_{number:04d}",
        "question_type": "Disease Diagnosis",
        "question": f"What does image {number} show?",
        "gt_answer": "Adenocarcinoma",
        "image_path": f"Images/Chest CT Scan/test/{number:06d} (6).png",
        "option_A": "Bronchitis",
        "option_B": "Adenocarcinoma",
        "option_C": "Nothing, or little",
        "option_D": "Asthma",
        "modality_type": "CT(Computed Tomography)",
    }
    record |= changes
    return {key: value for key, value in record.items() if value is not None}


def write_omnimedvqa(folder: Path, count: int = 12) -> list[dict[str, Any]]:
    ct = [omnimedvqa_record(number) for number in range(count)]
    # Two options only; an answer in another spelling; the one record with another name for the modality.
    ct[1] |= {"question": "Is this normal?", "gt_answer": "No, It's normal.", "question_type": "Disease Diagnosis"}
    ct[1] |= {"option_A": "Yes", "option_B": "No, It's normal"}
    del ct[1]["option_C"], ct[1]["option_D"]
    ct[2] |= {"option_C": None, "gt_answer": "asthma."}
    ct[3]["modality"] = ct[3].pop("modality_type")
    mri = [
        omnimedvqa_record(
            number,
            dataset="RadImageNet",
            question_id=f"RadImageNet_{number:04d}",
            question_type="Modality Recognition",
            image_path=f"Images/RadImageNet/knee/{number % 4}.png",  # several questions about an image
            modality_type="MR (Mag-netic Resonance Imaging)",
        )
        for number in range(count)
    ]
    for number, record in enumerate(ct + mri):
        write_image(folder / record["image_path"], number)
    write_json(folder / "QA_information/Open-access/Chest CT Scan.json", ct)
    write_json(folder / "QA_information/Open-access/RadImageNet.json", mri)
    write_json(folder / "QA_information/Restricted-access/AIDA.json", [{"question_id": "AIDA_0000"}])
    return ct + mri


def write_public_splits(folder: Path, records: list[dict[str, Any]], first: int = 0) -> None:
    """Med-R1's Splits/: from `first` on every third record is in the test split by modality, every fourth by type."""
    for kind, key, step in (("modality", "modality_type", 3), ("question_type", "question_type", 4)):
        groups: dict[tuple[str, str], list[dict[str, str]]] = {}
        for number, record in enumerate(records):
            options = [record[f"option_{letter}"] for letter in "ABCD" if record.get(f"option_{letter}")]
            listed = ", ".join(f"{letter}){option}" for letter, option in zip("ABCD", options, strict=False))
            split = "train" if (number - first) % step else "test"
            groups.setdefault((split, record.get(key, "unknown")), []).append(
                {
                    "image": record["image_path"],
                    "problem": f"{record['question']} {listed}",
                    "solution": "<answer> B </answer>",
                }
            )
        for (split, name), lines in groups.items():
            write_json(folder / "Splits" / kind / split / f"{name}_{split}.json", lines)


def write_pmc_vqa(folder: Path) -> None:
    v2 = [
        {
            "index": str(number // 2),  # not unique
            "Figure_path": f"PMC{number}_F1.jpg",
            "Caption": 'A "caption", with\na second line',
            "Question": " Which uptake pattern is seen?",
            "Choice A": " A:Diffuse uptake",
            "Choice B": " B: Focal uptake ",
            "Choice C": " C:A:B ratio",
            "Choice D": " D:Diffuse uptake",
            "Answer": "ABCD"[number % 4],
            "split": "test",
        }
        for number in range(5)
    ]
    write_table(folder / "test_2.csv", v2)
    write_table(folder / "train_2.csv", [{**row, "split": "train"} for row in v2[:3]])
    v1 = [
        {
            "Figure_path": row["Figure_path"],
            "Question": row["Question"],
            "Answer": row["Choice A"],
            **{f"Choice {letter}": row[f"Choice {letter}"] for letter in "ABCD"},
            "Answer_label": "A",
        }
        for row in v2[:2]
    ]
    write_table(folder / "test_clean.csv", v1)
    for number, row in enumerate(v2):
        write_image(folder / "figures" / row["Figure_path"], number)
    for number, row in enumerate(v1):
        write_image(folder / "images" / row["Figure_path"], number)


def write_medxpertqa_mm(folder: Path) -> None:
    options = {letter: f"{letter.lower()} choice" for letter in "ABCDE"}
    listed = " ".join(f"({letter}) {text}" for letter, text in options.items())
    records = []
    for number in range(6):  # one to six images
        names = [f"MM-{number}-{letter}.jpeg" for letter in "abcdef"[: number + 1]]
        for place, name in enumerate(names):
            write_image(folder / "images" / name, 10 * number + place)
        records.append(
            {
                "id": f"MM-{number}",
                "question": f"A man, aged {number + 20}, sees a physician. What is next?\nAnswer Choices: {listed}",
                "options": options,
                "label": "ABCDE"[number % 5],
                "images": names,
                "medical_task": "Diagnosis",
                "body_system": "Skeletal",
                "question_type": "Reasoning" if number % 2 else "Understanding",
            }
        )
    write_lines(folder / "MM/test.jsonl", records)
    write_lines(folder / "MM/dev.jsonl", records[:2])


_PARQUET_QUESTIONS = (
    ("is there an aortic aneurysm?", "yes"),
    ("Where is the mass?", "Right lower lobe"),
    ("Is the heart enlarged?", "No"),
    ("is it normal", "normal"),
)


def write_parquet_vqa(folder: Path, splits: tuple[str, ...]) -> None:
    """VQA-RAD and PathVQA on the hub: a struct of bytes and path, question, answer; several files per split."""
    rows = [
        {"image": {"bytes": encoded(picture(number)), "path": None}, "question": question, "answer": answer}
        for number, (question, answer) in enumerate(_PARQUET_QUESTIONS)
    ]
    for split in splits:
        write_parquet(folder / f"data/{split}-00000-of-00002.parquet", rows[:3])
        write_parquet(folder / f"data/{split}-00001-of-00002.parquet", rows[3:])


def write_vqa_rad(folder: Path) -> None:
    write_parquet_vqa(folder, ("train", "test"))


def write_path_vqa(folder: Path) -> None:
    write_parquet_vqa(folder, ("train", "validation", "test"))


def write_vqa_rad_json(folder: Path) -> None:
    answers = [("Yes", "CLOSED"), ("Left", "CLOSED "), ("Right lower lobe", "OPEN"), (3, "OPEN"), ("no", "CLOSED")]
    records = [
        {
            "qid": str(number),
            "phrase_type": ("freeform", "para", "test_freeform", "test_para", "test_freeform")[number],
            "qid_linked_id": "03f451ca",
            "image_case_url": "https://medpix.nlm.nih.gov/case?id=48e1dd0e",
            "image_name": f"synpic{number}.jpg",
            "image_organ": "HEAD",
            "question": f"Question {number}?",
            "question_type": "PRES, POS",
            "answer": answer,
            "answer_type": kind,
        }
        for number, (answer, kind) in enumerate(answers)
    ]
    write_json(folder / "VQA_RAD Dataset Public.json", records)
    for number, record in enumerate(records):
        write_image(folder / "VQA_RAD Image Folder" / record["image_name"], number)


SLAKE_BOX = [16, 12, 32, 24]  # of images of 64 x 48 pixels


def slake_record(qid: int, image: int, question: str, answer: str, language: str, kind: str) -> dict[str, Any]:
    return {
        "img_id": image,
        "img_name": f"xmlab{image}/source.jpg",
        "question": question,
        "answer": answer,
        "q_lang": language,
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": kind,
        "base_type": "vqa",
        "content_type": "Organ",
        "triple": ["vhead", "_", "_"],
        "qid": qid,
    }


def write_slake(folder: Path) -> None:
    """Image 0 is asked about in English in the test file, and in Chinese in the training file."""
    train = [
        slake_record(0, 1, "Does the picture contain livers?", "Yes", "en", "CLOSED"),
        slake_record(1, 0, "图像里面包含肝脏吗?", "包含", "zh", "CLOSED"),
        slake_record(2, 0, "肺是健康的吗？", "不是", "zh", "CLOSED"),
    ]
    validation = [slake_record(3, 2, "What is the shape of the spleen?", "Irregular", "en", "OPEN")]
    test = [
        slake_record(4, 0, "What modality is used to take this image?", "MRI", "en", "OPEN"),
        slake_record(5, 0, "Which is bigger in this image, liver or spleen?", "Liver", "en", "CLOSED"),
        slake_record(6, 0, "图中有肝脏吗？", "是", "zh", "CLOSED"),
        slake_record(7, 0, "这张图像的成像模态是什么？", "核磁共振", "zh", "OPEN"),
    ]
    for name, records in (("train", train), ("validation", validation), ("test", test)):
        write_json(folder / f"{name}.json", records)
    for number in range(3):
        image = folder / f"imgs/xmlab{number}/source.jpg"
        write_image(image, number)
        labels = [{"Liver": SLAKE_BOX}, {"Left Kidney": [0, 0, 8, 8]}, {"Liver": [0, 0, 64.2, 48]}]
        write_json(image.parent / "detection.json", labels)
        mask = np.zeros((48, 64), np.uint8)
        mask[12:36, 16:48] = 70
        Image.fromarray(mask).save(image.parent / "mask.png")


def medvlm_record(number: int, subset: str, **changes: Any) -> dict[str, Any]:
    options = ["Leukemia.", "Ulcer", "Osseous neoplasm", "Cellulitis"]
    record = {
        "image": [f"images/{subset[:2].strip()}{number}.png"],
        "problem": "What is shown?\n" + "\n".join(f"{a}) {b}" for a, b in zip("ABCD", options, strict=True)),
        "solution": "ABCD"[number % 4],
        "question": "What is shown?",
        "options": options,
        "answer": options[number % 4],
        "dataset": "OmniMedVQA",
        "subset": subset,
    }
    return record | changes


def write_medvlm_r1(folder: Path) -> None:
    subsets = ("MR (Mag-netic Resonance Imaging)", "CT(Computed Tomography)", "X-Ray")
    test = [medvlm_record(number, subset) for subset in subsets for number in range(3)]
    training = [medvlm_record(number, subsets[0]) for number in range(3, 10)]
    others = [
        medvlm_record(50, "", dataset="VQA-RAD", options=["yes", "no"], answer="no", image="images/rad.png"),
        medvlm_record(51, "", dataset="PathVQA", options=[], answer="in the hypothalamus", image=["images/path.png"]),
    ]
    everything = [
        {key: value for key, value in record.items() if key not in ("problem", "solution")}
        for record in test + training + others
    ]
    write_json(folder / "MRI_CT_XRAY_300each_dataset.json", test)
    write_json(folder / "medical_multimodel_evaluation_data.json", everything)
    for number, record in enumerate(everything):
        names = record["image"] if isinstance(record["image"], list) else [record["image"]]
        for name in names:
            write_image(folder / name, number)


def write_grounding(folder: Path) -> None:
    lines = [
        {"image": "a.png", "boxes": [[0.25, 0.25, 0.5, 0.75]], "label": "Nodule", "source": "ChestX-ray8"},
        {
            "id": "own",
            "images": ["a.png", "b.png"],
            "boxes": [[0, 0, 1, 1], [0.1, 0.1, 0.2, 0.2]],
            "label": "mass",
            "question": "Where is the mass?",
            "options": ["left", "right"],
            "answer": "right",
            "modality": "CT",
        },
    ]
    write_lines(folder / "test.jsonl", lines)
    train = [
        {"image": "b.png", "boxes": [[0.1 * number, 0, 0.1 * number + 0.5, 0.5]], "label": "Mass", "source": "ISIC"}
        for number in range(3)
    ]
    write_lines(folder / "train.jsonl", train)
    for number, name in enumerate(("a.png", "b.png")):
        write_image(folder / name, number)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "omnimedvqa": write_omnimedvqa,
    "pmc_vqa": write_pmc_vqa,
    "medxpertqa_mm": write_medxpertqa_mm,
    "vqa_rad": write_vqa_rad,
    "slake": write_slake,
    "path_vqa": write_path_vqa,
    "medvlm_r1": write_medvlm_r1,
    "grounding": write_grounding,
    "slake_detection": write_slake,
}
COUNTS: dict[str, dict[str, int]] = {
    "pmc_vqa": {"train": 3, "test": 5},
    "medxpertqa_mm": {"validation": 2, "test": 6},
    "vqa_rad": {"train": 4, "test": 4},
    "slake": {"train": 3, "validation": 1, "test": 4},
    "path_vqa": {"train": 4, "validation": 4, "test": 4},
    "medvlm_r1": {"train": 7, "test": 9},
    "grounding": {"train": 3, "test": 2},
    "slake_detection": {"train": 2, "validation": 2, "test": 2},
}
