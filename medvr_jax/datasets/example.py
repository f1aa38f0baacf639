"""One question about one or more images: the record that every source of data yields."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

AnswerKind = Literal["choice", "yes_no", "closed", "open"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


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
