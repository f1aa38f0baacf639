"""One question about one or more images: the record that every source of data yields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

AnswerKind = Literal["choice", "yes_no", "closed", "open"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
YES_NO_WORDS = frozenset({"yes", "no", "是", "是的", "否", "不是", "有", "没有"})


@dataclasses.dataclass(frozen=True)
class Example:
    """A question, its images and its answer.

    Images stay encoded bytes or paths until they are used. `answer` is a letter for choices and text otherwise: yes or
    no, one of few fixed answers (`closed`), or anything. `boxes` are the true regions, normalised (x1, y1, x2, y2): for
    audits only, never for training. `dataset` is the short name of a published set; modality, question_type and
    language are what tables are broken down by.
    """

    id: str
    images: tuple[bytes | str | Path, ...]
    question: str
    options: tuple[str, ...]
    answer: str
    answer_kind: AnswerKind
    modality: str = ""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    dataset: str = ""
    question_type: str = ""
    language: str = "en"

    def question_text(self, option: str = "{letter}. {text}") -> str:
        """The question with its options, one per line as `option` says."""
        choices = zip(LETTERS, self.options, strict=False)
        lines = [option.replace("{letter}", letter).replace("{text}", text) for letter, text in choices]
        return "\n".join([self.question, *lines])


def free_kind(answer: str) -> AnswerKind:
    """The kind of an answer without options: yes_no, or open."""
    return "yes_no" if answer.casefold() in YES_NO_WORDS else "open"


class Picked(Sequence[Example]):
    """Some of many examples; each is read when it is asked for, and nothing is kept."""

    def __init__(self, read: Callable[[int], Example], places: Sequence[int]) -> None:
        """`read` takes a place; these are the ones that were picked, in order."""
        self._read, self._places = read, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        return self._read(self._places[index])
