"""From a turn's text to a call, and from a call to its result."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from medvr_jax.inputs.images import OriginalImage, PreparedImage
from medvr_jax.rollout.tools.protocol import Tool, ToolResult

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A parsed call: a name with its arguments, or the error that says what is wrong with it."""

    name: str = ""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None


def parse_tool_call(text: str) -> ToolCall | None:
    """The call in a turn's text; None if it holds no complete one."""
    calls = _CALL.findall(text)
    if not calls:
        return None
    if len(calls) > 1:
        return ToolCall(error="Error: one tool call per turn.")
    try:
        call = json.loads(calls[0])
    except (ValueError, RecursionError):
        return ToolCall(error="Error: the tool call is not valid JSON.")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return ToolCall(error="Error: the tool call names no tool.")
    if not isinstance(call.get("arguments"), dict):
        return ToolCall(error="Error: the tool call has no arguments.")
    return ToolCall(call["name"], call["arguments"])


def run_tool_call(
    call: ToolCall, tools: Mapping[str, Tool], original: OriginalImage, prepared: PreparedImage
) -> ToolResult:
    """Runs a parsed call; whatever is wrong with it becomes an error observation."""
    if call.error is not None:
        return ToolResult(error=call.error)
    if call.name not in tools:
        return ToolResult(error="Error: there is no such tool.")
    return tools[call.name].run(call.arguments, original, prepared)
