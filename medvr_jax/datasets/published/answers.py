"""Answers and options as published -> the letter, kind and texts that an Example holds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

from medvr_jax.datasets.example import LETTERS, AnswerKind, free_kind
from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.published.record import Record


class BadAnswer(ValueError):
    """An answer that is none of the options, or several; `kind` is the fault's."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def letter_of_text(answer: str, options: tuple[str, ...]) -> str:
    """The letter of the option that reads as the answer; case and a full stop count only where they must."""
    exact = [index for index, option in enumerate(options) if option == answer]
    loose = [index for index, option in enumerate(options) if _loose(option) == _loose(answer)]
    found = exact or loose
    if not answer or not found:
        raise BadAnswer("bad_answer", f"answer {answer!r} is none of the options {list(options)}")
    if len(found) > 1:
        raise BadAnswer("ambiguous_answer", f"answer {answer!r} is several of the options {list(options)}")
    return LETTERS[found[0]]


def letter_of_letter(answer: str, options: tuple[str, ...]) -> str:
    """The answer, if it is the letter of an option."""
    if len(answer) != 1 or answer.upper() not in LETTERS[: len(options)]:
        raise BadAnswer("bad_answer", f"answer {answer!r} is none of the letters {LETTERS[: len(options)]}")
    return answer.upper()


def letter_of(answer: str, options: tuple[str, ...]) -> str:
    """The letter of an answer that is either an option's text or, failing that, a letter."""
    try:
        return letter_of_text(answer, options)
    except BadAnswer as error:
        if error.kind != "bad_answer":
            raise
        return letter_of_letter(answer, options)


def without_label(option: str, letter: str) -> str:
    """An option without its own label: " A:Focal uptake" -> "Focal uptake"."""
    return re.sub(rf"^\s*{letter}\s*:", "", option).strip()


def _loose(text: str) -> str:
    return text.casefold().rstrip(". ")


def choice(
    record: Record, answer: str, letter: Callable[[str, tuple[str, ...]], str], faults: Faults
) -> Iterator[Record]:
    """The record with its answer as `letter`, one of the functions above, finds it; or nothing, and a fault."""
    options = record.example.options
    if not record.example.question:
        faults.add(record.fault("missing_question", "found no question"))
    elif len(options) < 2 or not all(options):
        faults.add(record.fault("bad_options", f"found options {list(options)}; allowed: at least two, none empty"))
    else:
        try:
            example = dataclasses.replace(record.example, answer=letter(answer, options), answer_kind="choice")
        except BadAnswer as error:
            faults.add(record.fault(error.kind, str(error)))
        else:
            yield dataclasses.replace(record, example=example)


def free(record: Record, answer: str, kind: AnswerKind, faults: Faults) -> Iterator[Record]:
    """The record with an answer that is no choice; or nothing, and a fault."""
    if not record.example.question:
        faults.add(record.fault("missing_question", "found no question"))
    elif not answer:
        faults.add(record.fault("bad_answer", "found no answer"))
    else:
        example = dataclasses.replace(record.example, answer=answer, answer_kind=kind)
        yield dataclasses.replace(record, example=example)


def answered(record: Record, answer: str, faults: Faults) -> Iterator[Record]:
    """The record with one of its options as answer, given by text or letter; where it has none, with a free answer."""
    if record.example.options:
        yield from choice(record, answer, letter_of, faults)
    else:
        yield from free(record, answer, free_kind(answer), faults)


def option_texts(options: Any) -> tuple[str, ...]:
    """The texts of a published list of options; none where it is no list."""
    return tuple(str(option).strip() for option in options) if isinstance(options, list) else ()
