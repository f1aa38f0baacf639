"""Zoom in: a region of the original image."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from medvr_jax.inputs.boxes import check_zoom_box
from medvr_jax.inputs.images import OriginalImage, PreparedImage
from medvr_jax.rollout.tools.protocol import ToolResult


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

    def run(self, arguments: Mapping[str, Any], original: OriginalImage, prepared: PreparedImage) -> ToolResult:
        """See `Tool.run`."""
        box = arguments.get("bbox_2d")
        checked = check_zoom_box(box, prepared.resized_size, prepared.original_size)
        numbers = tuple(float(v) for v in box) if _four_numbers(box) else None
        if isinstance(checked, str):
            return ToolResult(error=f"Error: {checked}", call_box=numbers)
        draw = functools.partial(original.shown.crop, checked.original)
        return ToolResult(draw, (self.name, checked.original), zoom=checked, call_box=numbers)


def _four_numbers(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9 for v in box)
    )
