"""SLAKE's boxes as a grounding set: one question per image and name, with all boxes of that name.

The answer is always yes: what counts here is where the policy looks. An image belongs to the split whose English
questions ask about it, the test split first, because Chinese training questions ask about most test images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import Fault, Faults
from medvr_jax.datasets.published import slake
from medvr_jax.datasets.published.files import read_json, text
from medvr_jax.datasets.published.record import PublishedSet, Record

_BY_PRECEDENCE = ("test", "validation", "train")


def read(folder: Path, variant: str, split: str, faults: Faults) -> Iterator[Record]:
    taken: set[str] = set()
    for other in _BY_PRECEDENCE[: _BY_PRECEDENCE.index(split)]:
        taken |= set(_images(folder, other, faults))
    for name, modality in _images(folder, split, faults).items():
        if name not in taken:
            yield from _records(folder, name, modality, faults)


def _images(folder: Path, split: str, faults: Faults) -> dict[str, str]:
    """Image name -> modality, of the images with an English question in this split, in the file's order."""
    path = slake.questions_file(folder, split)
    rows = read_json(path, faults) if path.is_file() else ()
    return {
        text(fields, "img_name"): text(fields, "modality")
        for _, fields in rows
        if text(fields, "q_lang") == "en" and text(fields, "img_name")
    }


def _records(folder: Path, name: str, modality: str, faults: Faults) -> Iterator[Record]:
    image = slake.image_path(folder, name)
    where = f"{image.parent.name}/detection.json"
    if not image.is_file():
        faults.add(Fault(where, "missing_image", f"no such image file {image}"))
        return
    if not (image.parent / "detection.json").is_file():
        faults.add(Fault(where, "missing_boxes", "no such file"))
        return
    regions = slake.read_regions(image.parent, faults)
    mask = image.parent / "mask.png"
    for label in dict.fromkeys(region.label for region in regions):
        example = Example(
            id=f"{image.parent.name}-{label}",
            images=(image,),
            question=f"Can the {label.lower()} be seen in this image?",
            options=(),
            answer="yes",
            answer_kind="yes_no",
            modality=modality,
            boxes=tuple(region.box for region in regions if region.label == label),
            dataset=SET.name,
            question_type=label,
        )
        yield Record(f"{where}, {label}", example, regions, mask if mask.is_file() else None)


SET = PublishedSet(
    name="slake_detection",
    title="SLAKE detection",
    variants=("default",),
    splits=slake.SET.splits,
    instructions=slake.SET.instructions,
    homepage=slake.SET.homepage,
    licence=slake.SET.licence,
    read=read,
    splits_in=slake.splits_in,
)
