"""Nothing is compiled after warm-up, whatever sizes the images, the crops, the answers and the groups of a run have."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from medvr_jax import assembly, programs
from medvr_jax.datasets.synthetic import SyntheticTask
from medvr_jax.inputs import survey
from medvr_jax.rollout import settings as settings_module
from medvr_jax.training import update
from medvr_jax.training.trainer import Trainer
from tests.tiny_run import small_config

STEPS, SIDES = 50, (56, 84, 112, 140, 224, 448)


@pytest.fixture
def mixed(tmp_path: Path) -> Any:
    """The synthetic questions on images of many sizes, up to four times as many pixels as the smallest prompt has."""
    config = small_config()
    task, rng, rows = SyntheticTask(**dict(config.data.synthetic)), np.random.default_rng(0), []
    for index in range(40):
        example = task.example("train", index)
        size = tuple(int(side) for side in rng.choice(SIDES, 2))
        Image.open(io.BytesIO(example.images[0])).resize(size).save(tmp_path / f"{index}.png")
        row = {"image": f"{index}.png", "question": example.question, "answer": example.answer}
        rows.append(json.dumps(row | {"options": list(example.options)}))
    (tmp_path / "all.jsonl").write_text("\n".join(rows))
    return small_config(
        data__name="jsonl", data__train_file=tmp_path / "all.jsonl", data__test_file=tmp_path / "all.jsonl",
        data__image_folder=tmp_path, data__prompts_per_step=2, rollout__trajectories=4, steps=STEPS,
        rollout__groups_at_once=1, rollout__sizes=2,
        prompt__min_pixels=56 * 56, prompt__sizes=3, rollout__crop_min_pixels=28 * 28, grpo__kl_weight=0.0,
    )  # fmt: skip


def test_fifty_steps_compile_nothing(mixed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two lengths of caches, and two sizes of prompts, two of crops and two numbers of these; in two parts."""
    monkeypatch.setattr(survey, "STEP", 2)
    monkeypatch.setattr(settings_module, "SHORTEST_CACHE", 50)
    monkeypatch.setattr(update, "FILLS", (1.0,))
    trainer = Trainer(assembly.assemble(mixed, jax.devices()[:1]))
    ready = [program for program in trainer.programs() if not program.name.startswith("evaluate")]
    assert len({program.name for program in ready}) == len(ready)
    programs.warm_up(ready)
    warm = programs.compilations().count
    patches, prompts, crops, caches = set(), set(), set(), set()
    for step in range(STEPS):
        outcome = trainer.step(step)
        assert programs.compilations().count == warm, f"step {step} compiled something"
        patches |= {len(image.patches) for prompt in outcome.rollout.prompts for image in prompt.images}
        crops |= set(outcome.rollout.calls.crops)
        caches |= {slots for _, _, slots in outcome.rollout.calls.decode}
        prompts.add((outcome.passed.prompt, outcome.passed.images))
    trainer.prompts.close()
    # The run has seen different shapes indeed.
    found = patches, prompts, crops, caches
    assert len(patches) > 4 and all(len(shapes) > 1 for shapes in found[1:]), found
