"""`evaluate.masking`: does the answer depend on what the policy looked at? Each question once more, its image masked.

The rows are kept like those of the plain answers, in a file of each set, so that what was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medvr_jax import distributed
from medvr_jax.evaluation.answering import Answering
from medvr_jax.evaluation.answers import Answer, Batch, answer, make_batches
from medvr_jax.evaluation.figures import said
from medvr_jax.evaluation.greedy import make_prediction
from medvr_jax.evaluation.masking_figures import masking_figures
from medvr_jax.evaluation.masking_text import masking_text
from medvr_jax.evaluation.masks import CONTROLS, MASKS, Masking, masked_examples, maskings
from medvr_jax.evaluation.questions import QuestionSet
from medvr_jax.evaluation.records import make_row
from medvr_jax.evaluation.regions import overlap, pixel_boxes
from medvr_jax.evaluation.results import Row, Section, other_runs, read_rows
from medvr_jax.evaluation.row_file import RowFile
from medvr_jax.evaluation.rows import grouped, question_of
from medvr_jax.inputs.boxes import normalise_box
from medvr_jax.inputs.images import image_header
from medvr_jax.reports.pictures import small_copy
from medvr_jax.reports.progress import Progress
from medvr_jax.workdir import write_atomically

NAME, SHOWN = "masking", "masking_shown"  # of the rows' file, and of the folder of what a page shows
SHOWN_QUESTIONS = 12


def ask_masked(
    folder: Path,
    questions: Sequence[QuestionSet],
    rows: Sequence[Sequence[Row]],
    identities: Sequence[Mapping[str, Any]],
    ready: Callable[[], Answering],
) -> list[list[Row]]:
    """The rows of the masked questions of each set on process 0, none on the others; asks those that are missing.

    Args:
        rows: of each set the plain answers, on process 0.
        identities: of each set what they depend on.
        ready: makes the policy ready to be asked, where it is not yet.
    """
    told = [[[row["id"], row["boxes"], row["true_boxes"]] for row in found] for found in rows]
    found = []
    for number, (one, boxes) in enumerate(zip(questions, distributed.gather_json(told)[0], strict=True)):
        places = one.places()
        tasks = [task for name, looked, true in boxes for task in maskings(places[name], name, looked, true)]
        file = None
        with distributed.together():
            if distributed.is_main():
                identity = {**identities[number], "masks": MASKS, "answers": _digest(rows[number])}
                file = RowFile(folder / one.name, [(task.id, task.mask) for task in tasks], identity, NAME, "mask")
                file.tell()
        try:
            done = set(map(tuple, distributed.gather_json(sorted(file.done) if file else [])[0]))
            if len(done) < len(tasks):
                plain = {row["id"]: row for row in rows[number]} if file else {}
                _ask(ready(), number, one, tasks, done, file, plain)
            if file:
                found.append(file.finish())
        finally:
            if file:
                file.close()
    return found


def _digest(rows: Sequence[Row]) -> str:
    """Of what the masks, and whether an answer changed, depend on."""
    told = [[row["id"], row["boxes"], row["true_boxes"], row["prediction"]] for row in rows]
    return hashlib.blake2s(json.dumps(told).encode()).hexdigest()


def _ask(
    ready: Answering,
    number: int,
    questions: QuestionSet,
    tasks: Sequence[Masking],
    done: set[tuple[str, str]],
    file: RowFile | None,
    plain: Mapping[str, Row],
) -> None:
    """Asks the batches of which something is missing, the largest questions first; process 0 writes all rows."""
    parts, size = ready.parts, ready.parts.config.data.evaluation_batch
    order = {int(index): rank for rank, index in enumerate(_counted(ready.plans[number]))}
    tasks = sorted(tasks, key=lambda task: order[task.index])
    batches = make_batches(range(len(tasks)), size)
    keys = [[(tasks[i].id, tasks[i].mask) for i in batch.indices[: batch.counted]] for batch in batches]
    ahead = [batch for batch, of_batch in zip(batches, keys, strict=True) if not done.issuperset(of_batch)]
    count = len(tasks) - sum(batch.counted for batch in ahead)
    masked, key = masked_examples(questions.examples, tasks), jax.random.key(parts.config.seed)
    answers = answer(ready.engine, ready.params, parts.encoder, masked, ahead, parts.rows(size), key)
    with Progress(len(tasks), count, f"mask {questions.name}") as progress:
        for batch, found in zip(ahead, answers, strict=True):
            told = [[one.index, _row(questions.name, tasks[one.index], one)] for one in found]
            told = sorted((pair for part in distributed.gather_json(told) for pair in part), key=lambda pair: pair[0])
            count += batch.counted
            changed = []
            if file is not None:
                rows = [_compared(row, plain[row["id"]]) for _, row in told]
                file.append(rows)
                changed = [row["changed"] for row in rows if row["mask"] in CONTROLS]
            progress.update(count, f"changed {np.mean(changed):.2f}" if changed else "")


def _counted(plan: Sequence[Batch]) -> np.ndarray:
    return np.concatenate([batch.indices[: batch.counted] for batch in plan])


def _row(name: str, task: Masking, answered: Answer) -> Row:
    image = answered.example.images[0]
    size, prediction = image_header(image).size, make_prediction(answered)
    more = {
        "mask": task.mask,
        "region": [list(normalise_box(box, size)) for box in image.regions],
        "overlaps": task.mask not in CONTROLS and overlap(image.regions, pixel_boxes(task.boxes, size)),
        "correct": prediction.correct,
        "called": prediction.called,
        "boxes": prediction.boxes,
        "ended": prediction.ended,
    }
    return make_row(name, answered.example, answered.sample, answered.trajectory.texts[-1], more)


def _compared(row: Row, plain: Row) -> Row:
    """A masked question's row, with the answer to the plain one and whether the two amount to the same."""
    changed = said(row) != said(plain)
    return row | {"before": plain["prediction"], "correct_before": plain["correct"], "changed": changed}


