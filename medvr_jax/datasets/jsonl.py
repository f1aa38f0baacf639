"""The user's own questions: one JSON object per line, images in a folder beside it.

Every line is checked when the file is opened; an error names the file, the line and the field. Images are not decoded
here, only looked for.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from medvr_jax.datasets.example import LETTERS, Example
from medvr_jax.errors import UserError

FIELDS = ("id", "image", "images", "question", "options", "answer", "modality", "boxes")


def read_jsonl(path: str | Path, image_folder: str | Path, *, field: str = "data.train_file") -> list[Example]:
    """All examples of a file. `field` names the config field in errors.

    Keys of a line: question and answer; image (a name) or images (a list), relative to image_folder; optionally id,
    options (a list, or an object letter -> text; the answer is then a letter or an option's text), modality, and boxes
    ([x1, y1, x2, y2] normalised, for audits).
    """
    if not os.path.isfile(path):
        raise UserError(f"{field}: no such file {path}")
    if not os.path.isdir(image_folder):
        raise UserError(f"data.image_folder: no such folder {image_folder}")
    examples, seen = [], {}
    with open(path, encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                example = _parse_line(
                    line, f"{path}:{number}", Path(image_folder), default_id=f"{Path(path).stem}-{number}"
                )
                if example.id in seen:
                    raise UserError(f"{path}:{number}: id {example.id!r} was already used on line {seen[example.id]}")
                seen[example.id] = number
                examples.append(example)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not examples:
        raise UserError(f"{field}: {path} holds no example")
    return examples


def _parse_line(line: str, where: str, folder: Path, default_id: str) -> Example:
    try:
        record = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: found {type(record).__name__}; allowed: a JSON object")
    unknown = sorted(set(record) - set(FIELDS))
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(FIELDS)}")
    for key, value in record.items():
        _check_characters(value, f"{where}: {key}")
    question = _text(record, "question", where)
    options = _options(record, where)
    answer, kind = _answer(_text(record, "answer", where), options, where)
    identity = record.get("id", default_id)
    if not isinstance(identity, (str, int)):
        raise UserError(f"{where}: id: found {type(identity).__name__}; allowed: text or a whole number")
    return Example(
        id=str(identity),
        images=_images(record, where, folder),
        question=question,
        options=options,
        answer=answer,
        answer_kind=kind,
        modality=_text(record, "modality", where) if "modality" in record else "",
        boxes=_boxes(record.get("boxes", []), where),
    )


def _check_characters(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = error.object[error.start]
        raise UserError(f"{where}: found {found!r}, half of a character; allowed: whole ones") from error


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        found = "nothing" if key not in record else repr(record[key])
        raise UserError(f"{where}: {key}: found {found}; allowed: text that is not empty")
    return value.strip()


def _images(record: dict[str, Any], where: str, folder: Path) -> tuple[Path, ...]:
    if ("image" in record) == ("images" in record):
        raise UserError(f"{where}: exactly one of image and images is needed")
    names = record.get("images", [record.get("image")])
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{where}: images: found {names!r}; allowed: file names")
    paths = tuple(folder / name for name in names)
    for path in paths:
        if not path.is_file():
            raise UserError(f"{where}: no such image file {path}")
    return paths


def _options(record: dict[str, Any], where: str) -> tuple[str, ...]:
    options = record.get("options")
    if options is None:
        return ()
    if isinstance(options, dict):
        expected = list(LETTERS[: len(options)])
        if sorted(options) != expected:
            raise UserError(f"{where}: options: found letters {sorted(options)}; allowed: {expected}")
        options = [options[letter] for letter in expected]
    valid = isinstance(options, list) and all(isinstance(text, str) and text.strip() for text in options)
    if not valid or not 2 <= len(options) <= len(LETTERS):
        raise UserError(f"{where}: options: found {options!r}; allowed: 2 to {len(LETTERS)} texts")
    return tuple(text.strip() for text in options)


def _answer(answer: str, options: tuple[str, ...], where: str) -> tuple[str, str]:
    """(answer, kind): a letter for choices, whichever of letter and text the file gives."""
    if not options:
        return answer, "yes_no" if answer.lower() in ("yes", "no") else "open"
    texts = [text.lower() for text in options]
    if texts.count(answer.lower()) == 1:  # an option's text wins over a letter: options may be letters themselves
        return LETTERS[texts.index(answer.lower())], "choice"
    if len(answer) == 1 and answer.upper() in LETTERS[: len(options)]:
        return answer.upper(), "choice"
    raise UserError(
        f"{where}: answer: found {answer!r}; allowed: {LETTERS[0]} to {LETTERS[len(options) - 1]} or an option's text"
    )


def _boxes(boxes: Any, where: str) -> tuple[tuple[float, float, float, float], ...]:
    def valid(box: Any) -> bool:
        return (
            isinstance(box, list)
            and len(box) == 4
            and all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in box)
            and box[0] < box[2]
            and box[1] < box[3]
        )

    if not isinstance(boxes, list) or not all(valid(box) for box in boxes):
        raise UserError(f"{where}: boxes: found {boxes!r}; allowed: a list of [x1, y1, x2, y2] within 0 to 1")
    return tuple(tuple(float(v) for v in box) for box in boxes)
