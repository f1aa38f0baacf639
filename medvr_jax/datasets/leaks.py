"""Which test images occur among the training images: the same file, the same pixels, or the same picture.

A picture's hash is a difference hash: the image in grey, averaged to 16 rows of 17, and for each pair of neighbours in
a row whether the right one is brighter by more than a grey level: 256 bits. Re-encoded and resized copies differ in a
few bits, different pictures in a hundred; up to THRESHOLD bits count as a copy. Pictures with hardly any edge (less
than LEAST_BITS bits set) look alike for this hash, and are compared by file and pixels only.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import Fault, Faults
from medvr_jax.inputs.image_formats import ImageFault, read_picture

Kind = Literal["file", "pixels", "picture"]  # from the surest to the weakest
KINDS: tuple[Kind, ...] = ("file", "pixels", "picture")
THRESHOLD = 16  # of 256 bits
LEAST_BITS = 16
SHOWN = 50  # pairs in the Markdown report; the JSON has all
_ROWS, _COLUMNS = 16, 16
_MARGIN = 1.0  # grey levels: flat parts give zeros, whatever their noise
_CHUNK = 1 << 16  # training images compared at a time


@dataclasses.dataclass
class ImageEntry:
    """One image file, by its content, and the examples that show it. `picture` is 256 bits as uint64 [4]."""

    file: bytes
    pixels: bytes
    picture: np.ndarray
    ids: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class HashedImages:
    """The distinct image files of a split or set, and how many examples it has. Unreadable images are in `faults`."""

    name: str
    examples: int
    entries: tuple[ImageEntry, ...]
    faults: tuple[Fault, ...]


@dataclasses.dataclass(frozen=True)
class Leak:
    """A test image that is a training image. `distance` is in bits of the picture's hash."""

    kind: Kind
    distance: int
    test_ids: tuple[str, ...]
    train_ids: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LeakReport:
    """All leaking pairs of images, and how much there was to compare. Unreadable images are in `faults`."""

    train: str
    test: str
    train_images: int
    test_images: int
    test_examples: int
    leaking_images: int
    threshold: int
    leaks: tuple[Leak, ...]
    faults: tuple[Fault, ...] = ()

    def leaking_ids(self) -> tuple[str, ...]:
        """The test examples with a leaking image, each once."""
        return tuple(dict.fromkeys(identity for leak in self.leaks for identity in leak.test_ids))

    def counts(self) -> dict[str, int]:
        """Pairs of images by kind."""
        counted = collections.Counter(leak.kind for leak in self.leaks)
        return {kind: counted[kind] for kind in KINDS}

    def summary(self) -> str:
        """How many images and questions leak, in a sentence."""
        leaking = len(self.leaking_ids())
        return (
            f"{self.leaking_images} of {self.test_images} test images, and with them {leaking} of {self.test_examples} "
            f"questions ({100 * leaking / max(self.test_examples, 1):.1f} %), are among the {self.train_images} "
            "training images."
        )


def hash_images(
    examples: Sequence[Example], name: str, progress: Callable[[int], None] = lambda done: None
) -> HashedImages:
    """Decodes each image once; only hashes are kept. `progress` is told how many examples are done."""
    faults, entries = Faults(name), {}
    for number, example in enumerate(examples, start=1):
        _add_images(entries, example, name, faults)
        progress(number)
    sound = tuple(entry for entry in entries.values() if entry is not None)
    return HashedImages(name, len(examples), sound, tuple(faults.list))


def find_leaks(train: HashedImages, test: HashedImages, threshold: int = THRESHOLD) -> LeakReport:
    """Compares the images of two splits or sets."""
    leaks, leaking = [], 0
    for entry, matches in zip(test.entries, _matches(test.entries, train.entries, threshold), strict=True):
        leaking += bool(matches)
        for index, distance in matches:
            other = train.entries[index]
            kind: Kind = "file" if entry.file == other.file else "pixels" if entry.pixels == other.pixels else "picture"
            leaks.append(Leak(kind, distance, tuple(entry.ids), tuple(other.ids)))
    return LeakReport(
        train=train.name,
        test=test.name,
        train_images=len(train.entries),
        test_images=len(test.entries),
        test_examples=test.examples,
        leaking_images=leaking,
        threshold=threshold,
        leaks=tuple(
            sorted(leaks, key=lambda leak: (KINDS.index(leak.kind), leak.distance, leak.test_ids, leak.train_ids))
        ),
        faults=train.faults + test.faults,
    )


