"""The reward of a trajectory: R = R_acc + R_format + 1[R_acc > 0] R_tool, each term with a weight.

`tool_mode` names what a look with a tool is worth, a look being a call that an image came back for:
  none            nothing;
  unconditional   `high` for a look whether the answer is right or not (not gated either);
  conditional     `high` for a look of a correct trajectory;
  consensus       CCA, see `consensus.py`: only looks at a region count, as only regions can agree.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvr_jax.rewards.consensus import ConsensusResult, tool_reward

TOOL_MODES = ("none", "unconditional", "conditional", "consensus")


def tool_reward_by_mode(
    tool_mode: str,
    boxes: jax.Array,
    valid: jax.Array,
    looked: jax.Array,
    correct: jax.Array,
    *,
    eta: float = 0.5,
    high: float = 1.0,
    low: float = 0.5,
    resolution: int = 64,
    maximum_popularity: float = 1.0,
) -> ConsensusResult:
    """R_tool under a mode: boxes [B, M, Z, 4], valid [B, M, Z], looked and correct [B, M] bool.

    The consensus and the overlaps are computed in every mode, so that runs can be compared; only the reward differs.
    What the numbers are: see `consensus.tool_reward`.
    """
    if tool_mode not in TOOL_MODES:
        raise ValueError(f"tool_mode is {tool_mode!r}, allowed are {', '.join(TOOL_MODES)}")
    result = tool_reward(
        boxes,
        valid,
        correct,
        eta=eta,
        high=high,
        low=low,
        resolution=resolution,
        maximum_popularity=maximum_popularity,
    )
    if tool_mode == "consensus":
        return result
    looked, correct = looked.astype(bool), correct.astype(bool)
    paid = {"none": jnp.zeros_like(looked), "unconditional": looked, "conditional": looked & correct}
    return result._replace(reward=jnp.where(paid[tool_mode], high, 0.0).astype(jnp.float32))


def total_reward(
    accuracy: jax.Array,
    format: jax.Array,
    tool: jax.Array,
    *,
    accuracy_weight: float = 1.0,
    format_weight: float = 1.0,
    tool_weight: float = 1.0,
    tool_mode: str = "consensus",
) -> jax.Array:
    """The weighted, gated sum: three arrays [B, M] -> [B, M] float32."""
    if tool_mode not in TOOL_MODES:
        raise ValueError(f"tool_mode is {tool_mode!r}, allowed are {', '.join(TOOL_MODES)}")
    earned = tool if tool_mode == "unconditional" else jnp.where(accuracy > 0, tool, 0.0)
    total = accuracy_weight * accuracy + format_weight * format + tool_weight * earned
    return jnp.asarray(total, jnp.float32)
