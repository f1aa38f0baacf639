"""Masks' regions against enumeration: every place of a small image, pixel by pixel."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from medvr_jax.evaluation.masks import CONTROLS, MASKS, maskings
from medvr_jax.evaluation.regions import elsewhere, generator_of, overlap, pixel_boxes

Region = tuple[tuple[int, int, int, int], ...]


def shared_at_every_place(boxes: Region, size: tuple[int, int]) -> dict[Region, int]:
    """Every place of the boxes inside the image: pixels that they share with the boxes themselves, box by box."""
    width, height = size
    found = {}
    for dx in range(-min(b[0] for b in boxes), width - max(b[2] for b in boxes) + 1):
        for dy in range(-min(b[1] for b in boxes), height - max(b[3] for b in boxes) + 1):
            moved = tuple((a + dx, b + dy, c + dx, d + dy) for a, b, c, d in boxes)
            found[moved] = sum(int((paint([one], size) & paint([two], size)).sum()) for one in moved for two in boxes)
    return found


def paint(boxes: Region | list, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((size[1], size[0]), bool)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = True
    return mask


FREE: dict[str, tuple[Region, tuple[int, int]]] = {
    "one box": (((3, 2, 6, 4),), (12, 9)),
    "at a corner": (((0, 0, 4, 4),), (11, 10)),
    "one place left": (((0, 0, 3, 3),), (6, 3)),
    "two boxes": (((1, 1, 3, 3), (5, 4, 7, 5)), (13, 9)),
    "two that overlap": (((1, 1, 5, 4), (3, 2, 6, 6)), (14, 12)),
    "between each other": (((0, 0, 2, 2), (4, 0, 6, 2)), (8, 2)),
}


@pytest.mark.parametrize(("boxes", "size"), FREE.values(), ids=FREE)
def test_every_free_place_is_as_likely(boxes: Region, size: tuple[int, int]) -> None:
    free = [place for place, shared in shared_at_every_place(boxes, size).items() if not shared]
    generator = np.random.default_rng(0)
    drawn = Counter(elsewhere(boxes, size, generator) for _ in range(40 * len(free)))
    assert set(drawn) <= set(free) and not any(overlap(place, boxes) for place in drawn)
    counts = [drawn[place] for place in free]
    assert len(free) == 1 or stats.chisquare(counts).pvalue > 1e-3


CROWDED: dict[str, tuple[Region, tuple[int, int]]] = {
    "in the middle": (((2, 2, 8, 7),), (10, 9)),
    "off the middle": (((1, 2, 8, 7),), (10, 9)),
    "all of it": (((0, 0, 6, 5),), (6, 5)),
    "two boxes": (((0, 1, 5, 4), (4, 2, 8, 7)), (9, 8)),
    "two apart": (((0, 0, 4, 6), (6, 1, 9, 6)), (10, 7)),
}


@pytest.mark.parametrize(("boxes", "size"), CROWDED.values(), ids=CROWDED)
def test_where_no_place_is_free_it_overlaps_least(boxes: Region, size: tuple[int, int]) -> None:
    places = shared_at_every_place(boxes, size)
    least = min(places.values())
    assert least > 0
    drawn = {elsewhere(boxes, size, np.random.default_rng(seed)) for seed in range(40)}
    assert {places[place] for place in drawn} == {least}


def test_pixels_that_boxes_touch() -> None:
    size = (30, 20)
    assert pixel_boxes([(0.1, 0.1, 0.5, 0.45)], size) == ((3, 2, 15, 9),)
    assert pixel_boxes([(0.11, 0.11, 0.49, 0.46)], size) == ((3, 2, 15, 10),)
    assert pixel_boxes([(-0.2, 0.5, 1.3, 0.5)], size) == ((0, 10, 30, 11),)
    assert pixel_boxes([(1.0, 1.0, 1.2, 1.2)], size) == ((29, 19, 30, 20),)
    assert pixel_boxes([(0, 0, 1, 1), (0.0, 0.0, 1.0, 1.0)], size) == ((0, 0, 30, 20),)
    for box in np.random.default_rng(0).integers(0, 97, (200, 2)).tolist():  # whole pixels survive being normalised
        x, y = box
        assert pixel_boxes([(x / 100, y / 97, (x + 3) / 100, min(y + 1, 97) / 97)], (100, 97)) == (
            (x, min(y, 96), x + 3, min(y + 1, 97)),
        )


def test_masks_of_a_question() -> None:
    looked, true = [[0.1, 0.1, 0.3, 0.3], [0.2, 0.2, 0.4, 0.4]], [[0.5, 0.5, 0.6, 0.6]]
    tasks = {task.mask: task for task in maskings(3, "q", looked, true)}
    assert tuple(tasks) == MASKS and {task.index for task in tasks.values()} == {3}
    size = (50, 40)
    assert tasks["zoomed"].region(size) == pixel_boxes(looked, size)
    assert tasks["lesion"].region(size) == pixel_boxes(true, size)
    for mask, control in CONTROLS.items():
        shapes = [{(c - a, d - b) for a, b, c, d in tasks[name].region(size)} for name in (mask, control)]
        assert shapes[0] == shapes[1] and tasks[control].region(size) == tasks[control].region(size)
        assert not overlap(tasks[mask].region(size), tasks[control].region(size))
    # Where the lesion's control lies depends on the question and the lesion alone, not on what a policy looked at.
    other = {task.mask: task for task in maskings(0, "q", [[0, 0, 1, 1]], true)}
    assert other["random_lesion"].region(size) == tasks["random_lesion"].region(size)
    elsewhere_ = {maskings(0, f"q{n}", [], true)[1].region(size) for n in range(20)}
    assert len(elsewhere_) > 10
    assert [task.mask for task in maskings(0, "q", [], true)] == ["lesion", "random_lesion"]
    assert [task.mask for task in maskings(0, "q", looked, [])] == ["zoomed", "random"]
    assert maskings(0, "q", [], []) == []


def test_random_numbers_of_names() -> None:
    first = generator_of("random", "q1").integers(1 << 60)
    assert first == generator_of("random", "q1").integers(1 << 60)
    assert len({int(generator_of(*names).integers(1 << 60)) for names in (("a", "b"), ("b", "a"), ("a", "c"))}) == 3
