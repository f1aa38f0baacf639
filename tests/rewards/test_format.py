"""The format of a whole trajectory, turn by turn."""

from __future__ import annotations

import numpy as np
import pytest

from medvr_jax.rewards.format import format_reward, is_well_formed

CALL = '<think>look</think>\n<tool_call>\n{"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4]}}\n</tool_call>'
ANSWER = "<think>seen</think>\n<answer>B</answer>"


@pytest.mark.parametrize(
    "turns",
    [
        [ANSWER],
        [CALL, ANSWER],
        [CALL, CALL, CALL, ANSWER],
        [CALL + "<|im_end|>", ANSWER + "<|im_end|>"],
        ["<think></think><answer>B</answer>"],
        ["  <think>a\n\nb < c > d</think>\n\n<answer>left lung</answer>\n"],
    ],
)
def test_well_formed(turns: list[str]) -> None:
    assert is_well_formed(turns)


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [""],
        ["B"],
        ["<answer>B</answer>"],  # no thought
        ["<think>a</think>"],  # no action
        ["<think>a</think><answer></answer>"],
        ["<think>a</think><answer> \n</answer>"],
        ["<think>a</think><answer>B</answer> and more"],
        ["Sure. " + ANSWER],
        ["<think>a</think> so <answer>B</answer>"],
        ["<think>a</think><answer>B"],  # cut off
        ["<think>a<answer>B</answer>"],
        ["<think>a</think><think>b</think><answer>B</answer>"],
        ["<think>a</think><answer>A</answer><answer>B</answer>"],
        ["<think><answer>A</answer></think><answer>B</answer>"],
        ["<think>a</think><answer><think>b</think>B</answer>"],
        ["<think>a</think><answer>B</answer><|im_end|><|im_end|>"],
        ["<think>a<|im_end|></think><answer>B</answer>"],
        ["<answer>B</answer><think>a</think>"],
        [CALL],  # never answered
        [ANSWER, ANSWER],
        [ANSWER, CALL],
        [CALL, "no thought <answer>B</answer>"],
        [CALL + "<answer>B</answer>", ANSWER],
        [CALL + CALL.removeprefix("<think>look</think>"), ANSWER],  # two calls in a turn
        ["<think>a</think><tool_call>zoom!</tool_call>", ANSWER],
        ["<think>a</think><tool_call></tool_call>", ANSWER],
        ["<think>a</think><tool_call>[1, 2]</tool_call>", ANSWER],
        ['<think>a</think><tool_call>{"name": "zoom"}</tool_call>', ANSWER],
        ['<think>a</think><tool_call>{"name": "zoom", "arguments": {}</tool_call>', ANSWER],
        ["<think>a</think><tool_call>" + "[" * 100_000 + "</tool_call>", ANSWER],
        ["<tool_response>x</tool_response>" + ANSWER],
        ["<THINK>a</THINK><ANSWER>B</ANSWER>"],
    ],
)
def test_malformed(turns: list[str]) -> None:
    assert not is_well_formed(turns)


def test_only_malformed_output_pays() -> None:
    well_formed = np.array([[is_well_formed([ANSWER]), is_well_formed([])]])
    np.testing.assert_allclose(format_reward(well_formed), [[0.0, -0.2]])
    np.testing.assert_allclose(format_reward(well_formed, penalty=-1.0), [[0.0, -1.0]])
