"""Image files: what their header says, and one frame as RGB. The one place that knows formats, for every mode.

PNG, JPEG, TIFF, WebP and a few more are read by Pillow, DICOM by `dicom.py`. Images are turned as their EXIF
orientation says, since that is how they are seen. Colours with alpha lose it; CMYK becomes RGB without colour profiles.
Grey with more than 8 bits is spread from the least of its values to the greatest, or by a window. A limit of pixels,
`data.max_image_pixels`, is looked at before anything is decoded. No jax in this file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from medvr_jax.inputs import intensities
from medvr_jax.inputs.blanking import PixelBox, blank

Window = tuple[float, float]  # (centre, width)


@dataclasses.dataclass(frozen=True)
class Framed:
    """One frame of a file, seen through a window, in the place of the file."""

    path: Path
    frame: int = 0
    window: Window | None = None

    def __str__(self) -> str:
        return str(self.path)


@dataclasses.dataclass(frozen=True)
class Blanked:
    """An image with regions of it painted out, see `blanking`, in the place of its file."""

    source: bytes | str | Path | Framed
    regions: tuple[PixelBox, ...]

    def __str__(self) -> str:
        return f"{'image bytes' if isinstance(self.source, bytes) else self.source}, masked"


Source = bytes | str | Path | Framed | Blanked

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")  # of Pillow's
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
DEFAULT_LIMIT = 100_000_000
_READABLE = "readable are PNG, JPEG, TIFF, WebP, BMP, GIF, PPM, JPEG 2000 and DICOM"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


class ImageFault(Exception):
    """What is wrong with an image, in a few words that do not name it."""


class WindowFault(ImageFault):
    """What is wrong with the window that an image is asked for with."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image file says before a pixel is decoded: its format, (width, height) as seen, number of frames."""

    format: str
    size: tuple[int, int]
    frames: int


@dataclasses.dataclass(frozen=True)
class Picture:
    """One frame.

    Attributes:
        image: RGB.
        header: of its file.
        window: (centre, width) that was applied, None where there was none.
        notes: what a reader should know about how the levels came about.
        levels: [height, width] float32, of grey with more than 8 bits all digits on the scale of `image`, see
            `intensities`; None where `image` has them all.
    """

    image: Image.Image
    header: Header
    window: Window | None = None
    notes: tuple[str, ...] = ()
    levels: np.ndarray | None = None


# ---------------------------------------------------------------------------------------------- how large it may be


def limit_pixels(most: int) -> None:
    """From now on no image of this process may have more pixels; Pillow's own check enforces it at every opening."""
    Image.MAX_IMAGE_PIXELS = most / 2  # it refuses more than the double


def pixel_limit() -> int:
    """The most pixels that an image may have."""
    return int(2 * (Image.MAX_IMAGE_PIXELS or float("inf")))


limit_pixels(DEFAULT_LIMIT)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # at half of our limit
# What Pillow and pydicom find odd is either an error that follows, or nothing.
warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")


def check_pixels(width: int, height: int) -> None:
    """ImageFault where an image of this size is too large."""
    if width * height > pixel_limit():
        raise _too_large(width * height)


def check_frame(frame: int, header: Header) -> None:
    """ImageFault where there is no such frame."""
    if not 0 <= frame < header.frames:
        allowed = f"0 to {header.frames - 1}" if header.frames > 1 else "0, as there is only one"
        raise ImageFault(f"no frame {frame}; allowed: {allowed}")


def _too_large(pixels: int) -> ImageFault:
    return ImageFault(f"{pixels:,} pixels; data.max_image_pixels allows {pixel_limit():,}")


# ------------------------------------------------------------------------------------------------- reading a file


def read_header(source: Source) -> Header:
    """The header; ImageFault if there is none that can be read, or if it tells of too many pixels."""
    if isinstance(source, Blanked):
        return read_header(source.source)
    source = source.path if isinstance(source, Framed) else source
    with _stream(source) as (stream, is_dicom):
        if is_dicom:
            from medvr_jax.inputs import dicom  # pydicom takes a moment to import, and few need it

            return dicom.header_of(dicom.read_dataset(stream))
        with _opened(stream) as image:
            return _header(image)


def read_picture(source: Source, frame: int = 0, window: Window | None = None) -> Picture:
    """One frame as RGB; ImageFault if it cannot be read.

    Args:
        source: a path, or the bytes of a file.
        frame: of an animation or of several pages or slices, from 0.
        window: (centre, width) for grey with more than 8 bits, in the unit of the values (DICOM: after rescaling).
    """
    if isinstance(source, Framed):
        return read_picture(source.path, source.frame, source.window)
    if isinstance(source, Blanked):
        return _blanked(read_picture(source.source, frame, window), source.regions)
    with _stream(source) as (stream, is_dicom):
        if is_dicom:
            from medvr_jax.inputs import dicom

            return dicom.read_frame(stream, frame, window)
        with _opened(stream) as image:
            header = _header(image)
            check_frame(frame, header)
            if frame:
                image.seek(frame)
            turn = _orientation(image)
            image.load()
            levels = _deep_levels(image, window) if is_deep(image) else None
            rgb = to_rgb(image, window) if levels is None else shown(levels)
            notes = _deep_notes(image, window)
    if turn in _TURNS:
        rgb, notes = rgb.transpose(_TURNS[turn]), (*notes, "turned as its EXIF orientation says")
        levels = None if levels is None else np.asarray(Image.fromarray(levels).transpose(_TURNS[turn]))
    return Picture(rgb, header, window, notes, levels)


