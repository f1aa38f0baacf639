"""Are image files sound? Looked at on threads before a run begins, as cheaply as their format allows."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from PIL import Image

Thorough = Literal["pixels", "header"]


def broken_images(paths: Iterable[Path], look_at: Thorough = "pixels") -> dict[Path, str]:
    """What is wrong with those that cannot be read, by path; each file is looked at once."""
    distinct = list(dict.fromkeys(paths))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda path: fault_of(path, look_at), distinct)
        return {path: fault for path, fault in zip(distinct, found, strict=True) if fault}


def fault_of(path: Path, look_at: Thorough = "pixels") -> str | None:
    """What is wrong with an image file, None if nothing is. `pixels`: a file that ends too early is found, too."""
    try:
        with Image.open(path) as image:
            if look_at == "header":
                return None
            if image.format == "PNG":
                image.verify()  # checksums of all parts, without unpacking them
            else:
                image.draft(None, (image.width // 8, image.height // 8))  # JPEG: all bytes, but few pixels
                image.load()
    # PIL raises nearly anything on corrupt data (SyntaxError and struct.error among others).
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
