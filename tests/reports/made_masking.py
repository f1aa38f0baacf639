"""The masking test of a made-up policy, as an evaluation leaves it in a run's folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from medvr_jax.evaluation.figures import said
from medvr_jax.evaluation.masking import masking_section
from medvr_jax.evaluation.masks import CONTROLS, MASKS, Masking
from medvr_jax.evaluation.questions import question_set
from medvr_jax.evaluation.records import make_row
from medvr_jax.inputs.boxes import normalise_box
from tests.evaluation.looking_policy import SIDE, example, letter, square


def make_masking(workdir: Path, count: int = 20, texts: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Writes evaluation/ with the masking test of a policy that every other question looks; the masked rows.

    texts: fields of all examples that are to be otherwise.
    """
    examples = [dataclasses.replace(example(index), **(texts or {})) for index in range(count)]
    plain, masked = [], []
    for index, one in enumerate(examples):
        box = normalise_box(square(index), (SIDE, SIDE))
        plain.append(_row(one, letter(index), letter(index), boxes=[box], true_boxes=[box]))
        for mask in MASKS:
            changed = mask in CONTROLS and index % 2 == 0
            answer = "ABCD"["BCDA".index(letter(index))] if changed else letter(index)
            region = Masking(index, one.id, mask, [box]).region((SIDE, SIDE))
            row = _row(one, answer, letter(index), mask=mask, overlaps=False, before=letter(index), correct_before=True)
            row["region"] = [list(normalise_box(found, (SIDE, SIDE))) for found in region]
            masked.append(row | {"changed": said(row) != letter(index)})
    folder = workdir / "evaluation"
    folder.mkdir(parents=True)
    section = masking_section(folder, [question_set("made", examples)], [plain], [masked], (), "step 12")
    assert section is not None
    (folder / "results.json").write_text(json.dumps({"policy": "step 12", "masking": section.figures}))
    return masked


def _row(one: Any, answer: str, right: str, **more: Any) -> dict[str, Any]:
    return make_row("made", one, 0, f"<answer>{answer}</answer>", {"correct": answer == right} | more)
