"""DICOM frames against the formulas of the standard, in float64 NumPy on the stored values that pydicom reads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, SecondaryCaptureImageStorage, generate_uid

from medvr_jax.inputs.image_formats import ImageFault, limit_pixels, pixel_limit, read_header, read_picture

CT, MR = (Path(get_testdata_file(name, download=False)) for name in ("CT_small.dcm", "MR_small.dcm"))


def linear(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1 with y from 0 to 255."""
    values = np.asarray(values, np.float64)
    inside = ((values - (centre - 0.5)) / (width - 1) + 0.5) * 255
    above = values > centre - 0.5 + (width - 1) / 2
    return np.where(values <= centre - 0.5 - (width - 1) / 2, 0, np.where(above, 255, inside))


def grey(found: Any) -> np.ndarray:
    levels = np.asarray(found.image, np.float64)
    assert (levels == levels[..., :1]).all()
    return levels[..., 0]


def make(stored: np.ndarray, interpretation: str = "MONOCHROME2", **attributes: Any) -> bytes:
    """A DICOM file of stored values [rows, columns], [frames, rows, columns] or, for colours, [rows, columns, 3]."""
    dataset, colours = Dataset(), stored.shape[-1] == 3
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    if stored.ndim == 3 and not colours:
        dataset.NumberOfFrames = len(stored)
    dataset.Rows, dataset.Columns = stored.shape[:2] if colours else stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3 if colours else 1), interpretation
    if colours:
        dataset.PlanarConfiguration = 0
    bits = stored.dtype.itemsize * 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, int(stored.dtype.kind == "i")
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = stored.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def values(seed: int, shape: tuple[int, ...], low: int = 0, high: int = 4096, dtype: Any = np.uint16) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def item(**attributes: Any) -> Dataset:
    dataset = Dataset()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def test_the_ct_that_ships_with_pydicom() -> None:
    dataset = pydicom.dcmread(CT)
    hounsfield = dataset.pixel_array.astype(np.float64) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    found = read_picture(CT)
    assert found.header.size == (128, 128) and found.header.frames == 1 and found.window is None
    spread = (hounsfield - hounsfield.min()) * 255 / (hounsfield.max() - hounsfield.min())
    assert np.abs(grey(found) - spread).max() <= 0.5 + 1e-9
    for window in ((40.0, 400.0), (-600.0, 1500.0)):
        shown = read_picture(CT, window=window)
        assert shown.window == window and np.abs(grey(shown) - linear(hounsfield, *window)).max() <= 0.5 + 1e-9


def test_the_mr_that_ships_with_pydicom_has_a_window() -> None:
    stored = pydicom.dcmread(MR).pixel_array
    found = read_picture(MR.read_bytes())
    assert found.window == (600.0, 1600.0) and np.abs(grey(found) - linear(stored, 600, 1600)).max() <= 0.5 + 1e-9
    assert "centre 600, width 1600" in found.notes[0]


@pytest.mark.parametrize("name", ["MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless"])
def test_the_same_mr_encoded_otherwise(name: str) -> None:
    other = get_testdata_file(f"{name}.dcm", download=False)
    assert np.array_equal(grey(read_picture(other)), grey(read_picture(MR)))


def test_frames_are_counted_from_0() -> None:
    stored = values(0, (3, 10, 12))
    data = make(stored, WindowCenter=2000, WindowWidth=3000)
    assert read_header(data).frames == 3
    for frame in range(3):
        assert np.abs(grey(read_picture(data, frame)) - linear(stored[frame], 2000, 3000)).max() <= 0.5 + 1e-9
    with pytest.raises(ImageFault, match="no frame 3; allowed: 0 to 2"):
        read_picture(data, 3)


def test_monochrome1_is_inverted() -> None:
    stored = values(1, (9, 8))
    found = read_picture(make(stored, "MONOCHROME1", WindowCenter=[1500, 9], WindowWidth=[900, 9]))
    assert np.abs(grey(found) - (255 - linear(stored, 1500, 900))).max() <= 0.5 + 1e-9
    assert any("MONOCHROME1" in note for note in found.notes)
    assert any("the first of 2" in note for note in found.notes)


def test_padding_does_not_say_what_is_dark() -> None:
    stored = values(2, (9, 8), 100, 900, np.int16)
    stored[0] = -2000
    spread = grey(read_picture(make(stored, PixelPaddingValue=-2000)))
    low, high = stored[1:].min(), stored[1:].max()
    assert (spread[0] == 0).all()
    assert np.abs(spread[1:] - (stored[1:] - low) * 255.0 / (high - low)).max() <= 0.5 + 1e-9


def test_eight_bits_without_a_window_stay_as_they_are() -> None:
    stored = values(3, (9, 8), 50, 90, np.uint8)
    assert np.array_equal(grey(read_picture(make(stored))), stored)


