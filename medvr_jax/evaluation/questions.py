"""What is asked: the run's own test questions or published sets, each a sequence that is read as it is needed."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medvr_jax.datasets.example import Example, Picked
from medvr_jax.datasets.source import make_source
from medvr_jax.errors import UserError

_READ_AT_ONCE = 256  # examples whose images are in memory while a set is looked through


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """A named set of questions.

    Attributes:
        name: as in `evaluate.sets` or `data.sets`, for instance "slake/en", or the run's `data.name`.
        examples: random access; a published set's records are decoded each time they are asked for.
        ids: of the examples, in order; no two are the same.
        digest: of everything that the rows of the answers hold or depend on.
    """

    name: str
    examples: Sequence[Example]
    ids: tuple[str, ...]
    digest: str

    def places(self) -> dict[str, int]:
        """Where each id stands."""
        return {identity: index for index, identity in enumerate(self.ids)}


def read_questions(config: Any, report_folder: Path | None = None) -> list[QuestionSet]:
    """The sets of `evaluate.sets`, or the run's own test questions where there are none, set by set.

    `report_folder` is where what is wrong with the latter is listed.
    """
    if config.evaluate.sets:
        found = published_questions(config)
    else:
        count = config.evaluate.questions or config.data.test_examples
        found = make_source(config.data, config.seed, report_folder).test_sets(count)
    questions = [question_set(name, examples) for name, examples in found.items()]
    _refuse_shared(questions, "evaluate.sets" if config.evaluate.sets else "data.sets")
    return questions


def published_questions(config: Any) -> dict[str, Sequence[Example]]:
    """The sets of `evaluate.sets` by name, as many questions of each as are wanted."""
    found = {name: _published(name, config) for name in config.evaluate.sets}
    most = config.evaluate.questions
    return {
        name: Picked(examples.__getitem__, range(min(most, len(examples)))) if most else examples
        for name, examples in found.items()
    }


def _refuse_shared(questions: Sequence[QuestionSet], field: str) -> None:
    """UserError where two variants of a set share a question: the tables would count it once, or not know which."""
    seen: dict[tuple[str, str], str] = {}
    for one in questions:
        for identity in one.ids:
            first = seen.setdefault((one.name.partition("/")[0], identity), one.name)
            if first != one.name:
                raise UserError(f"{field}: {first} and {one.name} share the question {identity!r}; give one of them")


def question_set(name: str, examples: Sequence[Example]) -> QuestionSet:
    """Looks through the examples once; UserError where there is none, or two with the same id."""
    digest, ids = hashlib.blake2s(), {}
    for index, example in enumerate(itertools.chain.from_iterable(looked_through(examples))):
        if example.id in ids:
            raise UserError(f"{name}: the id {example.id!r} is that of two questions, {ids[example.id]} and {index}")
        ids[example.id] = index
        for part in _parts(example):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    if not ids:
        raise UserError(f"{name}: holds no question")
    return QuestionSet(name, examples, tuple(ids), digest.hexdigest())


def looked_through(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """All examples, a few at a time: what they hold together need not fit in memory."""
    for start in range(0, len(examples), _READ_AT_ONCE):
        yield [examples[i] for i in range(start, min(start + _READ_AT_ONCE, len(examples)))]


def _parts(example: Example) -> Iterator[bytes]:
    """An image in a file is known by its name and size."""
    texts = (example.id, example.question_text(), example.answer, example.answer_kind)
    told = (example.dataset, example.modality, example.question_type, example.language, repr(example.boxes))
    yield from (text.encode() for text in texts + told)
    for image in example.images:
        yield image if isinstance(image, bytes) else f"{os.path.basename(image)} {os.path.getsize(image)}".encode()


def _published(name: str, config: Any) -> Sequence[Example]:
    from medvr_jax.datasets import sets

    data = config.data
    return sets.read_set(
        name,
        config.evaluate.split,
        data_dir=data.data_dir,
        manual_dir=data.manual_dir,
        on_error=data.on_error,
        field="evaluate.sets",
    )
