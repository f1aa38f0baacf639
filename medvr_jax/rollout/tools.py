"""The tools that a policy may call, and the parsing of its calls.

A tool is one object with a name, a JSON schema and `run`; adding one touches neither the sampling loop nor the turn
loop. Calls are JSON between `<tool_call>` and `</tool_call>`, one per turn, as Qwen's chat models write them.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

from PIL import Image

from medvr_jax.errors import UserError
from medvr_jax.inputs.boxes import ZoomBox, check_zoom_box
from medvr_jax.inputs.images import PreparedImage

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class ToolResult:
    """What a call returns: an image or the text of an error, never both.

    Attributes:
        image: made from the original image.
        key: what the image depends on beside the original: where keys are equal, images are. None without an image.
        error: one sentence for the model, when there is no image.
        zoom: the box that was cut.
        call_box: the numbers the call named, in pixels of the resized image, when they were four numbers.
    """

    image: Image.Image | None = None
    key: Hashable = None
    error: str | None = None
    zoom: ZoomBox | None = None
    call_box: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.image is None) != (self.key is None) or (self.image is None) == (self.error is None):
            raise ValueError("a tool returns an image with its key, or an error")


class Tool(Protocol):
    """What the turn loop needs of a tool."""

    name: str

    def schema(self) -> dict[str, Any]:
        """The function's JSON schema as it stands in the system prompt."""

    def run(self, arguments: Mapping[str, Any], image: Image.Image, prepared: PreparedImage) -> ToolResult:
        """Runs a call on the question's first image. Never raises on what a model wrote.

        Args:
            arguments: the call's arguments as parsed JSON.
            image: the original, decoded.
            prepared: the same image as the model saw it (for the sizes).
        """


class ZoomIn:
    """`image_zoom_in_tool`: cuts `bbox_2d` (pixels of the image as the model saw it) out of the original image."""

    name = "image_zoom_in_tool"

    def schema(self) -> dict[str, Any]:
        """See `Tool.schema`."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": "Zoom in on a region of the image; the region is returned at a higher resolution.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "bbox_2d": {
                            "type": "array",
                            "items": {"type": "number"},
                            "minItems": 4,
                            "maxItems": 4,
                            "description": "The region as [x1, y1, x2, y2]: left, top, right and bottom in pixels.",
                        },
                        "label": {"type": "string", "description": "What is in the region (optional)."},
                    },
                    "required": ["bbox_2d"],
                },
            },
        }

    def run(self, arguments: Mapping[str, Any], image: Image.Image, prepared: PreparedImage) -> ToolResult:
        """See `Tool.run`."""
        box = arguments.get("bbox_2d")
        checked = check_zoom_box(box, prepared.resized_size, prepared.original_size)
        numbers = tuple(float(v) for v in box) if _four_numbers(box) else None
        if isinstance(checked, str):
            return ToolResult(error=f"Error: {checked}", call_box=numbers)
        return ToolResult(image.crop(checked.original), (self.name, checked.original), zoom=checked, call_box=numbers)


def _four_numbers(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9 for v in box)
    )


TOOLS: dict[str, Tool] = {tool.name: tool for tool in (ZoomIn(),)}


def tools_by_name(names: Sequence[str]) -> dict[str, Tool]:
    """The named tools; UserError for a name that no tool has."""
    for name in names:
        if name not in TOOLS:
            raise UserError(f"rollout.tools: {name!r} is no tool; allowed are {', '.join(TOOLS)}")
    return {name: TOOLS[name] for name in names}


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


def run_tool_call(call: ToolCall, tools: Mapping[str, Tool], image: Image.Image, prepared: PreparedImage) -> ToolResult:
    """Runs a parsed call; whatever is wrong with it becomes an error observation."""
    if call.error is not None:
        return ToolResult(error=call.error)
    if call.name not in tools:
        return ToolResult(error="Error: there is no such tool.")
    return tools[call.name].run(call.arguments, image, prepared)


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
