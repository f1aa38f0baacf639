"""One record of the user's own data, as a JSON object, to an Example; everything that is wrong with it at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from medvr_jax.datasets.example import LETTERS, AnswerKind, Example, free_kind
from medvr_jax.datasets.faults import Fault

FIELDS = (
    "id", "image", "images", "question", "options", "answer", "modality", "question_type", "language", "boxes",
)  # fmt: skip

Found = TypeVar("Found")


class RecordError(Exception):
    """What is wrong with one field of a record."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def parse_record(
    record: dict[str, Any], where: str, folder: Path, default_id: str
) -> tuple[Example | None, list[Fault]]:
    """(the example, nothing wrong) or (None, its faults). Images are looked for in `folder`, not opened."""
    faults: list[Fault] = []

    def check(function: Callable[..., Found], *arguments: Any) -> Found | None:
        try:
            return function(*arguments)
        except RecordError as error:
            faults.append(Fault(where, error.kind, str(error)))
            return None

    for key, value in record.items():
        check(_check_key, key)
        check(_check_characters, key, value)
    question = check(_text, record, "question")
    options = check(_options, record)
    answer = check(_text, record, "answer")
    chosen = check(_answer, answer, options) if answer is not None and options is not None else None
    identity = check(record_id, record, default_id)
    images = check(_images, record, folder)
    optional = {key: check(_text, record, key) for key in ("modality", "question_type", "language") if key in record}
    boxes = check(_boxes, record.get("boxes", []))
    if faults:
        return None, faults
    return Example(identity, images, question, options, *chosen, boxes=boxes, **optional), []


def _check_key(key: str) -> None:
    if key not in FIELDS:
        raise RecordError("unknown_key", f"unknown key {key!r}; allowed: {', '.join(FIELDS)}")


def _check_characters(key: str, value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = error.object[error.start]
        raise RecordError("not_text", f"{key}: found {found!r}, half of a character; allowed: whole ones") from error


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        found = "nothing" if key not in record else _shown(record[key])
        kind = f"no_{key}" if value is None or isinstance(value, str) else f"bad_{key}"
        raise RecordError(kind, f"{key}: found {found}; allowed: text that is not empty")
    return value.strip()


def record_id(record: dict[str, Any], default_id: str) -> str:
    """The record's id as text; RecordError if it is none."""
    found = record.get("id", default_id)
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        raise RecordError("bad_id", f"id: found {type(found).__name__}; allowed: text or a whole number")
    if not str(found).strip():
        raise RecordError("bad_id", "id: found empty text; allowed: text or a whole number")
    return str(found)


def _images(record: dict[str, Any], folder: Path) -> tuple[Path, ...]:
    if ("image" in record) == ("images" in record):
        kind = "bad_images" if "image" in record else "no_image"
        raise RecordError(kind, "exactly one of image and images is needed")
    names = record.get("images", [record.get("image")])
    usable = isinstance(names, list) and names and all(isinstance(name, str) and name.strip() for name in names)
    if not usable or any("\0" in name for name in names):
        raise RecordError("bad_images", f"images: found {_shown(names)}; allowed: file names")
    paths = tuple(folder / name for name in names)
    missing = [path for path in paths if not _is_file(path)]
    if missing:
        raise RecordError("missing_image", f"no such image file {', '.join(map(str, missing))}")
    return paths


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that the file system cannot hold
        return False


def _options(record: dict[str, Any]) -> tuple[str, ...]:
    options = record.get("options")
    if options is None:
        return ()
    if isinstance(options, dict):
        expected = list(LETTERS[: len(options)])
        if sorted(options) != expected:
            raise RecordError("bad_options", f"options: found letters {sorted(options)}; allowed: {expected}")
        options = [options[letter] for letter in expected]
    valid = isinstance(options, list) and all(isinstance(text, str) and text.strip() for text in options)
    if not valid or not 2 <= len(options) <= len(LETTERS):
        raise RecordError("bad_options", f"options: found {_shown(options)}; allowed: 2 to {len(LETTERS)} texts")
    texts = tuple(text.strip() for text in options)
    repeated = [text for text in dict.fromkeys(texts) if texts.count(text) > 1]
    if repeated:
        raise RecordError(
            "bad_options", f"options: found {repeated[0]!r} {texts.count(repeated[0])} times; allowed: once"
        )
    return texts


def _answer(answer: str, options: tuple[str, ...]) -> tuple[str, AnswerKind]:
    """(answer, kind): a letter for choices, whichever of letter and text the file gives."""
    if not options:
        return answer, free_kind(answer)
    texts = [text.lower() for text in options]
    if texts.count(answer.lower()) == 1:  # an option's text wins over a letter: options may be letters themselves
        return LETTERS[texts.index(answer.lower())], "choice"
    if answer in options:  # options that differ in case alone
        return LETTERS[options.index(answer)], "choice"
    if len(answer) == 1 and answer.upper() in LETTERS[: len(options)]:
        return answer.upper(), "choice"
    last = LETTERS[len(options) - 1]
    raise RecordError("bad_answer", f"answer: found {_shown(answer)}; allowed: A to {last} or an option's text")


def _boxes(boxes: Any) -> tuple[tuple[float, float, float, float], ...]:
    def valid(box: Any) -> bool:
        return (
            isinstance(box, list)
            and len(box) == 4
            and all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1 for v in box)
            and box[0] < box[2]
            and box[1] < box[3]
        )

    if not isinstance(boxes, list) or not all(valid(box) for box in boxes):
        raise RecordError(
            "bad_boxes", f"boxes: found {_shown(boxes)}; allowed: a list of [x1, y1, x2, y2] within 0 to 1"
        )
    return tuple(tuple(float(v) for v in box) for box in boxes)


def _shown(value: Any) -> str:
    """A value as an error quotes it, whatever its length."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}…"
