"""`--mode=evaluate` of other models: their answers come from a file or from an endpoint, and are scored like ours."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvr_jax.evaluation.endpoint import ask_questions
from medvr_jax.evaluation.options import evaluation_folder
from medvr_jax.evaluation.predictions_file import read_predictions
from medvr_jax.evaluation.questions import QuestionSet, read_questions
from medvr_jax.evaluation.records import make_row
from medvr_jax.evaluation.results import Row, write_results
from medvr_jax.evaluation.row_file import RowFile
from medvr_jax.reports.progress import Progress
from medvr_jax.rollout.tools import system_prompt

_AT_ONCE = 64  # rows that are written together


def evaluate_elsewhere(config: Any, workdir: str | Path) -> None:
    """Scores the answers, of an endpoint after asking for those that are not there yet; writes results and tables."""
    evaluate, folder = config.evaluate, evaluation_folder(config.evaluate, workdir)
    questions = read_questions(config, Path(workdir) / "faults")
    rows, provenance = (_from_file if evaluate.predictions_file else _from_endpoint)(evaluate, folder, questions)
    provenance["data"] = ", ".join(one.name for one in questions)
    table = write_results(folder, questions, rows, provenance, evaluate)
    print(f"evaluated {provenance['policy']}: {table}")


def _from_file(evaluate: Any, folder: Path, questions: Sequence[QuestionSet]) -> tuple[list[list[Row]], dict[str, Any]]:
    path = Path(evaluate.predictions_file)
    answers, samples, others = read_predictions(path, questions)
    if others:
        print(f"{path}: {others} lines answer questions that are not asked")
    identity, rows = {"answers": hashlib.blake2s(path.read_bytes()).hexdigest()}, []
    for one, texts in zip(questions, answers, strict=True):
        with _opened(folder, one, samples, identity) as file:
            missing, places = file.missing, one.places()
            with Progress(len(texts), file.count, f"score {one.name}") as progress:
                for start in range(0, len(missing), _AT_ONCE):
                    keys = missing[start : start + _AT_ONCE]
                    file.append(make_row(one.name, one.examples[places[i]], s, texts[i, s]) for i, s in keys)
                    progress.update(file.count)
            rows.append(file.finish())
    return rows, {"policy": path.stem, "decoding": "unknown", "file": str(path), "samples": samples}


def _from_endpoint(
    evaluate: Any, folder: Path, questions: Sequence[QuestionSet]
) -> tuple[list[list[Row]], dict[str, Any]]:
    asked = {name: evaluate[name] for name in ("model", "samples", "temperature", "max_tokens")}
    asked["system"], rows = evaluate.system or system_prompt({}), []
    for one in questions:
        with _opened(folder, one, evaluate.samples, asked) as file:
            ask_questions(evaluate, asked["system"], one, file)
            rows.append(file.finish())
    failed = sum("failed" in row for found in rows for row in found)
    decoding = f"temperature {evaluate.temperature:g}" if evaluate.temperature else "greedy"
    return rows, {"policy": evaluate.model, "decoding": decoding} | asked | {"failed": failed}


def _opened(folder: Path, questions: QuestionSet, samples: int, identity: Mapping[str, Any]) -> RowFile:
    keys = [(identity, sample) for identity in questions.ids for sample in range(samples)]
    file = RowFile(folder / questions.name, keys, {"questions": questions.digest} | dict(identity))
    file.tell()
    return file
