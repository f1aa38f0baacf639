"""What the warm-up with windows teaches, and above all what it does not: which window is right."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from configs import tiny_warmup
from medvr_jax.datasets.synthetic import CLASSES, FAINT_LEVELS, SyntheticTask
from medvr_jax.inputs.chat import encode_observation, load_encoder
from medvr_jax.inputs.images import load_original
from medvr_jax.rollout.tools import parse_tool_call, run_tool_call, tools_by_name
from medvr_jax.training.tiny_folder import TINY_WINDOW_SYSTEM
from medvr_jax.training.warmup_data import Row
from medvr_jax.training.warmup_window import WindowRowMaker

FOLDER = "medvr_jax/assets/tiny_window"
NAMES = ("answer_weight", "naming_weight", "random_window_weight")


@pytest.fixture(scope="module")
def maker() -> WindowRowMaker:
    settings = tiny_warmup.get_config("window").warmup
    encoder = load_encoder(FOLDER, TINY_WINDOW_SYSTEM, prompt_patches=64, crop_patches=64)
    return WindowRowMaker(encoder, settings.window_width, **{name: settings[name] for name in NAMES})


@pytest.fixture(scope="module")
def task() -> SyntheticTask:
    return SyntheticTask(**dict(tiny_warmup.get_config("window").data.synthetic))


def turns_of(maker: WindowRowMaker, row: Row) -> tuple[list[str], list[str], np.ndarray]:
    """Each token's text before the observation and after it, and the weights of the former."""
    seen = np.flatnonzero(row.feature_index >= 0)
    texts = [maker.encoder.tokenizer.decode([token]) for token in row.tokens.tolist()]
    end = texts.index("<|im_end|>", 1) + 1
    return texts[1:end], texts[seen[-1] + 1 :], row.weights[1:end]


def test_windows_are_drawn_whatever_the_lesion(maker: WindowRowMaker, task: SyntheticTask) -> None:
    """Each of the six as often for every level."""
    rng, counts = np.random.default_rng(0), np.zeros((len(FAINT_LEVELS), len(FAINT_LEVELS)))
    for index in range(24):
        prompt, level = maker.prompt(task.example("warmup", index)), task.scene("warmup", index).level
        for _ in range(20):
            texts, _, weights = turns_of(maker, maker.window(prompt, level, rng, on_lesion=False))
            call = parse_tool_call("".join(texts))
            counts[level, maker.windows.index(tuple(call.arguments["window"]))] += 1
            first = next(i for i, text in enumerate(texts) if text.endswith("[")) + 1
            last = next(i for i in range(first, len(texts)) if "]" in texts[i])
            assert (weights[first:last] == np.float32(0.6)).all() and (
                np.delete(weights, range(first, last)) >= 1
            ).all()
    shares = counts / counts.sum(axis=1, keepdims=True)
    deviation = np.sqrt(5 / 36 / counts.sum(axis=1, keepdims=True))
    assert (counts.sum(axis=1) >= 20).sum() >= 5  # of the six levels
    assert (np.abs(shares - 1 / 6) < 4 * deviation)[counts.sum(axis=1) > 0].all()


def test_the_window_that_shows_the_lesion_is_no_target(maker: WindowRowMaker, task: SyntheticTask) -> None:
    """Its call carries no loss; the reading of what it shows does, and that is what the tool makes."""
    rng, words = np.random.default_rng(0), Counter()
    tools = tools_by_name(["image_window_tool"])
    for index in range(12):
        example, scene = task.example("warmup", index), task.scene("warmup", index)
        prompt = maker.prompt(example)
        row = maker.window(prompt, scene.level, rng, on_lesion=True)
        texts, after, weights = turns_of(maker, row)
        assert not weights.any() and not row.weights[row.feature_index >= 0].any()
        call = parse_tool_call("".join(texts))
        low, high = call.arguments["window"]
        assert low < FAINT_LEVELS[scene.level] < high
        result = run_tool_call(call, tools, load_original(example.images[0]), prompt.images[0])
        seen = encode_observation(maker.encoder, 0, crop=result.image).image
        np.testing.assert_array_equal(row.image.patches, seen.patches)
        answer = "".join(after)
        assert CLASSES[scene.label] in answer and f"<answer>{example.answer}</answer>" in answer
        words["".join(texts).split("</think>")[0].split()[-1], scene.level] += 1
    assert len({word for word, _ in words}) == len({level for _, level in words}) == len(words)  # one word for each


def test_only_squares_are_pointed_at(maker: WindowRowMaker, task: SyntheticTask) -> None:
    """The window of a square is around its one grey value; there are no stripes in it, and nobody calls it a lesion."""
    for index in range(12):
        example, scene = task.marker_example("warmup", index), task.scene("warmup", index, marker=True)
        assert "lesion" not in example.question
        row = maker.point(maker.prompt(example), scene.level, 2.0)
        assert row.image is None
        texts = [maker.encoder.tokenizer.decode([token]) for token in row.tokens[1:].tolist()]
        low, high = parse_tool_call("".join(texts)).arguments["window"]
        x1, y1, x2, y2 = scene.box
        values = scene.pixels[y1:y2, x1:x2] / 257.0
        assert np.ptp(values) == 0 and low < values[0, 0] < high