def picture_hash(image: Image.Image) -> np.ndarray:
    """The difference hash, uint64 [4]."""
    grey = image.convert("RGB").convert("F").resize((_COLUMNS + 1, _ROWS), Image.Resampling.BOX)
    values = np.asarray(grey)
    bits = values[:, 1:] - values[:, :-1] > _MARGIN
    return np.packbits(bits).view(np.uint64)


def _add_images(entries: dict[bytes, ImageEntry | None], example: Example, name: str, faults: Faults) -> None:
    """Adds an example's image files to those by digest, with its id; None stands for one that cannot be read."""
    where = f"{name}, id {example.id}"
    for image in example.images:
        try:
            content = image if isinstance(image, bytes) else Path(image).read_bytes()
        except OSError as error:
            faults.add(Fault(where, "missing_image", str(error)))
            continue
        digest = hashlib.sha256(content).digest()
        if digest not in entries:
            entries[digest] = _entry(content, digest, where, faults)
        entry = entries[digest]
        if entry is not None and example.id not in entry.ids[-1:]:
            entry.ids.append(example.id)


def _entry(content: bytes, digest: bytes, where: str, faults: Faults) -> ImageEntry | None:
    try:
        pixels = read_picture(content).image
    except ImageFault as fault:
        faults.add(Fault(where, "broken_image", f"cannot be decoded ({fault})"))
        return None
    content_hash = hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).digest()
    return ImageEntry(digest, content_hash, picture_hash(pixels))


def _matches(
    test: Sequence[ImageEntry], train: Sequence[ImageEntry], threshold: int
) -> Iterable[list[tuple[int, int]]]:
    """For each test image, (index, distance) of the training images that it is a copy of, in their order."""
    pictures = np.array([entry.picture for entry in train], np.uint64).reshape(-1, 4)
    telling = _bits(pictures) >= LEAST_BITS
    same: dict[bytes, list[int]] = collections.defaultdict(list)
    for index, entry in enumerate(train):
        same[entry.pixels].append(index)
    for entry in test:
        found = {index: 0 for index in same.get(entry.pixels, ())}
        if _bits(entry.picture) >= LEAST_BITS:
            for start in range(0, len(pictures), _CHUNK):
                distances = _bits(pictures[start : start + _CHUNK] ^ entry.picture)
                close = (distances <= threshold) & telling[start : start + _CHUNK]
                found |= {start + int(index): int(distances[index]) for index in np.flatnonzero(close)}
        yield sorted(found.items())


def _bits(hashes: np.ndarray) -> np.ndarray:
    """The number of bits set in hashes [..., 4]."""
    return np.bitwise_count(hashes).sum(axis=-1, dtype=np.int64)


def write_leaks(folder: str | Path, report: LeakReport) -> tuple[Path, Path]:
    """leaks.md for people and leaks.json with everything, in the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    markdown, everything = folder / "leaks.md", folder / "leaks.json"
    content = {
        "train": {"name": report.train, "images": report.train_images},
        "test": {"name": report.test, "images": report.test_images, "examples": report.test_examples},
        "leaking_test_images": report.leaking_images,
        "threshold_bits": report.threshold,
        "pairs": report.counts(),
        "leaking_test_ids": report.leaking_ids(),
        "leaks": [dataclasses.asdict(leak) for leak in report.leaks],
        "unreadable": [dataclasses.asdict(fault) for fault in report.faults],
    }
    everything.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    markdown.write_text(_markdown(report), encoding="utf-8")
    return markdown, everything


def _markdown(report: LeakReport) -> str:
    counts = report.counts()
    lines = [
        f"# Images of {report.test} that are in {report.train}",
        "",
        report.summary(),
        "",
        "| pairs that share | number |",
        "|---|---:|",
        *(f"| the {kind} | {counts[kind]} |" for kind in KINDS),
        "",
    ]
    if report.leaks:
        lines += ["| shares the | bits apart | test | train |", "|---|---:|---|---|"]
        lines += [
            f"| {leak.kind} | {leak.distance} | {_some(leak.test_ids)} | {_some(leak.train_ids)} |"
            for leak in report.leaks[:SHOWN]
        ]
        if len(report.leaks) > SHOWN:
            lines.append(f"\n{len(report.leaks) - SHOWN} more pairs are in leaks.json.")
    if report.faults:
        lines += ["", f"{len(report.faults)} images could not be read; leaks.json lists them."]
    return "\n".join(lines) + "\n"


def _some(ids: tuple[str, ...], shown: int = 3) -> str:
    text = ", ".join(identity.replace("|", "\\|") for identity in ids[:shown])
    return f"{text} and {len(ids) - shown} more" if len(ids) > shown else text
