"""`--mode=evaluate`: the policy answers, with its tools or without, into WORKDIR/evaluation/.

Every set has a folder, in which the rows are kept as they are made: an evaluation that was killed goes on with the
first batch that is not there, with the same batches as before, so that it ends with the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict, FrozenConfigDict

from medvr_jax import assembly, distributed
from medvr_jax.configuration import leaves
from medvr_jax.datasets.example import Example
from medvr_jax.evaluation.answers import Answer, Batch, answer, make_batches
from medvr_jax.evaluation.greedy import make_prediction
from medvr_jax.evaluation.options import evaluation_folder, folder_without_tool
from medvr_jax.evaluation.policy import PolicyWeights, find_weights, load_weights
from medvr_jax.evaluation.questions import QuestionSet, looked_through, read_questions
from medvr_jax.evaluation.records import make_row, of_policy
from medvr_jax.evaluation.results import write_results
from medvr_jax.evaluation.row_file import Key, RowFile
from medvr_jax.inputs.batches import check_room
from medvr_jax.inputs.survey import prompt_sizes, rooms
from medvr_jax.reports.progress import Progress
from medvr_jax.rollout.engine import RolloutEngine

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
    with contextlib.ExitStack() as opened:
        files = _open(config, folder, questions, weights, opened)
        done = [set(map(tuple, keys)) for keys in distributed.gather_json([sorted(f.done) for f in files])[0]]
        if any(len(d) < len(q.ids) * config.evaluate.samples for d, q in zip(done, questions, strict=True)):
            _answer_all(config, workdir, questions, weights, files, done)
        if not distributed.is_main():
            return
        rows = [file.finish() for file in files]
    provenance = {
        "policy": weights.name,
        "step": weights.step,
        "weights": weights.fingerprint,
        "data": ", ".join(one.name for one in questions),
        "decoding": _decoding(config.evaluate),
        "tools": list(config.rollout.tools),
    }
    without_tool = folder_without_tool(config.evaluate, workdir)
    table = write_results(folder, questions, rows, provenance, config.evaluate, without_tool)
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


def _open(
    config: Any, folder: Path, questions: Sequence[QuestionSet], weights: PolicyWeights, opened: contextlib.ExitStack
) -> list[RowFile]:
    """The files of all sets on process 0, none on the others."""
    files: list[RowFile] = []
    with distributed.together():
        for one in questions if distributed.is_main() else ():
            keys = [(identity, sample) for identity in one.ids for sample in range(config.evaluate.samples)]
            file = RowFile(folder / one.name, keys, _identity(config, one, weights))
            file.tell()
            files.append(opened.enter_context(file))
    return files


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
    workdir: str | Path,
    questions: Sequence[QuestionSet],
    weights: PolicyWeights,
    files: Sequence[RowFile],
    done: Sequence[set[Key]],
) -> None:
    parts = assembly.assemble(config, splits=())
    params = load_weights(parts, weights, workdir)
    with distributed.together():
        plans, sizes = _plan(parts, questions)
    engine = parts.engine(assembly.evaluation_rollout(config, parts.backbone, sizes))
    if not config.evaluate.tools:
        engine.forbid_calls()
    for number, (one, plan) in enumerate(zip(questions, plans, strict=True)):
        file = files[number] if files else None
        _answer_set(parts, params, engine, one, plan, file, done[number])


def _plan(
    parts: assembly.Parts, questions: Sequence[QuestionSet]
) -> tuple[list[list[Batch]], tuple[tuple[int, int], ...]]:
    """Batches of each set with questions of like size together, the largest first, and the sizes to pad them to."""
    prompt, size = parts.config.prompt, parts.config.data.evaluation_batch
    plans, needed = [], []
    for one in questions:
        room = np.concatenate([_room(parts, examples) for examples in looked_through(one.examples)])
        batches = make_batches(np.lexsort((-room[:, 1], -room[:, 0])).tolist(), size)
        plans.append(batches)
        needed += [room[batch.indices].max(axis=0) for batch in batches]
    largest, unit = (prompt.bucket, prompt.patches), parts.encoder.merge_size**2
    return plans, prompt_sizes(np.array(needed), largest, count=prompt.sizes, merge_unit=unit)


def _room(parts: assembly.Parts, examples: Sequence[Example]) -> np.ndarray:
    """Tokens and patches `[n, 2]` that the examples need; UserError for one that is too large."""
    prompt, found = parts.config.prompt, rooms(examples, parts.encoder)
    for example, room in zip(examples, found, strict=True):
        limits = (prompt.bucket, prompt.images, prompt.patches)
        check_room(example.id, *room.tolist(), len(example.images), *limits)
    return found


def _answer_set(
    parts: assembly.Parts,
    params: nnx.State,
    engine: RolloutEngine,
    questions: QuestionSet,
    plan: Sequence[Batch],
    file: RowFile | None,
    done: set[Key],
) -> None:
    """Answers the batches of which something is missing; process 0 writes the rows of all processes."""
    config = parts.config

    def finished(batch: Batch) -> bool:
        ids = [questions.ids[index] for index in batch.indices[: batch.counted]]
        return all((identity, sample) in done for identity in ids for sample in range(config.evaluate.samples))

    ahead = [batch for batch in plan if not finished(batch)]
    count = len(questions.ids) - sum(batch.counted for batch in ahead)
    rows = parts.rows(config.data.evaluation_batch)
    key = jax.random.key(config.seed)
    answers = answer(engine, params, parts.encoder, questions.examples, ahead, rows, key)
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
