"""Which test images occur among the training images: the same file, the same pixels, or the same picture.

A picture's hash is a difference hash: the image in grey, averaged to 16 rows of 17, and for each pair of neighbours in
a row whether the right one is brighter by more than a grey level: 256 bits. Re-encoded and resized copies differ in a
few bits, different pictures in a hundred; up to THRESHOLD bits count as a copy. Pictures with hardly any edge (less
than LEAST_BITS bits set) look alike for this hash, and are compared by file and pixels only.

    python -m medvr_jax.datasets.leaks --train=NAME --test=NAME --output=DIR [--manual_dir=…] [--image_folder=…]

writes leaks.md and leaks.json. NAME is a published set, with its variant if it has one, or a JSONL or CSV file.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import ON_ERROR, Fault, Faults
from medvr_jax.datasets.questions import read_questions
from medvr_jax.errors import UserError

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


def find_leaks(
    train: Sequence[Example],
    test: Sequence[Example],
    *,
    train_name: str = "train",
    test_name: str = "test",
    threshold: int = THRESHOLD,
) -> LeakReport:
    """Compares the images of two splits or sets. Each image is decoded once; only hashes are kept."""
    faults = Faults("leaks")
    train_entries, test_entries = _entries(train, train_name, faults), _entries(test, test_name, faults)
    leaks = []
    for entry, matches in zip(test_entries, _matches(test_entries, train_entries, threshold), strict=True):
        for index, distance in matches:
            other = train_entries[index]
            kind: Kind = "file" if entry.file == other.file else "pixels" if entry.pixels == other.pixels else "picture"
            leaks.append(Leak(kind, distance, tuple(entry.ids), tuple(other.ids)))
    return LeakReport(
        train_name,
        test_name,
        len(train_entries),
        len(test_entries),
        len(test),
        threshold,
        tuple(sorted(leaks, key=lambda leak: (KINDS.index(leak.kind), leak.distance, leak.test_ids, leak.train_ids))),
        tuple(faults.list),
    )


def picture_hash(image: Image.Image) -> np.ndarray:
    """The difference hash, uint64 [4]."""
    grey = image.convert("RGB").convert("F").resize((_COLUMNS + 1, _ROWS), Image.Resampling.BOX)
    values = np.asarray(grey)
    bits = values[:, 1:] - values[:, :-1] > _MARGIN
    return np.packbits(bits).view(np.uint64)


def _entries(examples: Iterable[Example], name: str, faults: Faults) -> list[ImageEntry]:
    """The distinct image files of the examples, with the ids that share them."""
    entries: dict[bytes, ImageEntry | None] = {}
    for example in examples:
        for image in example.images:
            try:
                content = image if isinstance(image, bytes) else Path(image).read_bytes()
            except OSError as error:
                faults.add(Fault(f"{name}, id {example.id}", "missing_image", str(error)))
                continue
            digest = hashlib.sha256(content).digest()
            if digest not in entries:
                entries[digest] = _entry(content, digest, f"{name}, id {example.id}", faults)
            entry = entries[digest]
            if entry is not None and example.id not in entry.ids[-1:]:
                entry.ids.append(example.id)
    return [entry for entry in entries.values() if entry is not None]


def _entry(content: bytes, digest: bytes, where: str, faults: Faults) -> ImageEntry | None:
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = image.convert("RGB")
    except Exception as error:  # PIL raises nearly anything on corrupt data
        faults.add(Fault(where, "broken_image", f"cannot be decoded ({type(error).__name__})"))
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
    counts, leaking = report.counts(), len(report.leaking_ids())
    images = len({leak.test_ids for leak in report.leaks})
    share = 100 * leaking / max(report.test_examples, 1)
    lines = [
        f"# Images of {report.test} that are in {report.train}",
        "",
        f"{images} of {report.test_images} test images, and with them {leaking} of {report.test_examples} questions "
        f"({share:.1f} %), are among the {report.train_images} training images.",
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


def _questions(given: Mapping[str, Any], which: str) -> Sequence[Example]:
    """The questions of `--train` or `--test`."""
    name, on_error = given[which], given["on_error"]
    if name.lower().endswith((".jsonl", ".csv")):
        return read_questions(name, given["image_folder"] or ".", field=f"--{which}", on_error=on_error)
    from medvr_jax.datasets import sets  # needs more packages than the user's own data

    folders = {folder: given[folder] for folder in ("data_dir", "manual_dir")}
    return sets.read_set(name, given[f"{which}_split"], on_error=on_error, **folders)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="leaks", description=__doc__.partition("\n")[0])
    for name, words in (("train", "what was trained on"), ("test", "what is tested on")):
        parser.add_argument(f"--{name}", required=True, help=f"{words}: a set, or a JSONL or CSV file")
        parser.add_argument(f"--{name}_split", default=name, help=f"its split, by default {name}")
    parser.add_argument("--output", required=True, type=Path, help="folder of the report")
    parser.add_argument("--manual_dir", default="", help="folder of the published files")
    parser.add_argument("--data_dir", default="prepared", help="folder of what is made of them, once")
    parser.add_argument("--image_folder", default="", help="what the image paths of a file are relative to")
    parser.add_argument("--on_error", choices=ON_ERROR, default="refuse", help="what becomes of faulty records")
    given = vars(parser.parse_args(arguments))
    try:
        train, test = (_questions(given, name) for name in ("train", "test"))
    except UserError as error:
        print(f"leaks: {error}", file=sys.stderr)
        return 2
    names = {f"{name}_name": f"{given[name]} {given[f'{name}_split']}" for name in ("train", "test")}
    markdown, _ = write_leaks(given["output"], find_leaks(train, test, **names))
    print(f"{markdown.read_text(encoding='utf-8').splitlines()[2]} {markdown}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
