"""The tools by name. A tool is one file of `tools/` and one line here; nothing else of the package knows it.

A configuration is checked with this table, so importing it imports no tool.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from medvr_jax.errors import UserError

if TYPE_CHECKING:
    from medvr_jax.rollout.tools.protocol import Tool


class Registered(NamedTuple):
    """Where a tool is, and what the rest has to know before it is there.

    Attributes:
        module, kind: the file of `tools/` and the class in it.
        boxes: whether its results are regions of the image; only these can agree or not (`rewards.tool=consensus`).
    """

    module: str
    kind: str
    boxes: bool


TOOLS = {
    "image_zoom_in_tool": Registered("zoom", "ZoomIn", boxes=True),
    "image_window_tool": Registered("window", "Window", boxes=False),
}


def tools_by_name(names: Sequence[str]) -> dict[str, Tool]:
    """The named tools; UserError for a name that no tool has."""
    return {name: _tool(name) for name in names}


def _tool(name: str) -> Tool:
    if name not in TOOLS:
        raise UserError(f"rollout.tools: {name!r} is no tool; allowed are {', '.join(TOOLS)}")
    found = TOOLS[name]
    return getattr(importlib.import_module(f"medvr_jax.rollout.tools.{found.module}"), found.kind)()
