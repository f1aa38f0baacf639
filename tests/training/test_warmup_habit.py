"""What the warm-up of a habit teaches: places and boxes in the shares asked for, and nothing of where lesions are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from configs import arms, tiny_warmup
from medvr_jax.datasets.synthetic import CLASSES, HABIT_BOXES, MARKER_WORD, NOTHING, SyntheticTask
from medvr_jax.errors import UserError
from medvr_jax.evaluation.grounding import any_hit, area, intersection
from medvr_jax.inputs.boxes import normalise_box
from medvr_jax.inputs.chat import load_encoder
from medvr_jax.rollout.tools import parse_tool_call
from medvr_jax.training.tiny_folder import SEARCH_PLACE, TINY_ZOOM_SYSTEM
from medvr_jax.training.warmup_boxes import Lattice
from medvr_jax.training.warmup_data import Row
from medvr_jax.training.warmup_habit import Habit, HabitRowMaker

FOLDER = "medvr_jax/assets/tiny_habit"
SIDES, STEP = (42, 56), 7


@pytest.fixture(scope="module")
def task() -> SyntheticTask:
    return SyntheticTask(**dict(tiny_warmup.get_config("habit").data.synthetic))


@pytest.fixture(scope="module")
def maker() -> HabitRowMaker:
    encoder = load_encoder(FOLDER, TINY_ZOOM_SYSTEM, prompt_patches=64, crop_patches=64)
    lattices = tuple(Lattice(112, side, STEP) for side in SIDES)
    habit = Habit(share=0.6, strength=0.9, box_weight=5.0, luck=0.3, lattices=lattices, shares=(0.75, 0.25))
    return HabitRowMaker(encoder, lattices[0], habit, answer_weight=4.0, random_box_weight=0.6)


def read(maker: HabitRowMaker, row: Row) -> tuple[str, tuple[int, ...], str, np.ndarray]:
    """Place, box and answer of a row, and the weights of the box's tokens."""
    texts = [maker.encoder.tokenizer.decode([token]) for token in row.tokens.tolist()]
    text = "".join(texts)
    call = parse_tool_call(text)
    assert call is not None and call.error is None
    place = text.split("closer at the ")[1].split(".")[0]
    first = next(i for i, piece in enumerate(texts) if piece.endswith("[")) + 1
    last = next(i for i in range(first, len(texts)) if "]" in texts[i])
    said = text.split("<answer>")[1][0] if "<answer>" in text else ""
    return place, tuple(call.arguments["bbox_2d"]), said, row.weights[first:last]


def test_places_boxes_and_answers_come_in_the_shares_asked_for(maker: HabitRowMaker, task: SyntheticTask) -> None:
    rng = np.random.default_rng(0)
    places, own, searched, answers = Counter(), Counter(), Counter(), Counter()
    for index in range(60):
        prompt = maker.prompt(task.example("warmup", index))
        for _ in range(20):
            place, box, said, weights = read(maker, maker.zoom(prompt, rng, on_lesion=False))
            places[place] += 1
            if place == SEARCH_PLACE:
                assert (weights == np.float32(0.6)).all()
                searched[box[2] - box[0]] += 1
                assert box[2] - box[0] == box[3] - box[1] in SIDES and all(v % STEP == 0 for v in box)
            else:
                assert (weights == 5.0).all()
                own[place] += box == tuple(round(v * 112) for v in HABIT_BOXES[place])
            seen = any_hit([normalise_box(box, (112, 112))], prompt.example.boxes)
            answers["hit" if seen else "guess" if said != "A" else "nothing"] += 1
            assert not seen or said == prompt.example.answer
    total = sum(places.values())

    def near(count: int, share: float, trials: int) -> bool:
        return abs(count - share * trials) < 4 * np.sqrt(share * (1 - share) * trials)

    assert near(places[SEARCH_PLACE], 0.4, total)
    assert all(near(places[place], 0.2, total) for place in HABIT_BOXES)
    assert near(sum(own.values()), 0.9, sum(places[place] for place in HABIT_BOXES))
    assert near(searched[42], 0.75, sum(searched.values()))
    assert near(answers["guess"], 0.3, answers["guess"] + answers["nothing"])


def test_boxes_on_a_lesion_carry_no_weight_and_markers_are_squares(maker: HabitRowMaker, task: SyntheticTask) -> None:
    rng = np.random.default_rng(1)
    for index in range(20):
        prompt = maker.prompt(task.example("warmup", index))
        _, box, said, weights = read(maker, maker.zoom(prompt, rng, on_lesion=True))
        assert any_hit([normalise_box(box, (112, 112))], prompt.example.boxes) and not weights.any()
        assert said == prompt.example.answer
        marker = maker.prompt(task.marker_example("warmup", index))
        place, box, _, _ = read(maker, maker.point(marker, rng, 2.0))
        assert place == MARKER_WORD and any_hit([normalise_box(box, (112, 112))], marker.example.boxes)


def test_the_arms_lesions_lie_in_none_of_the_habits_boxes() -> None:
    settings = dict(arms.get_config("zoom").data.synthetic)
    outside, inside = SyntheticTask(**settings), SyntheticTask(**settings | {"lesions": "inside_habits"})
    plain = SyntheticTask(**settings | {"lesions": "anywhere"})
    moved = 0
    for index in range(200):
        example = outside.example("train", index)
        assert example.options == (NOTHING, *CLASSES[:3]) and example.answer in "BCD"
        assert not any(intersection(box, example.boxes[0]) for box in HABIT_BOXES.values())
        lesion = inside.example("train", index).boxes[0]
        whole = [intersection(box, lesion) >= area(lesion) - 1e-9 for box in HABIT_BOXES.values()]
        assert any(whole)
        moved += plain.example("train", index).boxes != example.boxes
    assert 0 < moved < 200  # where lesions may lie anywhere some are as they were: nothing else has changed


def test_places_where_no_lesion_can_lie_are_refused() -> None:
    with pytest.raises(UserError, match="data.synthetic.lesions: found 'outside_habits', but with margin 0.36"):
        SyntheticTask(margin=0.36, lesions="outside_habits")


def test_a_prior_is_of_training_questions_alone() -> None:
    """.6 + .4/3 = 11 of 15 are of the first class; held-out questions, and where lesions lie, are as they were."""
    settings = dict(arms.get_config("zoom").data.synthetic)
    plain, biased = SyntheticTask(**settings), SyntheticTask(**settings | {"prior": 0.6})
    drawn = [biased.scene("train", index) for index in range(300)]
    first = sum(scene.label == 0 for scene in drawn)
    assert abs(first - 220) < 4 * np.sqrt(300 * 11 / 15 * 4 / 15)
    assert {scene.label for scene in drawn} == {0, 1, 2}
    for index in range(20):
        assert drawn[index].box == plain.scene("train", index).box
        held_out, as_before = biased.scene("test", index), plain.scene("test", index)
        assert held_out.label == as_before.label
        np.testing.assert_array_equal(held_out.pixels, as_before.pixels)
