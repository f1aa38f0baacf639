"""What no reader does by itself: images are there and can be read, ids are used once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from medvr_jax.datasets.faults import Fault, Faults
from medvr_jax.datasets.image_files import Thorough, fault_of
from medvr_jax.datasets.published.record import Record

_LOOKED_AT = 64  # images whose verdict is remembered: questions about one image mostly follow each other

Look = Callable[[bytes | str | Path], str | None]


def checked(records: Iterable[Record], faults: Faults, look_at: Thorough = "pixels") -> Iterator[Record]:
    """The records that are sound; the others become faults. `look_at` is how much of each image is read."""
    seen: dict[str, str] = {}
    look = functools.lru_cache(_LOOKED_AT)(functools.partial(fault_of, look_at=look_at))
    for record in records:
        identity = record.example.id
        if identity in seen:
            faults.add(repeated(record, seen[identity]))
            continue
        seen[identity] = record.where
        if _images_are_sound(record, look, faults):
            yield record


def repeated(record: Record, first: str) -> Fault:
    """The fault of a record whose id was used before, at `first`."""
    return record.fault("repeated_id", f"id {record.example.id!r} was already used by {first}")


def _images_are_sound(record: Record, look: Look, faults: Faults) -> bool:
    if not record.example.images:
        faults.add(record.fault("missing_image", "found no image; allowed: one or more"))
        return False
    for image in record.example.images:
        if not isinstance(image, bytes) and not Path(image).is_file():
            faults.add(record.fault("missing_image", f"no such image file {image}"))
            return False
        if fault := look(image):
            name = "the image" if isinstance(image, bytes) else f"image {image}"
            faults.add(record.fault("broken_image", f"{name} cannot be read ({fault})"))
            return False
    return True
