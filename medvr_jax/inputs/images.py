"""Images: encoded bytes or a path -> PIL -> patches, and patches of several images -> one padded ImageBatch.

Sizes, normalisation and the patch order are those of transformers' PIL image processor; nothing here imitates it. It is
asked where each row of a patch comes from and what each of the 256 levels becomes, once, instead of for every image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from medvr_jax.errors import UserError
from medvr_jax.inputs.boxes import Size
from medvr_jax.inputs.image_formats import (
    Header,
    ImageFault,
    Picture,
    Source,
    Window,
    read_header,
    read_picture,
    to_rgb,
)
from medvr_jax.models import vision_geometry
from medvr_jax.models.config import VisionConfig
from medvr_jax.models.vision import ImageBatch


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """One image as the vision tower takes it: patches [s, patch_dim] float32 in the processor's order."""

    patches: np.ndarray
    grid: tuple[int, int, int]  # (t, h, w) in patches
    resized_size: Size  # (width, height) in pixels: the space that the model's boxes live in
    original_size: Size

    def features(self, merge_size: int) -> int:
        """The number of visual tokens that stand for this image."""
        return self.patches.shape[0] // merge_size**2


def load_processor(folder: str | Path) -> Qwen2VLImageProcessorPil:
    """The folder's own image processor (preprocessor_config.json), in its PIL implementation."""
    if not os.path.isfile(os.path.join(folder, "preprocessor_config.json")):
        raise UserError(f"model.path: no preprocessor_config.json in {folder}; a Hugging Face folder is needed")
    return Qwen2VLImageProcessorPil.from_pretrained(str(folder))


def image_header(source: Source, name: str | None = None) -> Header:
    """Format, size and frames of an image of which nothing is decoded; UserError, with its `name`, if that fails."""
    with _named(source, name):
        return read_header(source)


def load_picture(source: Source, name: str | None = None, *, frame: int = 0, window: Window | None = None) -> Picture:
    """One frame of any readable image as RGB, with what was done to it; see `image_formats.read_picture`.

    `name` is what an error calls it when `source` is bytes.
    """
    with _named(source, name):
        return read_picture(source, frame, window)


def load_image(source: Source, name: str | None = None) -> Image.Image:
    """The first frame of any readable image as RGB."""
    return load_picture(source, name).image


@dataclasses.dataclass(frozen=True)
class OriginalImage:
    """An image as tools work on it: `shown` is what the model is shown of it, RGB; `deep` all digits of a grey image of
    more than 8 bits, see `Picture.levels`; None for the others."""

    shown: Image.Image
    deep: np.ndarray | None = None

    @functools.cached_property
    def levels(self) -> np.ndarray:
        """[height, width] or [height, width, 3] float32: the file's values, all of their digits, on the scale of
        `shown`, on which 0 is black and 255 white."""
        return np.asarray(self.shown, np.float32) if self.deep is None else self.deep

    @functools.cached_property
    def level_range(self) -> tuple[float, float]:
        """From black to white, and beyond where `levels` hold more."""
        return min(0.0, float(self.levels.min())), max(255.0, float(self.levels.max()))


def load_original(source: Source, name: str | None = None) -> OriginalImage:
    """The first frame of any readable image."""
    picture = load_picture(source, name)
    return OriginalImage(picture.image, picture.levels)


@contextlib.contextmanager
def _named(source: Source, name: str | None) -> Iterator[None]:
    """What is wrong with an image becomes the user's error, with its name."""
    try:
        yield
    except ImageFault as fault:
        name = name or ("image bytes" if isinstance(source, bytes) else str(source))
        raise UserError(f"{name}: not a readable image ({fault})") from fault


