"""Are image files sound? Looked at before a run begins, as cheaply as their format allows."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from medvr_jax.inputs import image_formats

Thorough = Literal["pixels", "header"]


def broken_images(paths: Iterable[Path], look_at: Thorough = "pixels") -> dict[Path, str]:
    """What is wrong with those that cannot be read, by path; each file is looked at once, on threads."""
    distinct = list(dict.fromkeys(paths))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda path: fault_of(path, look_at), distinct)
        return {path: fault for path, fault in zip(distinct, found, strict=True) if fault}


def fault_of(image: bytes | str | Path, look_at: Thorough = "pixels") -> str | None:
    """What is wrong with an image, a file or its bytes; None if nothing is. `pixels`: also one that ends too early."""
    return image_formats.fault_of(image, pixels=look_at == "pixels")


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) in pixels from the header; OSError where there is none."""
    try:
        return image_formats.read_header(path).size
    except image_formats.ImageFault as fault:
        raise OSError(str(fault)) from fault
