"""Is the output well formed? Every turn thinks, then either calls the tool once or, in the last turn, answers.

    <think> … </think> <tool_call> {"name": …, "arguments": {…}} </tool_call>      every turn but the last
    <think> … </think> <answer> … </answer>                                        the last turn

Nothing else but white space may stand outside the tags, and no tag inside another. Whether a call names a known tool
and a box inside the image is not a question of format: such a call gets an error observation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

_NO_TAG = r"(?:(?!</?(?:think|tool_call|tool_response|answer)>|<\|).)*"
_TURN = re.compile(
    rf"\s*<think>{_NO_TAG}</think>\s*<(?P<action>tool_call|answer)>(?P<body>{_NO_TAG})</(?P=action)>\s*", re.DOTALL
)
_END_OF_TURN = re.compile(r"(?:<\|im_end\|>|<\|endoftext\|>)\s*\Z")


def strip_end_of_turn(text: str) -> str:
    """A turn's text without the one special token that may close it."""
    return _END_OF_TURN.sub("", text)


def _is_call(body: str) -> bool:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)


def is_well_formed(turns: Sequence[str]) -> bool:
    """True if `turns`, the policy's own text of each turn in order, has the form above from first to last."""
    if not turns:
        return False
    for number, text in enumerate(turns, start=1):
        found = _TURN.fullmatch(strip_end_of_turn(text))
        if found is None:
            return False
        last = number == len(turns)
        if (found["action"] == "answer") != last:
            return False
        if not (found["body"].strip() if last else _is_call(found["body"])):
            return False
    return True


def format_reward(well_formed: jax.Array, *, penalty: float = -0.2) -> jax.Array:
    """R_format of trajectories: 0 where they are well formed, bool of any shape, else `penalty`; float32."""
    return jnp.where(well_formed, 0.0, penalty).astype(jnp.float32)