def _blanked(picture: Picture, regions: Sequence[PixelBox]) -> Picture:
    """The same with the regions painted out, in what tools work on as in what is shown."""
    if picture.levels is not None:
        levels = blank(picture.levels, regions)
        return dataclasses.replace(picture, image=shown(levels), levels=levels)
    return dataclasses.replace(picture, image=Image.fromarray(blank(np.asarray(picture.image), regions)))


def fault_of(source: Source, *, pixels: bool = True) -> str | None:
    """What is wrong with an image; None if nothing is. `pixels`: also one that ends too early, as cheaply as can be."""
    try:
        with _stream(source) as (stream, is_dicom):
            if is_dicom:
                read_picture(source) if pixels else read_header(source)
                return None
            with _opened(stream) as image:
                if not pixels:
                    return None
                if image.format == "PNG":
                    image.verify()  # checksums of all parts, without unpacking them
                else:
                    image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))  # JPEG: few pixels
                    image.load()
    except ImageFault as fault:
        return str(fault)
    return None


def to_rgb(image: Image.Image, window: Window | None = None) -> Image.Image:
    """An image of any of Pillow's modes as RGB; `window` for grey with more than 8 bits, else it is a fault."""
    if is_deep(image):
        return shown(_deep_levels(image, window))
    if window is not None:
        raise WindowFault(
            f"a window is for grey with more than 8 bits, not for this image ({image.mode}); leave it out"
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Whether this is grey with more than 8 bits, which Pillow's own conversion only clips."""
    return image.mode.startswith("I") or image.mode == "F"


def shown(levels: np.ndarray) -> Image.Image:
    """Levels [height, width] as RGB."""
    return Image.fromarray(intensities.on_screen(levels)).convert("RGB")


def _deep_levels(image: Image.Image, window: Window | None) -> np.ndarray:
    values = np.asarray(image, np.float64)
    try:
        return intensities.windowed(values, *window) if window else intensities.stretched(values)
    except ValueError as error:
        raise WindowFault(str(error)) from error


def _deep_notes(image: Image.Image, window: Window | None) -> tuple[str, ...]:
    if not is_deep(image) or window is not None:
        return ()
    low, high = intensities.value_range(np.asarray(image, np.float64))
    return (f"its values from {low:g} to {high:g} were spread over the grey levels",)


# ---------------------------------------------------------------------------------------------------------- inside


@contextlib.contextmanager
def _stream(source: bytes | str | Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The file, opened, and whether it is DICOM; whatever goes wrong with it inside becomes an ImageFault."""
    name = "" if isinstance(source, bytes) else os.fspath(source)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream:
            if not stream.read(1):
                raise ImageFault("an empty file")
            yield stream, _is_dicom(stream, name)
    except ImageFault:
        raise
    except UnidentifiedImageError as error:  # its own words hold the address of the bytes
        raise ImageFault(f"of no known format; {_READABLE}") from error
    except Image.DecompressionBombError as error:
        raise _too_large(int(re.findall(r"\d+", str(error))[0])) from error
    except MemoryError as error:
        raise ImageFault("it does not fit in memory") from error
    # Pillow raises nearly anything on corrupt data (SyntaxError and struct.error among others), pydicom likewise.
    except Exception as error:
        raise ImageFault(f"{type(error).__name__}: {error}") from error


def _is_dicom(stream: BinaryIO, name: str) -> bool:
    """By what every file of today begins with or, as very old ones do not, by its name."""
    stream.seek(128)
    magic = stream.read(4) == b"DICM"
    stream.seek(0)
    return magic or name.lower().endswith(_DICOM_SUFFIXES)


@contextlib.contextmanager
def _opened(stream: BinaryIO) -> Iterator[Image.Image]:
    """Pillow's image, of which nothing is read but the header."""
    with Image.open(stream, formats=FORMATS) as image:
        yield image


def _header(image: Image.Image) -> Header:
    width, height = image.size
    size = (height, width) if _orientation(image) in _SIDEWAYS else (width, height)
    return Header(image.format or "", size, int(getattr(image, "n_frames", 1)))


def _orientation(image: Image.Image) -> int:
    """How the EXIF data in the header want the image to be turned; 1 = not at all. Pillow turns TIFF by itself."""
    if image.format == "TIFF" or "exif" not in image.info:
        return 1
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data spoil no image
        return 1
