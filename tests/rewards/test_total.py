"""The gated sum under every tool mode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvr_jax.rewards.total import TOOL_MODES, tool_reward_by_mode, total_reward

HERE, THERE = [0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 0.9, 0.9]
# One group of five: two agree and are right, one is right elsewhere, one is right without a zoom, one is wrong.
BOXES = jnp.array([[[HERE], [HERE], [THERE], [HERE], [HERE]]], jnp.float32)
VALID = jnp.array([[[True], [True], [True], [False], [True]]])
CORRECT = jnp.array([[True, True, True, True, False]])
EXPECTED = {
    "none": [0, 0, 0, 0, 0],
    "unconditional": [1, 1, 1, 0, 1],
    "conditional": [1, 1, 1, 0, 0],
    "consensus": [0.5, 0.5, 0.5, 0, 0],  # two of four is no strict majority
}


@pytest.mark.parametrize("mode", TOOL_MODES)
def test_tool_modes(mode: str) -> None:
    result = jax.jit(tool_reward_by_mode, static_argnums=0)(mode, BOXES, VALID, VALID.any(-1), CORRECT)
    np.testing.assert_array_equal(result.reward[0], EXPECTED[mode])
    total = total_reward(CORRECT.astype(float), jnp.zeros((1, 5)), result.reward, tool_mode=mode)
    np.testing.assert_array_equal(total[0], np.add(EXPECTED[mode], [1, 1, 1, 1, 0]))


def test_weights_and_gate() -> None:
    accuracy, form, tool = jnp.array([[1.0, 0.0]]), jnp.array([[-0.2, -0.2]]), jnp.array([[1.0, 1.0]])
    weights = {"accuracy_weight": 0.8, "format_weight": 0.5, "tool_weight": 1.2}
    total = total_reward(accuracy, form, tool, **weights)
    np.testing.assert_allclose(total[0], [0.8 - 0.1 + 1.2, -0.1], rtol=1e-6)
    ungated = total_reward(accuracy, form, tool, tool_mode="unconditional", **weights)
    np.testing.assert_allclose(ungated[0], [0.8 - 0.1 + 1.2, -0.1 + 1.2], rtol=1e-6)


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="tool_mode"):
        tool_reward_by_mode("lucky", BOXES, VALID, VALID.any(-1), CORRECT)
    with pytest.raises(ValueError, match="tool_mode"):
        total_reward(CORRECT, CORRECT, CORRECT, tool_mode="lucky")
