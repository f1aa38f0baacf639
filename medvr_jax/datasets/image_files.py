"""Are image files sound? Looked at before a run begins, as cheaply as their format allows."""

from __future__ import annotations

import concurrent.futures
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

Thorough = Literal["pixels", "header"]


def broken_images(paths: Iterable[Path], look_at: Thorough = "pixels") -> dict[Path, str]:
    """What is wrong with those that cannot be read, by path; each file is looked at once, on threads."""
    distinct = list(dict.fromkeys(paths))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda path: fault_of(path, look_at), distinct)
        return {path: fault for path, fault in zip(distinct, found, strict=True) if fault}


def fault_of(image: bytes | str | Path, look_at: Thorough = "pixels") -> str | None:
    """What is wrong with an image, a file or its bytes; None if nothing is. `pixels`: also one that ends too early."""
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            if look_at == "header":
                return None
            if opened.format == "PNG":
                opened.verify()  # checksums of all parts, without unpacking them
            else:
                opened.draft(None, (max(opened.width // 8, 1), max(opened.height // 8, 1)))  # JPEG: few pixels
                opened.load()
    except UnidentifiedImageError:  # its own words hold the address of the bytes
        return "of no known format"
    # PIL raises nearly anything on corrupt data (SyntaxError and struct.error among others).
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) in pixels from the header; OSError where there is none."""
    try:
        with Image.open(path) as opened:
            return opened.size
    except OSError:
        raise
    except Exception as error:  # PIL, as above
        raise OSError(f"{type(error).__name__}: {error}") from error
