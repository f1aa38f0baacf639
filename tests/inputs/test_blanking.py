"""What is painted out and with which colour, pixel by pixel; and that nothing else changes, whatever the file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvr_jax.inputs.blanking import blank
from medvr_jax.inputs.image_formats import Blanked, Framed
from medvr_jax.inputs.images import image_header, load_image, load_original
from medvr_jax.rollout.tools.zoom import ZoomIn
from tests.inputs.test_dicom import make

Region = tuple[int, int, int, int]


def by_hand(pixels: np.ndarray, regions: list[Region]) -> np.ndarray:
    """The same by distances from each region, one pixel after the other."""
    height, width = pixels.shape[:2]
    result = pixels.astype(np.float64)
    for x1, y1, x2, y2 in regions:
        wide = max(2, round(min(x2 - x1, y2 - y1) / 8))
        ring, outside = [], []
        for y in range(height):
            for x in range(width):
                if any(a <= x < c and b <= y < d for a, b, c, d in regions):
                    continue
                outside.append(pixels[y, x])
                if max(x1 - x, x - (x2 - 1), y1 - y, y - (y2 - 1)) <= wide:
                    ring.append(pixels[y, x])
        colours = ring or outside or pixels.reshape(height * width, *pixels.shape[2:])
        result[y1:y2, x1:x2] = np.mean(np.asarray(colours, np.float64), axis=0)
    return np.rint(result) if np.issubdtype(pixels.dtype, np.integer) else result


CASES: dict[str, list[Region]] = {
    "inside": [(7, 5, 15, 20)],
    "at the border": [(0, 0, 30, 3)],
    "wide ring": [(4, 4, 28, 20)],
    "two, one in the other's ring": [(3, 3, 9, 9), (10, 3, 20, 12)],
    "overlapping": [(3, 3, 12, 12), (8, 8, 20, 20)],
    "a ring within another region": [(10, 10, 12, 12), (2, 2, 22, 22)],
    "all of it": [(0, 0, 32, 24)],
    "all of it, in two": [(0, 0, 20, 24), (20, 0, 32, 24)],
}


@pytest.mark.parametrize("regions", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", ["colour", "grey levels"])
def test_the_colour_is_the_mean_of_the_ring(regions: list[Region], kind: str) -> None:
    generator = np.random.default_rng(0)
    if kind == "colour":
        pixels = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    else:
        pixels = generator.uniform(-40, 300, (24, 32)).astype(np.float32)
    before = pixels.copy()
    blanked = blank(pixels, regions)
    assert blanked.dtype == pixels.dtype and np.array_equal(pixels, before)
    np.testing.assert_allclose(blanked, by_hand(pixels, regions), rtol=1e-6)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def outside(region: Region, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.ones(shape[:2], bool)
    mask[region[1] : region[3], region[0] : region[2]] = False
    return mask


def test_deep_images_keep_their_levels() -> None:
    """The brightest and the darkest pixel are painted out, and yet no other pixel changes: nothing is spread anew."""
    values = np.random.default_rng(1).integers(20_000, 30_000, (40, 50), dtype=np.uint16)
    region = (10, 10, 20, 30)
    values[12, 11], values[13, 11] = 0, 65_535
    plain, masked = load_original(png(values)), load_original(Blanked(png(values), (region,)))
    same = outside(region, values.shape)
    assert plain.levels.max() == 255 and plain.levels.min() == 0
    np.testing.assert_array_equal(masked.levels[same], plain.levels[same])
    np.testing.assert_array_equal(np.asarray(masked.shown)[same], np.asarray(plain.shown)[same])
    assert np.ptp(masked.levels[~same]) == 0 and 70 < masked.levels[12, 11] < 120
    np.testing.assert_array_equal(np.asarray(masked.shown)[12, 11], np.round(masked.levels[12, 11]))


def test_dicom_and_windows() -> None:
    values = np.random.default_rng(2).integers(0, 4096, (32, 32)).astype(np.uint16)
    file = make(values, WindowCenter=2000, WindowWidth=1000)
    plain, masked = load_original(file), load_original(Blanked(file, ((4, 4, 12, 12),)))
    same = outside((4, 4, 12, 12), values.shape)
    np.testing.assert_array_equal(masked.levels[same], plain.levels[same])
    assert plain.levels.max() > 255 and np.ptp(masked.levels[~same]) == 0
    assert image_header(Blanked(file, ())).size == (32, 32)


def test_files_as_they_are_seen(tmp_path: Path) -> None:
    """Regions are of the image as it is turned; a path, one frame of it, and its name in messages."""
    pixels = np.random.default_rng(3).integers(0, 256, (20, 60, 3), dtype=np.uint8)
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    plain = np.asarray(load_image(tmp_path / "turned.jpg"))
    assert plain.shape == (60, 20, 3)
    source = Blanked(tmp_path / "turned.jpg", ((2, 40, 18, 58),))
    assert image_header(source).size == (20, 60) and str(source) == f"{tmp_path / 'turned.jpg'}, masked"
    masked, same = np.asarray(load_image(source)), outside((2, 40, 18, 58), (60, 20))
    np.testing.assert_array_equal(masked[same], plain[same])
    assert np.ptp(masked[41:57, 3:17], axis=(0, 1)).max() == 0
    framed = np.asarray(load_image(Blanked(Framed(tmp_path / "turned.jpg"), ((2, 40, 18, 58),))))
    np.testing.assert_array_equal(framed, masked)


def test_crops_lack_it_too() -> None:
    """The zoom tool cuts the masked original."""
    pixels = np.random.default_rng(4).integers(0, 256, (100, 100), dtype=np.uint8)
    original = load_original(Blanked(png(pixels), ((30, 30, 60, 60),)))
    prepared = type("Prepared", (), {"resized_size": (50, 50), "original_size": (100, 100)})()
    crop = np.asarray(ZoomIn().run({"bbox_2d": [10, 10, 30, 30]}, original, prepared).image)
    assert crop.shape == (40, 40, 3) and np.ptp(crop[10:, 10:]) == 0 and np.ptp(crop[:10]) > 100
