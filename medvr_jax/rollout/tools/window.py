"""Windowing: the whole image with another contrast, from all the digits of its file.

Grey values are spoken of as the model saw them, from 0 (black) to 255 (white), fractions allowed; what is spread out
are the values of the original, of which a 16-bit file has 257 for each of these. What the overview rounds away can so
be seen, as a box of the overview is cut from the original by the zoom. Where the overview is a window itself (DICOM),
the values that it cuts off go on below black and above white, in the same steps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from medvr_jax.inputs.images import OriginalImage, PreparedImage
from medvr_jax.rollout.tools.protocol import ToolResult

BLACK, WHITE = 0.0, 255.0  # of what the model sees
MINIMUM_WIDTH = 1 / 64  # narrower windows are widened around their centre: about four values of a 16-bit file


class Window:
    """`image_window_tool`: spreads the grey values of `window` ([low, high]) from black to white."""

    name = "image_window_tool"

    def schema(self) -> dict[str, Any]:
        """See `Tool.schema`."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": "Show the whole image with another contrast: a narrow range of grey values is spread "
                "from black to white, which shows differences that are too faint to be seen.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "window": {
                            "type": "array",
                            "items": {"type": "number"},
                            "minItems": 2,
                            "maxItems": 2,
                            "description": "The range as [low, high], in grey values of the image from 0 (black) to "
                            "255 (white); what is darker becomes black, what is brighter white.",
                        },
                        "label": {"type": "string", "description": "What is looked for (optional)."},
                    },
                    "required": ["window"],
                },
            },
        }

    def run(self, arguments: Mapping[str, Any], original: OriginalImage, prepared: PreparedImage) -> ToolResult:
        """See `Tool.run`."""
        window = check_window(arguments.get("window"), original.level_range)
        if isinstance(window, str):
            return ToolResult(error=f"Error: {window}")
        return ToolResult(functools.partial(_draw, original, *window), (self.name, *window))


def check_window(window: object, levels: tuple[float, float]) -> tuple[float, float] | str:
    """(low, high) for a call's `window`, or the reason why there is none (a sentence for the model).

    levels: the least and the greatest of the original's.
    """
    if not isinstance(window, list) or len(window) != 2:
        return "window must be a list of two numbers."
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in window):
        return "window must be a list of two numbers."
    try:
        low, high = (float(value) for value in window)
    except OverflowError:
        return "window holds a number that is too large."
    if not (math.isfinite(low) and math.isfinite(high)):
        return "window must hold finite numbers."
    if low >= high:
        return "window must satisfy low < high."
    if high <= levels[0] or low >= levels[1]:
        return f"window lies outside the grey values from {levels[0]:g} to {levels[1]:g}."
    if high - low < MINIMUM_WIDTH:
        centre = (low + high) / 2
        return centre - MINIMUM_WIDTH / 2, centre + MINIMUM_WIDTH / 2
    return low, high


def apply_window(levels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Grey values `[...]` float32 -> uint8: 255 (v - low) / (high - low), clipped and rounded."""
    spread = (levels - np.float64(low)) * (WHITE / (high - low))  # float64: a model may name any numbers
    return np.rint(np.clip(spread, BLACK, WHITE)).astype(np.uint8)


def _draw(original: OriginalImage, low: float, high: float) -> Image.Image:
    return Image.fromarray(apply_window(original.levels, low, high))
