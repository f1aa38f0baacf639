"""Published boxes and masks -> the JSON lines of the grounding set.

    python -m medvr_jax.datasets.published.convert chestxray8 BBox_List_2017.csv IMAGES OUT.jsonl
    python -m medvr_jax.datasets.published.convert isic MASKS IMAGES OUT.jsonl
    python -m medvr_jax.datasets.published.convert gemex ANNOTATIONS.parquet IMAGES OUT.jsonl

Image paths are written relative to OUT's folder. What cannot be converted is listed in OUT.faults.jsonl.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medvr_jax.datasets.faults import Fault, Faults
from medvr_jax.datasets.image_files import image_size
from medvr_jax.datasets.published import boxes
from medvr_jax.datasets.published.files import read_csv, read_parquet, text
from medvr_jax.errors import UserError

Line = dict[str, Any]
GEMEX_SIDE = 336.0  # GEMeX's boxes are in pixels of images resized to this square

_MASK = re.compile(r"(?P<image>.+)_segmentation", re.IGNORECASE)
_GEMEX_BOX = re.compile(r"\[\s*(\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){3})\s*\]")
_GEMEX_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def chestxray8(table: Path, images: Path, faults: Faults) -> Iterator[Line]:
    """Image Index, Finding Label, "Bbox [x", y, w, "h]" in pixels; one line per image and finding."""
    found = {path.name: path for path in sorted(images.rglob("*.png"))}
    lines: dict[tuple[str, str], Line] = {}
    for where, fields in read_csv(table, faults):
        if len(fields) < 6:
            faults.add(Fault(where, "not_csv", f"found {len(fields)} columns; allowed: image, label and four numbers"))
            continue
        name, label, *numbers = (value.strip() for value in list(fields.values())[:6])
        if name not in found:
            faults.add(Fault(where, "missing_image", f"no image {name!r} under {images}"))
            continue
        try:
            box = boxes.from_corner_and_size([float(number) for number in numbers], image_size(found[name]))
        except (OSError, ValueError) as error:
            faults.add(Fault(where, "bad_box", str(error)))
            continue
        line = {"id": f"{found[name].stem}-{label}", "image": found[name], "label": label, "boxes": []}
        lines.setdefault((name, label), {**line, "modality": "X-Ray", "source": "ChestX-ray8"})["boxes"].append(box)
    yield from lines.values()


def isic(masks: Path, images: Path, faults: Faults) -> Iterator[Line]:
    """NAME_segmentation.png beside NAME.jpg; the box around the mask's bright pixels."""
    for path in sorted(masks.glob("*.png")):
        match = _MASK.fullmatch(path.stem)
        image = next(
            (
                images / f"{match['image']}{end}"
                for end in (".jpg", ".png")
                if match and (images / f"{match['image']}{end}").is_file()
            ),
            None,
        )
        if image is None:
            faults.add(Fault(path.name, "missing_image", f"no image of this mask in {images}"))
            continue
        try:
            with Image.open(path) as mask:
                box = boxes.from_mask(np.asarray(mask.convert("L")) > 127)
        except (OSError, ValueError) as error:
            faults.add(Fault(path.name, "bad_box", str(error)))
            continue
        yield {
            "id": image.stem,
            "image": image,
            "label": "skin lesion",
            "boxes": [box],
            "modality": "Dermoscopy",
            "source": "ISIC",
        }


def gemex(table: Path, images: Path, faults: Faults) -> Iterator[Line]:
    """image_path, question, response: the boxes of the response's location, or else all that it mentions."""
    for number, (where, fields) in enumerate(read_parquet(table, faults)):
        image, response = images / text(fields, "image_path").lstrip("/"), text(fields, "response")
        answer = _GEMEX_ANSWER.search(response)
        if not image.is_file():
            faults.add(Fault(where, "missing_image", f"no such image file {image}"))
            continue
        if answer is None:
            faults.add(Fault(where, "bad_answer", "found no <answer> in the response"))
            continue
        location = response.partition("<location>")[2] or response
        try:
            found = [
                boxes.from_corners([float(v) for v in numbers.split(",")], (GEMEX_SIDE, GEMEX_SIDE))
                for numbers in _GEMEX_BOX.findall(location)
            ]
        except ValueError as error:
            faults.add(Fault(where, "bad_box", str(error)))
            continue
        if not found:
            faults.add(Fault(where, "missing_boxes", "found no box in the response"))
            continue
        yield {
            "id": f"gemex-{number}",
            "image": image,
            "label": "",
            "boxes": list(dict.fromkeys(found)),
            "question": text(fields, "question"),
            "answer": answer[1].strip(),
            "modality": "X-Ray",
            "source": "GEMeX",
        }


CONVERTERS: dict[str, Callable[[Path, Path, Faults], Iterator[Line]]] = {
    "chestxray8": chestxray8,
    "isic": isic,
    "gemex": gemex,
}


def convert(name: str, annotations: Path, images: Path, output: Path) -> tuple[int, Faults]:
    """Writes the lines, and the faults if there are any; their numbers come back."""
    for path in (annotations, images):
        if not path.exists():
            raise UserError(f"{name}: no such file or folder {path}")
    faults, count = Faults(name), 0
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", encoding="utf-8") as stream:
        for line in CONVERTERS[name](annotations, images, faults):
            line["image"] = os.path.relpath(line["image"], output.parent)
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    if len(faults):
        faults.write_report(output.with_suffix(".faults.jsonl"))
    return count, faults


def main(arguments: list[str]) -> int:
    if len(arguments) != 4 or arguments[0] not in CONVERTERS:
        print(
            f"convert: found {' '.join(arguments)!r}; allowed: {'|'.join(CONVERTERS)} ANNOTATIONS IMAGES OUT.jsonl",
            file=sys.stderr,
        )
        return 2
    try:
        count, faults = convert(arguments[0], *(Path(argument) for argument in arguments[1:]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{count} lines in {arguments[3]}")
    if len(faults):
        print(faults.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
