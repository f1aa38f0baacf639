"""The system prompt that tells a policy of its tools."""

from __future__ import annotations

import json
from collections.abc import Mapping

from medvr_jax.rollout.tools.protocol import Tool

_REASON = "First reason inside <think></think>."
_ANSWER = """the final answer inside <answer></answer>: only the option's letter for a multiple-choice question, a short
answer otherwise."""


def system_prompt(tools: Mapping[str, Tool]) -> str:
    """The full system prompt: the tools' JSON schemas, how to call them, and the form of an answer."""
    if not tools:
        return f"You are a careful medical assistant.\n\n{_REASON} Then give {_ANSWER}"
    schemas = "\n".join(json.dumps(tool.schema()) for tool in tools.values())
    return f"""You are a careful medical assistant who looks closely before answering.

# Tools

You may call one function per turn. The functions are described inside <tools></tools>:
<tools>
{schemas}
</tools>

To call a function, write a JSON object with its name and arguments inside <tool_call></tool_call>:
<tool_call>
{{"name": <function-name>, "arguments": <arguments-object>}}
</tool_call>

In every turn: {_REASON[0].lower()}{_REASON[1:]} Then either call a function, or give {_ANSWER}"""