def test_window_functions() -> None:
    stored = values(4, (9, 8))
    exact = read_picture(make(stored, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT"))
    expected = np.clip((stored.astype(np.float64) - 2000) / 1000 + 0.5, 0, 1) * 255
    assert np.abs(grey(exact) - expected).max() <= 0.5 + 1e-9
    sigmoid = read_picture(make(stored, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID"))
    expected = 255 / (1 + np.exp(-4 * (stored.astype(np.float64) - 2000) / 1000))
    assert np.abs(grey(sigmoid) - expected).max() <= 0.5 + 1e-9


def test_tables_go_before_rescaling_and_windows() -> None:
    stored = values(5, (9, 8), 0, 300)
    squares = [min(i * i, 4095) for i in range(256)]
    modality = item(LUTDescriptor=[256, 10, 16], LUTData=np.uint16(squares).tobytes(), ModalityLUTType="US")
    looked_up = np.array(squares)[np.clip(stored.astype(int) - 10, 0, 255)]
    found = read_picture(make(stored, ModalityLUTSequence=[modality], WindowCenter=2000, WindowWidth=3000))
    assert np.abs(grey(found) - linear(looked_up, 2000, 3000)).max() <= 0.5 + 1e-9
    levels = [(i * 7) % 1024 for i in range(200)]
    voi = item(LUTDescriptor=[200, 20, 10])
    voi.add_new(0x00283006, "US", levels)
    found = read_picture(make(stored, VOILUTSequence=[voi], WindowCenter=2000, WindowWidth=3000))
    expected = np.array(levels)[np.clip(stored.astype(int) - 20, 0, 199)] * 255 / 1023
    assert np.abs(grey(found) - expected).max() <= 0.5 + 1e-9


def test_groups_of_an_enhanced_file() -> None:
    stored = values(6, (2, 9, 8))
    frames = [
        item(
            PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=-10, RescaleType="US")],
            FrameVOILUTSequence=[item(WindowCenter=3000, WindowWidth=5000)],
        )
        for slope in (2, 3)
    ]
    data = make(stored, PerFrameFunctionalGroupsSequence=frames, RescaleSlope=9, RescaleIntercept=9)
    for frame, slope in enumerate((2, 3)):
        expected = linear(stored[frame] * float(slope) - 10, 3000, 5000)
        assert np.abs(grey(read_picture(data, frame)) - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("bits", [8, 16])
def test_palette(bits: int) -> None:
    stored = values(7, (9, 8), 0, 200, np.uint8)
    tables = values(8, (3, 100), 0, 2**bits, np.uint8 if bits == 8 else np.uint16)
    tables[:, 0] = 2**bits - 1
    names = [f"{channel}PaletteColorLookupTable" for channel in ("Red", "Green", "Blue")]
    attributes = {f"{name}Descriptor": [100, 50, bits] for name in names}
    attributes |= {f"{name}Data": table.tobytes() for name, table in zip(names, tables, strict=True)}
    found = np.asarray(read_picture(make(stored, "PALETTE COLOR", **attributes)).image, np.float64)
    expected = tables[:, np.clip(stored.astype(int) - 50, 0, 99)].transpose(1, 2, 0) * 255.0 / (2**bits - 1)
    assert np.abs(found - expected).max() <= (0 if bits == 8 else 1)


def test_colours() -> None:
    stored = values(9, (9, 8, 3), 0, 256, np.uint8)
    assert np.array_equal(np.asarray(read_picture(make(stored, "RGB")).image), stored)
    red, green, blue = stored.astype(np.float64).transpose(2, 0, 1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # PS3.3 C.7.6.3.1.2
    ybr = np.stack([luma, (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128], -1)
    found = read_picture(make(np.clip(np.round(ybr), 0, 255).astype(np.uint8), "YBR_FULL"))
    assert np.abs(np.asarray(found.image, np.float64) - stored).max() <= 3
    with pytest.raises(ImageFault, match="a window has no meaning for colours"):
        read_picture(make(stored, "RGB"), window=(1.0, 2.0))
    deep = values(10, (9, 8, 3), 0, 2**16)
    found = read_picture(make(deep, "RGB"))
    assert np.abs(np.asarray(found.image, np.float64) - deep * 255.0 / 65535).max() <= 0.5 + 1e-9


def test_pixels_that_are_not_square_are_told() -> None:
    stored = values(11, (9, 8))
    found = read_picture(make(stored, PixelSpacing=[1.0, 0.5]))
    assert (
        found.image.size == (8, 9) and "not square (PixelSpacing 1 x 0.5); they were taken as stored" in found.notes[0]
    )
    assert not any("square" in note for note in read_picture(make(stored, PixelSpacing=[0.5, 0.5])).notes)


def test_what_cannot_be_read() -> None:
    for name, words in (
        ("rtplan.dcm", "not a DICOM image"),
        ("MR_small_jpeg_ls_lossless.dcm", "JPEG-LS Lossless.*no decoder is installed; needed is pylibjpeg"),
        ("MR_truncated.dcm", "ValueError"),
    ):
        if "jpeg_ls" in name and pydicom.pixels.get_decoder(JPEGLSLossless).is_available:
            continue
        with pytest.raises(ImageFault, match=words):
            read_picture(get_testdata_file(name, download=False))
    limit = pixel_limit()
    limit_pixels(100)
    try:
        with pytest.raises(ImageFault, match="110 pixels; data.max_image_pixels allows 100"):
            read_header(make(values(12, (10, 11))))
    finally:
        limit_pixels(limit)
    with pytest.raises(ImageFault, match="a window of width 0.5; LINEAR needs 1 or more"):
        read_picture(MR, window=(600.0, 0.5))
