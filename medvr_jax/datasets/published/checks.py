"""What no reader does by itself: images are there and have a readable header, ids are used once."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.published.record import Record


def checked(records: Iterable[Record], faults: Faults) -> Iterator[Record]:
    """The records that are sound; the others become faults. Nothing of an image is decoded but its header."""
    seen: dict[str, str] = {}
    for record in records:
        identity = record.example.id
        if identity in seen:
            faults.add(record.fault("repeated_id", f"id {identity!r} was already used by {seen[identity]}"))
            continue
        seen[identity] = record.where
        if _images_are_sound(record, faults):
            yield record


def _images_are_sound(record: Record, faults: Faults) -> bool:
    if not record.example.images:
        faults.add(record.fault("missing_image", "found no image; allowed: one or more"))
        return False
    for image in record.example.images:
        if not isinstance(image, bytes) and not Path(image).is_file():
            faults.add(record.fault("missing_image", f"no such image file {image}"))
            return False
        try:
            image_size(image)
        except OSError as error:
            name = "the image" if isinstance(image, bytes) else f"image {image}"
            faults.add(record.fault("broken_image", f"{name} has no readable header ({error})"))
            return False
    return True


def image_size(image: bytes | str | Path) -> tuple[int, int]:
    """(width, height) in pixels from the header; OSError where there is none."""
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return opened.size
    except UnidentifiedImageError as error:  # its own words hold the address of the bytes
        raise OSError("of no known format") from error
    except OSError:
        raise
    except Exception as error:  # PIL raises nearly anything on corrupt data
        raise OSError(f"{type(error).__name__}: {error}") from error
