"""Images for people to look at: small copies, and their addresses within a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from medvr_jax.errors import UserError
from medvr_jax.inputs.images import load_image

LONG_SIDE = 768  # pixels at most; boxes are normalised, so a smaller copy serves to look at
TOOL_SIDE = 256  # of an image that a tool made: there is one for each call, in the record of its trajectory
_QUALITY = 88


class Picture(NamedTuple):
    """An image inside a page: its data address, and its width and height in pixels."""

    address: str
    size: tuple[int, int]


def small_copy(source: bytes | str | Path, name: str | None = None) -> tuple[bytes, tuple[int, int]]:
    """Any readable image as a JPEG whose long side is at most LONG_SIDE, grey where it has no colour; and its size."""
    return _reduced(load_image(source, name), LONG_SIDE)


def tool_picture(image: Image.Image) -> str:
    """The data address of an image that a tool made: a JPEG whose long side is at most TOOL_SIDE."""
    return _address(_reduced(image, TOOL_SIDE)[0])


def _reduced(image: Image.Image, side: int) -> tuple[bytes, tuple[int, int]]:
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    red, green, blue = image.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        image = red
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)  # "optimize" has too small a buffer for noise
    return buffer.getvalue(), image.size


def _address(encoded: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"


def picture(encoded: bytes | None) -> Picture | None:
    """An encoded image as a page holds it; None where there is none, or none that can be read."""
    if encoded is None:
        return None
    try:
        small, size = _as_it_is(encoded) or small_copy(encoded)
    except UserError:
        return None
    return Picture(_address(small), size)


def _as_it_is(encoded: bytes) -> tuple[bytes, tuple[int, int]] | None:
    """A JPEG that is small enough already, such as those of `rollouts/images/`."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            fits = image.format == "JPEG" and image.mode in ("L", "RGB") and max(image.size) <= LONG_SIDE
            return (encoded, image.size) if fits else None
    except Exception:  # PIL raises nearly anything on corrupt data; the full reader then says what is wrong
        return None
