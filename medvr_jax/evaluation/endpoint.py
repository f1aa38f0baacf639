"""Questions to an endpoint, many at a time: each is asked until it is answered or given up, and answered once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from medvr_jax.datasets.example import Example
from medvr_jax.errors import UserError
from medvr_jax.evaluation.chat_client import ChatClient, NoReply, data_url, user_message
from medvr_jax.evaluation.parallel import Parallel
from medvr_jax.evaluation.questions import QuestionSet
from medvr_jax.evaluation.records import make_row
from medvr_jax.evaluation.row_file import Key, RowFile
from medvr_jax.reports.progress import Progress

API_KEY = "OPENAI_API_KEY"  # the environment's variable
_GIVE_UP = 8  # questions in a row that nothing could be done about

Task = TypeVar("Task")
Result = TypeVar("Result")


def ask_all(
    tasks: Iterable[Task], work: Callable[[Task], Result], evaluate: Any, field: str, stopping: threading.Event
) -> Iterator[tuple[Task, Result | NoReply]]:
    """What `work` made of each task, or why nothing came of it, in the order of arrival.

    Raises:
        UserError: when all fail, or what `work` raises for errors that concern all.
    """
    failed = 0
    with Parallel(tasks, work, evaluate.concurrency, stopping) as results:
        for task, result, error in results:
            if error is not None and not isinstance(error, NoReply):
                raise error
            failed = failed + 1 if error else 0
            yield task, error or result
            if failed >= max(_GIVE_UP, evaluate.concurrency):
                raise UserError(
                    f"{field}: the last {failed} requests came to nothing ({error}); what was answered before is kept,"
                    " and the same command goes on from there"
                )


def make_client(evaluate: Any, field: str, url: str, model: str, stopping: threading.Event) -> ChatClient:
    """The client of an endpoint, with the API key of the environment."""
    return ChatClient(
        url,
        model,
        field=field,
        key=os.environ.get(API_KEY, ""),
        timeout=evaluate.timeout,
        retries=evaluate.retries,
        stopping=stopping,
    )


def ask_questions(evaluate: Any, system: str, questions: QuestionSet, file: RowFile) -> None:
    """Asks what is not answered yet; every answer is on disk as soon as it is scored, in the order of arrival.

    Raises:
        UserError: in the end, where questions were not answered and `evaluate.failures` does not count them as empty.
    """
    places, stopping, field = questions.places(), threading.Event(), "evaluate.endpoint"
    client = make_client(evaluate, field, evaluate.endpoint, evaluate.model, stopping)
    total, failures = file.count + len(file.missing), []

    def tasks() -> Iterator[tuple[Key, Example]]:
        for key in file.missing:
            yield key, questions.examples[places[key[0]]]

    def work(task: tuple[Key, Example]) -> dict[str, Any]:
        (_, sample), example = task
        images = [data_url(image, f"example {example.id}") for image in example.images]
        messages = [{"role": "system", "content": system}] if system else []
        messages.append(user_message(example.question_text(), images))
        reply = client.ask(messages, temperature=evaluate.temperature, max_tokens=evaluate.max_tokens)
        return make_row(questions.name, example, sample, reply.text, {"ended": "truncated" if reply.cut else "answer"})

    with Progress(total, file.count, f"ask {questions.name}") as progress:
        for (key, example), result in ask_all(tasks(), work, evaluate, field, stopping):
            if isinstance(result, NoReply):
                failures.append((key, example, str(result)))
                progress.note(f"{key[0]}: {result}")
                continue
            file.append([result])
            progress.update(file.count, f"{len(failures)} failed" if failures else "")
    if failures and evaluate.failures == "refuse":
        (identity, _), _, why = failures[0]
        raise UserError(
            f"{field}: {len(failures)} of {total} answers did not come, the first of {questions.name}, id {identity!r}"
            f" ({why}); the others are kept: start again, or count these as empty with evaluate.failures=empty"
        )
    empty = [make_row(questions.name, example, sample, "", {"failed": why}) for (_, sample), example, why in failures]
    file.append(empty)
