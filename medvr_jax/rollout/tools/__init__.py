"""The tools that a policy may call, and the parsing of its calls.

A tool is one object with a name, a JSON schema and `run`, in a file of its own here, and a line in `tool_registry.py`;
adding one touches neither the sampling loop nor the turn loop. Calls are JSON between `<tool_call>` and `</tool_call>`,
one per turn, as Qwen's chat models write them.
"""

from medvr_jax.rollout.tool_registry import tools_by_name
from medvr_jax.rollout.tools.calls import ToolCall, parse_tool_call, run_tool_call
from medvr_jax.rollout.tools.prompt import system_prompt
from medvr_jax.rollout.tools.protocol import Tool, ToolResult

__all__ = ["Tool", "ToolCall", "ToolResult", "parse_tool_call", "run_tool_call", "system_prompt", "tools_by_name"]
