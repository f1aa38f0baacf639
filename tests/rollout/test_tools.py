"""Tool calls as policies write them: good ones, broken ones, hostile ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from medvr_jax.errors import UserError
from medvr_jax.inputs.images import OriginalImage, PreparedImage
from medvr_jax.rollout.tools import ToolResult, parse_tool_call, run_tool_call, system_prompt, tools_by_name

TOOLS = tools_by_name(["image_zoom_in_tool"])
# Every pixel of the original tells where it is.
ORIGINAL = Image.fromarray(
    np.stack([*np.meshgrid(np.arange(200), np.arange(100)), np.zeros((100, 200))], -1).astype(np.uint8)
)
SEEN = PreparedImage(np.zeros((8, 1), np.float32), (1, 4, 8), resized_size=(112, 56), original_size=(200, 100))


def call(box: object, name: str = "image_zoom_in_tool") -> str:
    arguments = {"bbox_2d": box}
    return f"<think>x</think><tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call><|im_end|>"


def run(text: str) -> ToolResult:
    parsed = parse_tool_call(text)
    assert parsed is not None
    return run_tool_call(parsed, TOOLS, OriginalImage(ORIGINAL), SEEN)


def test_the_crop_comes_from_the_original() -> None:
    result = run(call([28, 14, 84, 42]))  # resized pixels; the original is 200/112 times as large
    assert result.error is None and result.image is not None and result.zoom is not None
    assert result.zoom.original == (50, 25, 150, 75)
    pixels = np.asarray(result.image)
    assert pixels.shape == (50, 100, 3)
    np.testing.assert_array_equal(pixels[0, 0], [50, 25, 0])
    np.testing.assert_array_equal(pixels[-1, -1], [149, 74, 0])
    np.testing.assert_allclose(result.zoom.normalised, [0.25, 0.25, 0.75, 0.75])
    assert result.call_box == (28, 14, 84, 42)


@pytest.mark.parametrize(
    "text",
    [
        call([84, 14, 28, 42]),  # inverted
        call([500, 500, 600, 600]),  # outside
        call([1, 2, 3]),
        call("10, 10, 20, 20"),
        call([1e308, 0, 1e309, 5]),
        call([float("nan"), 0, 5, 5]),
        call([True, False, True, True]),
        call([10, 10, 60, 40], name="rm"),
        call({"x": 1}),
        "<tool_call>{not json}</tool_call>",
        "<tool_call>[1, 2]</tool_call>",
        '<tool_call>{"name": "image_zoom_in_tool"}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
        call([10, 10, 60, 40]) + call([10, 10, 60, 40]),
    ],
)
def test_a_wrong_call_gets_a_text(text: str) -> None:
    result = run(text)
    assert result.image is None and result.zoom is None
    assert result.error is not None and result.error.startswith("Error: ") and "\n" not in result.error


def test_no_complete_call_is_no_call() -> None:
    assert parse_tool_call("<think>a</think><answer>B</answer>") is None
    assert parse_tool_call('<tool_call>{"name": "image_zoom_in_tool"') is None


def test_unknown_tools_are_refused() -> None:
    with pytest.raises(UserError, match="image_zoom_in_tool"):
        tools_by_name(["image_zoom"])


def test_the_system_prompt_holds_the_schema() -> None:
    lines = system_prompt(TOOLS).splitlines()
    schema = json.loads(lines[lines.index("<tools>") + 1])
    assert schema["function"]["name"] == "image_zoom_in_tool"
    assert "tool_call" not in system_prompt({})
