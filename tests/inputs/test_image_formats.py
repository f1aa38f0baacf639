"""Image files of every format become what one sees, and what cannot be read is told in a few words."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from medvr_jax.datasets.image_files import fault_of, image_size
from medvr_jax.datasets.questions import read_questions
from medvr_jax.errors import UserError
from medvr_jax.inputs import image_formats
from medvr_jax.inputs.image_formats import ImageFault, read_header, read_picture
from medvr_jax.inputs.images import image_header, load_image, load_original, load_picture
from medvr_jax.inputs.intensities import on_screen, parse_window, windowed


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int64)


def noise(seed: int, shape: tuple[int, ...], high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape)


def huge_png(side: int) -> bytes:
    """A whole PNG of side x side black pixels of one bit."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + -(-side // 8))
    data = b"".join(packer.compress(row * 1000) for _ in range(side // 1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_deep_grey_is_spread_or_windowed(kind: str) -> None:
    values = noise(0, (20, 30), 4096).astype(np.uint16) + 1000
    data = encoded(Image.fromarray(values), kind)
    spread = read_picture(data)
    low, high = values.min(), values.max()
    expected = (values - low) * 255.0 / (high - low)
    assert np.abs(pixels(spread.image)[..., 0] - expected).max() <= 0.5 + 1e-9
    assert f"{low:g} to {high:g}" in spread.notes[0]
    shown = read_picture(data, window=(2000.0, 800.0))
    linear = np.clip(((values - 1999.5) / 799 + 0.5) * 255, 0, 255)
    assert np.abs(pixels(shown.image)[..., 1] - linear).max() <= 0.5 + 1e-9 and shown.window == (2000.0, 800.0)


def test_a_window_is_for_deep_grey_alone() -> None:
    with pytest.raises(ImageFault, match="a window is for grey with more than 8 bits"):
        read_picture(encoded(Image.new("RGB", (8, 8)), "PNG"), window=(1.0, 2.0))


def test_not_a_number_and_infinity_spoil_no_image() -> None:
    values = noise(1, (8, 8), 100).astype(np.float32)
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    grey = pixels(load_image(encoded(Image.fromarray(values), "TIFF")))[..., 0]
    finite = values[1:]
    low, high = values[np.isfinite(values)].min(), values[np.isfinite(values)].max()
    assert np.abs(grey[1:] - (finite - low) * 255 / (high - low)).max() <= 0.51


def test_cmyk_jpeg_is_seen_in_its_colours() -> None:
    inks = np.zeros((16, 48, 4), np.uint8)
    inks[:, :16, 0], inks[:, 16:32, 1], inks[:, 32:, 2] = 255, 255, 255  # cyan, magenta, yellow
    data = encoded(Image.frombytes("CMYK", (48, 16), inks.tobytes()), "JPEG")
    found = read_picture(data)
    assert found.header.format == "JPEG" and found.image.mode == "RGB"
    for left, colour in ((4, (0, 255, 255)), (20, (255, 0, 255)), (36, (255, 255, 0))):
        assert np.abs(pixels(found.image)[4:12, left : left + 8] - colour).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    seen = np.zeros((32, 48), np.uint8)
    seen[:16, :16] = 255  # a bright corner, top left, of an image that is wide
    stored = {
        1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1], 5: seen.T, 6: np.rot90(seen),
        7: seen[::-1, ::-1].T, 8: np.rot90(seen, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    found = read_picture(data)
    assert found.image.size == (48, 32) == read_header(data).size == found.header.size
    assert np.abs(pixels(found.image)[..., 0] - seen).max() < 30


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "GIF"])
def test_frames(kind: str) -> None:
    frames = [Image.new("L", (24, 16), level).convert("RGB") for level in (20, 120, 220)]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert read_header(data).frames == 3
    assert abs(pixels(load_image(data)).mean() - 20) < 2
    for number, level in enumerate((20, 120, 220)):
        assert abs(pixels(read_picture(data, number).image).mean() - level) < 2
    with pytest.raises(ImageFault, match="no frame 3; allowed: 0 to 2"):
        read_picture(data, 3)
    with pytest.raises(ImageFault, match="no frame 1; allowed: 0, as there is only one"):
        read_picture(encoded(frames[0], "PNG"), 1)


def test_too_many_pixels_are_refused_by_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    data = huge_png(30_000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for read in (read_header, read_picture):
        with pytest.raises(ImageFault, match="900,000,000 pixels; data.max_image_pixels allows 100,000,000"):
            read(data)
    assert "900,000,000" in fault_of(data) and "900,000,000" in fault_of(data, "header")
    image_formats.limit_pixels(900_000_000)
    assert read_header(data).size == (30_000, 30_000)
    image_formats.limit_pixels(899_999_999)
    with pytest.raises(UserError, match="big.png: not a readable image .900,000,000 pixels; .* allows 899,999,999"):
        image_header(data, "big.png")


@pytest.mark.parametrize("look_at", ["pixels", "header"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"What is in this file?\n", "of no known format; readable are PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "of no known format"),
    ],
    ids=["empty", "text", "program"],
)
def test_what_is_no_image(data: bytes, words: str, look_at: str) -> None:
    for read in (read_header, read_picture):
        with pytest.raises(ImageFault, match=words):
            read(data)
    assert words in fault_of(data, look_at)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_truncated_files(kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "cut.dat"
    path.write_bytes(encoded(Image.fromarray(noise(2, (99, 99, 3)).astype(np.uint8)), kind)[:-700])
    with pytest.raises(UserError, match="cut.dat: not a readable image"):
        load_image(path)
    assert fault_of(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(UserError, match="not a readable image"):
            load_image(path)
    with pytest.raises(OSError, match="gone.png"):
        image_size(tmp_path / "gone.png")


def test_own_questions_read_the_same_formats(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    (tmp_path / "ct.dcm").write_bytes(Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes())
    file = tmp_path / "questions.jsonl"
    file.write_text('{"image": "ct.dcm", "question": "What is it?", "answer": "CT"}\n')
    (example,) = read_questions(file, tmp_path)
    assert load_image(example.images[0]).size == (128, 128) == image_size(example.images[0])


def test_tools_see_what_a_window_cuts_off() -> None:
    """A CT is shown by a window; tools have all its values, on the same scale, inverted where the image is."""
    from pydicom.data import get_testdata_file

    file = Path(get_testdata_file("CT_small.dcm", download=False))
    stored = pydicom.dcmread(file).pixel_array.astype(np.float64) - 1024
    picture = load_picture(file, window=(40.0, 80.0))
    assert picture.levels is not None and picture.levels.dtype == np.float32
    np.testing.assert_allclose(picture.levels, ((stored - 39.5) / 79 + 0.5) * 255, rtol=1e-5, atol=1e-3)
    assert (picture.levels < -100).any() and (picture.levels > 400).any()
    np.testing.assert_array_equal(np.asarray(picture.image)[..., 0], on_screen(picture.levels))
    np.testing.assert_array_equal(load_original(file).levels, load_picture(file).levels)


def test_windows() -> None:
    values = np.arange(-10, 11, dtype=np.float64)
    one = windowed(values, 0.0, 1.0)
    assert one.tolist() == [0] * 10 + [255] * 11  # PS3.3: white above centre - 1/2
    exact = windowed(values, 0, 4, "LINEAR_EXACT")
    assert exact[8:13].tolist() == [0, 63.75, 127.5, 191.25, 255] and exact[:2].tolist() == [-510, -446.25]
    assert on_screen(exact)[[0, 8, 9, 10, 11, 12, 20]].tolist() == [0, 0, 64, 128, 191, 255, 255]
    sigmoid = 255 / (1 + np.exp(-4 * values / 6))
    assert np.abs(windowed(values, 0, 6, "SIGMOID") - sigmoid).max() <= 1e-4
    for window, function in (((0.0, 0.5), "LINEAR"), ((0.0, 0.0), "SIGMOID"), ((0.0, 2.0), "ROUND")):
        with pytest.raises(ValueError, match="window"):
            windowed(values, *window, function)
    assert parse_window("-600,1500") == (-600.0, 1500.0)
    for text in ("", "1", "1,2,3", "a,b", "1,0", "1,-2", "nan,3", "1,inf"):
        assert parse_window(text) is None