# ------------------------------------------------------------------------------------------------ what is made of them


def masking_section(
    folder: Path,
    questions: Sequence[QuestionSet],
    rows: Sequence[Sequence[Row]],
    masked: Sequence[Sequence[Row]] | None,
    compare_with: Sequence[str],
    policy: str,
) -> Section | None:
    """Figures and text of the masking test; writes its rows, and what a page shows of them, into the folder.

    None where the test was not asked for: then no figures of an earlier one stay; the sets keep their rows.
    """
    file = folder / f"{NAME}.jsonl"
    shutil.rmtree(folder / SHOWN, ignore_errors=True)
    if masked is None:
        file.unlink(missing_ok=True)
        return None
    everything = [row for found in masked for row in found]
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in everything))
    _write_shown(folder / SHOWN, questions, rows, masked)
    others = {}
    for title, other in other_runs(compare_with, policy).items():
        if other.with_name(file.name).is_file():
            others[title] = read_rows(other.with_name(file.name))
        else:
            print(f"evaluate.compare_with: {title} has no masking test; it is compared in all else")
    figures = masking_figures([row for found in rows for row in found], everything, others)
    return Section(NAME, figures, masking_text(figures, policy))


def _write_shown(
    folder: Path, questions: Sequence[QuestionSet], rows: Sequence[Sequence[Row]], masked: Sequence[Sequence[Row]]
) -> None:
    """Some questions with their images, masks and answers: half of them changed, where there are as many."""
    plain = {question_of(row): row for found in rows for row in found}
    groups = [(one, group) for one, found in zip(questions, masked, strict=True)
              for group in grouped(found, question_of).values()]  # fmt: skip
    changed = [any(row["changed"] for row in group if row["mask"] in CONTROLS) for _, group in groups]
    chosen = _half_of_each(changed, SHOWN_QUESTIONS)
    if not chosen:
        return
    folder.mkdir(parents=True)
    shown = []
    for number, place in enumerate(chosen):
        one, group = groups[place]
        row = plain[question_of(group[0])]
        example = one.examples[one.places()[row["id"]]]
        (folder / f"{number}.jpg").write_bytes(small_copy(example.images[0], row["id"])[0])
        entry = {"set": one.name, "id": row["id"], "image": f"{number}.jpg", "question": example.question}
        entry |= {name: row[name] for name in ("options", "answer", "prediction", "correct", "true_boxes")}
        names = ("mask", "region", "prediction", "correct", "changed")
        shown.append(entry | {"masks": [{name: masked_row[name] for name in names} for masked_row in group]})
    write_atomically(folder / "shown.json", json.dumps(shown, indent=1, ensure_ascii=False) + "\n")


def _half_of_each(flags: Sequence[bool], most: int) -> list[int]:
    """Places of at most so many, the first ones of either kind, as many of both as there are."""
    places = [[place for place, flag in enumerate(flags) if flag is kind] for kind in (True, False)]
    share = [
        min(len(of_kind), max(most // 2, most - len(other)))
        for of_kind, other in zip(places, places[::-1], strict=True)
    ]
    return sorted(place for of_kind, count in zip(places, share, strict=True) for place in of_kind[:count])