def prepare_image(
    processor: Qwen2VLImageProcessorPil,
    image: Image.Image,
    *,
    max_pixels: int | None = None,
    min_pixels: int | None = None,
    max_patches: int | None = None,
    name: str = "image",
) -> PreparedImage:
    """Patches of one image at the processor's size limits, or at the given ones.

    max_patches is a guarantee where the pixel limits are not: very elongated images may exceed those by rounding, and
    are then resized to fewer pixels until they fit.
    """
    size = resized_size(
        processor, image.size, max_pixels=max_pixels, min_pixels=min_pixels, max_patches=max_patches, name=name
    )
    original = to_rgb(image)
    resized = original if original.size == size else original.resize(size, processor.resample)
    return PreparedImage(
        patches=_patches(processor, resized),
        grid=(1, size[1] // processor.patch_size, size[0] // processor.patch_size),
        resized_size=size,
        original_size=image.size,
    )


def _patches(processor: Qwen2VLImageProcessorPil, image: Image.Image) -> np.ndarray:
    """Patches [s, patch_dim] float32 of an RGB image whose sides are multiples of the merged patch's."""
    levels, places, pixels = _levels(processor), _places(processor, image.size), np.asarray(image)
    planes = np.empty((len(levels), image.height * image.width), np.float32)
    for channel, plane in enumerate(planes):
        # "clip" spares a copy; no value of a pixel is outside.
        levels[channel].take(pixels[..., channel].ravel().astype(np.intp), mode="clip", out=plane)
    rows = planes.view(f"V{planes.itemsize * processor.patch_size}").ravel()
    return rows.take(places.ravel(), mode="clip").view(np.float32).reshape(len(places), -1)


@functools.lru_cache(maxsize=4)
def _levels(processor: Qwen2VLImageProcessorPil) -> np.ndarray:
    """[channels, 256] float32: what the processor makes of each value of a pixel."""
    mean, std = processor.image_mean, processor.image_std
    levels = np.broadcast_to(np.arange(256, dtype=np.uint8), (len(mean), 1, 256))
    if processor.do_rescale:
        levels = processor.rescale(levels, processor.rescale_factor)
    if processor.do_normalize:
        levels = processor.normalize(levels, mean, std)
    return np.ascontiguousarray(levels[:, 0], np.float32)


@functools.lru_cache(maxsize=128)
def _places(processor: Qwen2VLImageProcessorPil, size: Size) -> np.ndarray:
    """[s, channels * frames * side] intp: where the processor takes each row of a patch from.

    Counted in rows of a patch, channel by channel, through an image of this (width, height).
    """
    (width, height), side, frames = size, processor.patch_size, processor.temporal_patch_size
    channels = len(processor.image_mean)
    rows = np.arange(channels * height * width // side, dtype=np.float32)  # whole numbers up to 2 ** 24
    image = rows.repeat(side).reshape(channels, height, width)
    found, _, _ = processor.patchify(image, side, processor.merge_size, frames)
    return found[:, ::side].astype(np.intp)  # of each row its first pixel


def resized_size(
    processor: Qwen2VLImageProcessorPil,
    size: Size,
    *,
    max_pixels: int | None = None,
    min_pixels: int | None = None,
    max_patches: int | None = None,
    name: str = "image",
) -> Size:
    """(width, height) in pixels that `prepare_image` resizes an image of this size to."""
    longest = max_pixels or processor.size["longest_edge"]
    shortest = min(min_pixels or processor.size["shortest_edge"], longest)
    factor = processor.patch_size * processor.merge_size
    while True:
        try:
            height, width = smart_resize(size[1], size[0], factor, shortest, longest)
        except ValueError as error:  # the processor refuses aspect ratios above 200
            raise UserError(f"{name}: {size[0]}x{size[1]} is not usable ({error})") from error
        if max_patches is None or height * width <= max_patches * processor.patch_size**2:
            return width, height
        if longest <= factor**2:
            raise UserError(f"{name}: {size[0]}x{size[1]} does not fit {max_patches} patches")
        longest = max(int(longest * 0.8), factor**2)
        shortest = min(shortest, longest)


def pack_image_rows(
    rows: Sequence[Sequence[PreparedImage | None]], images: int, patches: int, vision: VisionConfig
) -> ImageBatch:
    """Lists of at most I = `images` images (None or missing = empty) -> an ImageBatch with leading axes B, I."""
    flat = [image for row in rows for image in (*row, *[None] * (images - len(row)))]
    packed = pack_images(flat, patches, vision)
    return jax.tree.map(lambda leaf: leaf.reshape(len(rows), images, *leaf.shape[1:]), packed)


def pack_images(images: Sequence[PreparedImage | None], patches: int, vision: VisionConfig) -> ImageBatch:
    """Images (None = an empty row) -> an ImageBatch of NumPy arrays with leading axis I and bucket S = `patches`."""
    data = np.zeros((len(images), patches, vision.patch_dim), np.float32)
    rows = []
    for row, image in enumerate(images):
        rows.append(vision_geometry.padded_geometry(image.grid if image else None, patches, vision))
        if image is not None:
            data[row, : len(image.patches)] = image.patches
    if rows:
        positions, valid, window_slots, slot_of_patch = (np.stack(column) for column in zip(*rows, strict=True))
    else:
        empty = vision_geometry.padded_geometry(None, patches, vision)
        positions, valid, window_slots, slot_of_patch = (np.zeros((0, *a.shape), a.dtype) for a in empty)
    return ImageBatch(
        patches=data, positions=positions, valid=valid, window_slots=window_slots, slot_of_patch=slot_of_patch
    )
