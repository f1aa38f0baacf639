"""What is asked: the run's own test questions or published sets, each a sequence that is read as it is needed."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.source import SetSource, make_source
from medvr_jax.errors import UserError

_READ_AT_ONCE = 256  # examples whose images are in memory while a set is looked through


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """A named set of questions.

    Attributes:
        name: as in `evaluate.sets` or `data.sets`, for instance "slake/en"; "jsonl" or "synthetic" for others.
        examples: random access; a published set's records are decoded each time they are asked for.
        ids: of the examples, in order; no two are the same.
        digest: of everything that the answers depend on.
    """

    name: str
    examples: Sequence[Example]
    ids: tuple[str, ...]
    digest: str

    def places(self) -> dict[str, int]:
        """Where each id stands."""
        return {identity: index for index, identity in enumerate(self.ids)}


def read_questions(config: Any) -> list[QuestionSet]:
    """The sets of `evaluate.sets`, or the run's own test questions where there are none."""
    evaluate = config.evaluate
    if evaluate.sets:
        found = [question_set(name, _first(_published(name, config), evaluate.questions)) for name in evaluate.sets]
        _refuse_shared(found, "evaluate.sets")
        return found
    source, count = make_source(config.data, config.seed), evaluate.questions or config.data.test_examples
    if not isinstance(source, SetSource):
        return [question_set(config.data.name, source.test(count))]
    found = [question_set(name, examples) for name, examples in source.test_by_set(count).items() if examples]
    _refuse_shared(found, "data.sets")
    return found


def _refuse_shared(questions: Sequence[QuestionSet], field: str) -> None:
    """UserError where two variants of a set share a question: the tables would count it once, or not know which."""
    seen: dict[tuple[str, str], str] = {}
    for one in questions:
        for identity in one.ids:
            first = seen.setdefault((one.name.partition("/")[0], identity), one.name)
            if first != one.name:
                advice = "give one of them" + (" as evaluate.sets" if field != "evaluate.sets" else "")
                raise UserError(f"{field}: {first} and {one.name} share the question {identity!r}; {advice}")


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
    yield from (text.encode() for text in (example.id, example.question_text(), example.answer, example.answer_kind))
    for image in example.images:
        yield image if isinstance(image, bytes) else f"{os.path.basename(image)} {os.path.getsize(image)}".encode()


def _published(name: str, config: Any) -> Sequence[Example]:
    from medvr_jax.datasets import sets

    data = config.data
    return sets.read_set(
        name, config.evaluate.split, data_dir=data.data_dir, manual_dir=data.manual_dir, on_error=data.on_error
    )


class _First(Sequence):
    """The first of a sequence, still read as needed."""

    def __init__(self, examples: Sequence[Example], count: int) -> None:
        self._examples, self._count = examples, min(count, len(examples))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._examples[index]


def _first(examples: Sequence[Example], count: int) -> Sequence[Example]:
    return _First(examples, count) if count else examples
