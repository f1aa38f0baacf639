"""What a tool is to the turn loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

from PIL import Image

from medvr_jax.inputs.boxes import ZoomBox
from medvr_jax.inputs.images import OriginalImage, PreparedImage


@dataclasses.dataclass(frozen=True)
class ToolResult:
    """What a call returns: an image or the text of an error, never both.

    Attributes:
        draw: makes the image from the original, on any thread; calls of a group with the same key draw one image.
        key: what the image depends on beside the original: where keys are equal, images are. None without an image.
        error: one sentence for the model, when there is no image.
        zoom: the region that the image shows; None where it shows all of it.
        call_box: the numbers the call named, in pixels of the resized image, when they were a box.
    """

    draw: Callable[[], Image.Image] | None = None
    key: Hashable = None
    error: str | None = None
    zoom: ZoomBox | None = None
    call_box: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.draw is None) != (self.key is None) or (self.draw is None) == (self.error is None):
            raise ValueError("a tool returns an image with its key, or an error")

    @functools.cached_property
    def image(self) -> Image.Image | None:
        """The image, drawn when it is first asked for."""
        return self.draw() if self.draw else None


class Tool(Protocol):
    """What the turn loop needs of a tool."""

    name: str

    def schema(self) -> dict[str, Any]:
        """The function's JSON schema as it stands in the system prompt."""

    def run(self, arguments: Mapping[str, Any], original: OriginalImage, prepared: PreparedImage) -> ToolResult:
        """Runs a call on the question's first image. Never raises on what a model wrote.

        Args:
            arguments: the call's arguments as parsed JSON.
            original: the original, decoded.
            prepared: the same image as the model saw it (for the sizes).
        """
