"""The warm-up's data: what it teaches, and above all what it does not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from configs import tiny_warmup
from medvr_jax.datasets.synthetic import SyntheticTask
from medvr_jax.evaluation.grounding import any_hit
from medvr_jax.inputs.boxes import normalise_box
from medvr_jax.inputs.chat import load_encoder
from medvr_jax.rollout.tools import parse_tool_call
from medvr_jax.training.tiny_folder import TINY_ZOOM_SYSTEM
from medvr_jax.training.warmup_boxes import BoxRowMaker, Lattice
from medvr_jax.training.warmup_data import Row

TINY = "medvr_jax/assets/tiny"


@pytest.fixture(scope="module")
def maker() -> BoxRowMaker:
    settings = tiny_warmup.get_config().warmup
    encoder = load_encoder(TINY, TINY_ZOOM_SYSTEM, prompt_patches=64, crop_patches=64)
    return BoxRowMaker(
        encoder,
        Lattice(112, settings.box_side, settings.box_step),
        answer_weight=settings.answer_weight,
        random_box_weight=settings.random_box_weight,
    )


def box_of(maker: BoxRowMaker, row: Row) -> tuple[tuple[float, ...], np.ndarray]:
    """The box in a row's call and the weights of its digits."""
    texts = [maker.encoder.tokenizer.decode([t]) for t in row.tokens.tolist()]
    first = next(i for i, text in enumerate(texts) if text.endswith("[")) + 1
    last = next(i for i in range(first, len(texts)) if "]" in texts[i])
    call = parse_tool_call("".join(texts[: last + 3]))
    assert call is not None and call.error is None
    return tuple(call.arguments["bbox_2d"]), row.weights[first:last]


def test_trained_boxes_for_lesions_know_nothing_of_the_lesion(maker: BoxRowMaker) -> None:
    """Each of the 36 boxes as often, whatever the image; boxes that are on the lesion carry no weight."""
    rng, task = np.random.default_rng(0), SyntheticTask()
    boxes, hits, chance = Counter(), 0, 0.0
    for index in range(60):
        prompt = maker.prompt(task.example("warmup", index))
        true = prompt.example.boxes
        chance += np.mean([any_hit([normalise_box(b, (112, 112))], true) for b in maker.lattice.boxes]) * 10
        for _ in range(10):
            box, weights = box_of(maker, maker.zoom(prompt, rng, on_lesion=False))
            assert (weights > 0).all()
            boxes[box] += 1
            hits += any_hit([normalise_box(box, (112, 112))], true)
        box, weights = box_of(maker, maker.zoom(prompt, rng, on_lesion=True))
        assert any_hit([normalise_box(box, (112, 112))], true) and not weights.any()
    assert len(boxes) == 36
    assert abs(hits - chance) < 4 * np.sqrt(chance)


def test_markers_are_pointed_at_and_are_no_lesions(maker: BoxRowMaker) -> None:
    rng, task = np.random.default_rng(0), SyntheticTask()
    for index in range(20):
        example = task.marker_example("warmup", index)
        assert "lesion" not in example.question
        box, weights = box_of(maker, maker.point(maker.prompt(example), rng, 2.0))
        assert any_hit([normalise_box(box, (112, 112))], example.boxes) and (weights == 2.0).all()
        # A plain square: one grey level, where a lesion would have stripes.
        scene = task.scene("warmup", index, marker=True)
        x1, y1, x2, y2 = scene.box
        assert len(np.unique(scene.pixels[y1:y2, x1:x2])) == 1


def test_an_observation_is_never_trained(maker: BoxRowMaker) -> None:
    rng, task = np.random.default_rng(0), SyntheticTask()
    row = maker.zoom(maker.prompt(task.example("warmup", 0)), rng, on_lesion=True)
    assert row.image is not None and not row.weights[row.feature_index >= 0].any()
    assert row.weights[0] == 0
