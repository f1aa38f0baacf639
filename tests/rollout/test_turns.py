"""What the host does between turns, with a tool that is no zoom."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medvr_jax.datasets.synthetic import SyntheticTask
from medvr_jax.inputs.chat import encode_observation, encode_prompt, load_encoder
from medvr_jax.inputs.images import OriginalImage, PreparedImage, load_original
from medvr_jax.rollout.state import ACTIVE, BASE, TURN_ENDED
from medvr_jax.rollout.tools import ToolResult
from medvr_jax.rollout.turns import Sampled, TurnServer
from tests.inputs.tiny import TINY

FEATURES = 16  # of a crop


class Brighten:
    """Returns the whole image, so many times as bright."""

    name = "brighten"

    def schema(self) -> dict[str, Any]:
        return {}

    def run(self, arguments: Mapping[str, Any], original: OriginalImage, prepared: PreparedImage) -> ToolResult:
        times = arguments["times"]
        return ToolResult(lambda: original.shown.point(lambda value: min(int(value * times), 255)), (self.name, times))


def test_images_differ_by_whatever_the_tool_says() -> None:
    """Rows that ask for the same share its image; those that ask otherwise do not, though neither named a box."""
    encoder = load_encoder(TINY, "Look.", prompt_patches=64, crop_patches=64)
    prompt = encode_prompt(SyntheticTask().example("test", 0), encoder)
    wanted = (2, 3, 2)
    calls = [json.dumps({"name": "brighten", "arguments": {"times": times}}) for times in wanted]
    texts = [f"<think>x</think><tool_call>{call}</tool_call><|im_end|>" for call in calls]
    rows = [[0, *encoder.tokenizer.encode(text)] for text in texts]
    tokens = np.zeros((1, 3, 300), np.int32)
    for m, row in enumerate(rows):
        tokens[0, m, : len(row)] = row
    same = np.ones((1, 3), np.int32)
    sampled = Sampled(
        tokens=tokens,
        length=np.array([[len(row) for row in rows]]),
        status=TURN_ENDED * same,
        next_position=100 * same,
        origin=BASE * same,
        parent=-same,
        fork_position=-same,
    )
    server = TurnServer(
        [prompt], 3, encoder, {Brighten.name: Brighten()}, observation_length=96, response_length=300,
        crop_features=FEATURES,
    )  # fmt: skip
    with contextlib.closing(server):
        server.read_originals()
        serving = server.serve(sampled, last_turn=False)
        assert (serving.status == ACTIVE).all()
        assert [[turn.observation for turn in t.turns] for t in server.trajectories(sampled)[0]] == [["image"]] * 3
    places = [set((row[row >= 0] // FEATURES).tolist()) for row in serving.feature_index[0]]
    assert places == [{0}, {1}, {0}]
    original = load_original(prompt.example.images[0])
    for crop, times in zip(server.crops[0], wanted[:2], strict=True):
        bright = Brighten().run({"times": times}, original, prompt.images[0])
        expected = encode_observation(encoder, 0, crop=bright.image).image
        np.testing.assert_array_equal(crop.patches, expected.patches)
    assert not np.array_equal(server.crops[0][0].patches, server.crops[0][1].patches)


def test_an_image_without_a_key_is_refused() -> None:
    for wrong in ({"draw": lambda: Image.new("RGB", (28, 28))}, {"key": 1, "error": "Error: x."}, {}):
        with pytest.raises(ValueError, match="an image with its key, or an error"):
            ToolResult(**wrong)
