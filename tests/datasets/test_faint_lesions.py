"""Lesions whose stripes are too faint for the overview: what eight bits show of them, and what windows do."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from configs import base, variants
from medvr_jax.datasets.synthetic import FAINT_LEVELS, Scene, SyntheticTask
from medvr_jax.inputs.images import load_original
from medvr_jax.rollout.tools.window import apply_window


@pytest.fixture(scope="module")
def task() -> SyntheticTask:
    config = base.get_config()
    variants.faint_lesions(config)
    return SyntheticTask(**dict(config.data.synthetic))


def inside(pixels: np.ndarray, scene: Scene) -> np.ndarray:
    """The square [side, side] within the lesion's disc."""
    x1, y1, x2, y2 = scene.box
    margin = round((x2 - x1) * 0.16)
    return pixels[y1 + margin : y2 - margin, x1 + margin : x2 - margin].astype(np.float64)


def direction(square: np.ndarray) -> int | None:
    """The class by the structure tensor of what is shown, independent of how it was drawn; None where all is alike."""
    dy, dx = np.gradient(square)
    energy = np.hypot((dx * dx).sum(), (dy * dy).sum())
    if energy == 0:
        return None
    diagonal = (dx * dy).sum() / energy
    if abs(diagonal) < 0.3:
        return 0 if (dy**2).sum() > (dx**2).sum() else 1
    return 2 if diagonal > 0 else 3


def test_only_the_right_window_shows_the_stripes(task: SyntheticTask) -> None:
    """In the overview and under every other window the lesion is one plain disc, whatever its class."""
    for index in range(24):
        scene, example = task.scene("test", index), task.example("test", index)
        original = load_original(example.images[0])
        shown = inside(np.asarray(original.shown)[..., 0], scene)
        assert direction(shown) is None and len(np.unique(shown)) == 1
        assert abs(shown[0, 0] - FAINT_LEVELS[scene.level]) <= 1
        for level, centre in enumerate(FAINT_LEVELS):
            seen = inside(apply_window(original.levels, centre - 2, centre + 2), scene)
            if level == scene.level:
                assert direction(seen) == scene.label == "ABCD".index(example.answer)
                assert np.ptp(seen) > 40  # of 255: well to be seen
            else:
                assert direction(seen) is None
                assert seen[0, 0] == (255 if level < scene.level else 0)


def test_the_overview_of_other_viewers_shows_as_little(task: SyntheticTask) -> None:
    """The values divided by 257, rounded or cut off: no grey value more than one step away, and no direction."""
    for index in range(12):
        scene, example = task.scene("test", index), task.example("test", index)
        values = np.asarray(Image.open(io.BytesIO(example.images[0])))
        assert values.dtype == np.uint16 and (values.min(), values.max()) == (0, 65_535)
        np.testing.assert_array_equal(values, scene.pixels)
        assert len(np.unique(inside(np.round(values / 257.0), scene))) == 1
        assert np.ptp(inside(values, scene)) < 257


def test_levels_and_classes_are_balanced_and_independent(task: SyntheticTask) -> None:
    scenes = [task.scene("train", index) for index in range(240)]
    counts = np.zeros((len(FAINT_LEVELS), 4))
    for scene in scenes:
        counts[scene.level, scene.label] += 1
    assert counts.min() > 2 and counts.max() < 24
    assert len({scene.box for scene in scenes}) > 200
    for scene in scenes[:20]:
        body, (x1, y1, x2, y2) = scene.pixels.copy(), scene.box
        body[y1:y2, x1:x2] = body[:16, :16] = 0
        assert body.max() < 54 * 257  # darker than every window


def test_faint_examples_have_no_place_to_zoom_to_and_names_of_their_own(task: SyntheticTask) -> None:
    example, plain = task.example("test", 3), SyntheticTask().example("test", 3)
    assert example.boxes == () and plain.boxes and example.id != plain.id
    assert task.example("test", 3) == example
