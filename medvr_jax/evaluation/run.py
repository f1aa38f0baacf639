"""`--mode=evaluate`: the policy answers, with its tools or without, into WORKDIR/evaluation/.

Every set has a folder, in which the rows are kept as they are made: an evaluation that was killed goes on with the
first batch that is not there, with the same batches as before, so that it ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from medvr_jax import distributed
from medvr_jax.configuration import leaves
from medvr_jax.evaluation.answering import Answering, make_ready
from medvr_jax.evaluation.answers import Answer, Batch, answer
from medvr_jax.evaluation.consensus_audit import audit_section
from medvr_jax.evaluation.greedy import make_prediction
from medvr_jax.evaluation.masking import ask_masked, masking_section
from medvr_jax.evaluation.options import evaluation_folder, folder_without_tool
from medvr_jax.evaluation.policy import PolicyWeights, find_weights
from medvr_jax.evaluation.questions import QuestionSet, read_questions
from medvr_jax.evaluation.records import make_row, of_policy
from medvr_jax.evaluation.results import Row, write_results
from medvr_jax.evaluation.row_file import Key, RowFile
from medvr_jax.reports.progress import Progress

# What the rows depend on, beside the weights and the questions.
_FIELDS = ("prompt.", "rollout.", "model.compute_dtype", "model.parameter_dtype", "model.attention")
_EVALUATION_FIELDS = ("samples", "temperature", "tools")
_OF_TRAINING = ("rollout.trajectories", "rollout.groups_at_once", "rollout.temperature")


def evaluate(config: Any, workdir: str | Path) -> None:
    """Answers what is not answered yet, then writes results and tables."""
    config = _of_evaluation(config)
    with distributed.together():  # a published set may have to be prepared first, by one process
        questions = read_questions(config, Path(workdir) / "faults") if distributed.is_main() else []
    with distributed.together():
        questions = questions or read_questions(config)
    weights = find_weights(config, workdir)
    folder = evaluation_folder(config.evaluate, workdir)
    print(f"evaluating {weights.name}: {', '.join(f'{len(q.ids)} questions of {q.name}' for q in questions)}")
    identities = [_identity(config, one, weights) for one in questions]
    ready = functools.cache(lambda: make_ready(config, workdir, questions, weights))
    rows = _answer_all(config, folder, questions, identities, ready)
    masked = ask_masked(folder, questions, rows, identities, ready) if config.evaluate.masking else None
    if not distributed.is_main():
        return
    provenance = {
        "policy": weights.name,
        "step": weights.step,
        "weights": weights.fingerprint,
        "data": ", ".join(one.name for one in questions),
        "decoding": _decoding(config.evaluate),
        "tools": list(config.rollout.tools),
    }
    sections = [
        masking_section(folder, questions, rows, masked, config.evaluate.compare_with, weights.name),
        audit_section(questions, rows, config.rewards.raster, config.rewards.eta),
    ]
    without_tool = folder_without_tool(config.evaluate, workdir)
    table = write_results(folder, questions, rows, provenance, config.evaluate, without_tool, sections)
    print(f"evaluated {weights.name}: {table}")


def _of_evaluation(config: Any) -> FrozenConfigDict:
    """The configuration with the tools and the system prompt of this evaluation."""
    changed = ConfigDict(config.to_dict(), type_safe=False)
    if not config.evaluate.tools:
        changed.rollout.tools = ()
    changed.prompt.system = config.evaluate.system or config.prompt.system
    return FrozenConfigDict(changed)


def _decoding(evaluate: Any) -> str:
    if not evaluate.temperature:
        return "greedy"
    return f"{evaluate.samples} sample{'s' if evaluate.samples > 1 else ''} at temperature {evaluate.temperature:g}"


def _identity(config: Any, questions: QuestionSet, weights: PolicyWeights) -> dict[str, Any]:
    fields = {
        name: value for name, value in leaves(config) if name.startswith(_FIELDS) and name not in _OF_TRAINING
    } | {f"evaluate.{name}": config.evaluate[name] for name in _EVALUATION_FIELDS}
    fields["data.evaluation_batch"] = config.data.evaluation_batch
    if config.evaluate.temperature:
        fields["seed"] = config.seed
    policy = "model folder" if weights.step is None else weights.name
    return {"policy": policy, "weights": weights.fingerprint, "questions": questions.digest} | fields


def _answer_all(
    config: Any,
    folder: Path,
    questions: Sequence[QuestionSet],
    identities: Sequence[dict[str, Any]],
    ready: Callable[[], Answering],
) -> list[list[Row]]:
    """All rows of each set on process 0, none on the others; answers what is missing."""
    samples = range(config.evaluate.samples)
    with contextlib.ExitStack() as opened:
        files: list[RowFile] = []
        with distributed.together():
            for one, identity in zip(questions, identities, strict=True) if distributed.is_main() else ():
                keys = [(name, sample) for name in one.ids for sample in samples]
                file = RowFile(folder / one.name, keys, identity)
                file.tell()
                files.append(opened.enter_context(file))
        done = [set(map(tuple, keys)) for keys in distributed.gather_json([sorted(f.done) for f in files])[0]]
        for number, one in enumerate(questions):
            if len(done[number]) < len(one.ids) * len(samples):
                _answer_set(ready(), one, ready().plans[number], files[number] if files else None, done[number])
        return [file.finish() for file in files]


def _answer_set(
    ready: Answering, questions: QuestionSet, plan: Sequence[Batch], file: RowFile | None, done: set[Key]
) -> None:
    """Answers the batches of which something is missing; process 0 writes the rows of all processes."""
    parts, config = ready.parts, ready.parts.config

    def finished(batch: Batch) -> bool:
        ids = [questions.ids[index] for index in batch.indices[: batch.counted]]
        return all((identity, sample) in done for identity in ids for sample in range(config.evaluate.samples))

    ahead = [batch for batch in plan if not finished(batch)]
    count = len(questions.ids) - sum(batch.counted for batch in ahead)
    rows = parts.rows(config.data.evaluation_batch)
    key = jax.random.key(config.seed)
    answers = answer(ready.engine, ready.params, parts.encoder, questions.examples, ahead, rows, key)
    with Progress(len(questions.ids), count, f"evaluate {questions.name}") as progress:
        for batch, found in zip(ahead, answers, strict=True):
            parts_of_all = distributed.gather_json([[one.index, _row(questions.name, one)] for one in found])
            numbered = sorted((pair for part in parts_of_all for pair in part), key=lambda pair: pair[0])
            if file is not None:
                file.append(row for _, row in numbered)
            count += batch.counted
            correct = np.mean([row["correct"] for _, row in numbered])
            progress.update(count, f"right {correct:.2f}")


def _row(name: str, answered: Answer) -> dict[str, Any]:
    response = answered.trajectory.texts[-1]
    more = of_policy(make_prediction(answered))
    return make_row(name, answered.example, answered.sample, response, more)
