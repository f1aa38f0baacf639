"""A model as judge of open questions, whose wording the rules cannot weigh. Off by default; its name and the day of its
verdicts stand in the results. The rules' own scores stay as they are."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medvr_jax.errors import UserError
from medvr_jax.evaluation.chat_client import NoReply, user_message
from medvr_jax.evaluation.endpoint import ask_all, make_client
from medvr_jax.evaluation.questions import QuestionSet
from medvr_jax.evaluation.row_file import Key, RowFile
from medvr_jax.reports.progress import Progress

PROMPT = """You compare a student's answer to a question about a medical image with the reference answer.

Question: {question}
Reference answer: {answer}
Student's answer: {said}

Does the student's answer mean the same as the reference answer? Synonyms, another order of words, and correct details \
that the reference leaves out are fine; another finding, place or side, a contradiction, or several answers to choose \
from are not. Reply with one word: yes or no."""
_LONGEST_VERDICT = 1024  # tokens: some models think first
_FIELD = "evaluate.judge_endpoint"

Row = dict[str, Any]


def judge_open(
    evaluate: Any, folder: Path, questions: Sequence[QuestionSet], rows: Sequence[Sequence[Row]]
) -> tuple[list[list[Row]], dict[str, Any]]:
    """The rows with scores["judge"] where the question is open, and who judged when.

    Verdicts are kept in FOLDER/SET/judgements.jsonl as they come, so that nothing is asked twice. An empty answer is
    wrong without being asked about; by `evaluate.failures` so is one that the judge says neither yes nor no to.
    """
    judged, days, failed = [], set(), 0
    for one, found in zip(questions, rows, strict=True):
        asked = [row for row in found if row["answer_kind"] == "open" and _said(row)]
        verdicts = _verdicts(evaluate, folder / one.name, one, asked)
        days |= {verdict["date"] for verdict in verdicts.values()}
        failed += sum("failed" in verdict for verdict in verdicts.values())
        judged.append([_with_verdict(row, verdicts) for row in found])
    count = sum("judge" in row["scores"] for found in judged for row in found)
    told = {"model": evaluate.judge_model, "dates": sorted(days), "answers": count}
    return judged, told | ({"failed": failed} if failed else {})


def _said(row: Row) -> str:
    """The stated answer, or all that was said where none was found."""
    return row["prediction"] or row["response"].rpartition("</think>")[2].strip()


def _with_verdict(row: Row, verdicts: dict[Key, Row]) -> Row:
    if row["answer_kind"] != "open":
        return row
    verdict = verdicts.get((row["id"], row["sample"]), {"correct": 0.0})
    return row | {"scores": row["scores"] | {"judge": {"correct": verdict["correct"]}}}


def _verdicts(evaluate: Any, folder: Path, questions: QuestionSet, rows: Sequence[Row]) -> dict[Key, Row]:
    """A verdict for each row, those that are not there yet from the judge."""
    by_key = {(row["id"], row["sample"]): row for row in rows}
    digest = hashlib.blake2s(json.dumps([questions.digest, *map(_said, rows)], ensure_ascii=False).encode())
    identity = {"judge": evaluate.judge_model, "prompt": PROMPT, "answers": digest.hexdigest()}
    places, stopping, failures = questions.places(), threading.Event(), []
    client = make_client(evaluate, _FIELD, evaluate.judge_endpoint, evaluate.judge_model, stopping)

    def tasks() -> Iterator[tuple[Key, str]]:
        for key in file.missing:
            question = questions.examples[places[key[0]]].question_text()
            yield key, PROMPT.format(question=question, answer=by_key[key]["answer"], said=_said(by_key[key]))

    def work(task: tuple[Key, str]) -> Row:
        (identity, sample), prompt = task
        reply = client.ask([user_message(prompt)], temperature=0.0, max_tokens=_LONGEST_VERDICT)
        return _row((identity, sample), verdict_of(reply.text), said=reply.text)

    with RowFile(folder, list(by_key), identity, "judgements") as file:
        file.tell()
        with Progress(len(rows), file.count, f"judge {questions.name}") as progress:
            for (key, _), result in ask_all(tasks(), work, evaluate, _FIELD, stopping):
                if isinstance(result, NoReply):
                    failures.append((key, str(result)))
                    continue
                file.append([result])
                progress.update(file.count)
        if failures and evaluate.failures == "refuse":
            (first, _), why = failures[0]
            raise UserError(
                f"{_FIELD}: {len(failures)} of {len(rows)} verdicts on {questions.name} did not come, the first for"
                f" id {first!r}: {why}; the others are kept: start again, or count these answers as wrong with"
                " evaluate.failures=empty"
            )
        file.append([_row(key, 0.0, failed=why) for key, why in failures])
        return {(row["id"], row["sample"]): row for row in file.finish()}


def _row(key: Key, correct: float, **more: str) -> Row:
    """A line of judgements.jsonl."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"id": key[0], "sample": key[1], "correct": correct, "date": today} | more


def verdict_of(text: str) -> float:
    """1 for yes, 0 for no; NoReply where a judge says neither, or both."""
    words = set(re.findall(r"\b(yes|no)\b", text.rpartition("</think>")[2].lower()))
    if len(words) != 1:
        raise NoReply(f"the judge said {text[:100]!r}, which is neither yes nor no")
    return float(words == {"yes"})
