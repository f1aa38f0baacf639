"""DICOM images: one frame as RGB, by the rules of the standard that say how values become grey levels or colours.

Stored values -> modality (rescale slope and intercept, or a table) -> values of interest (the window that is asked for,
else the file's table or first window, else least to greatest) -> grey levels; MONOCHROME1 is inverted. Palettes, RGB
and YBR become RGB. Where pixels are not square they stay as they are stored, and a note says so. Overlays are not
drawn. Nothing about the patient is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medvr_jax.inputs import intensities
from medvr_jax.inputs.image_formats import (
    Header,
    ImageFault,
    Picture,
    Window,
    WindowFault,
    check_frame,
    check_pixels,
    shown,
)

_GREY = ("MONOCHROME1", "MONOCHROME2")

# Files are read as they are; what is odd in fields that are not used is nobody's concern here.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # what it raises says the same in one line


def read_dataset(stream: BinaryIO) -> pydicom.Dataset:
    """Everything before the pixels; ImageFault where it describes none, or too many."""
    stream.seek(0)
    dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    if not dataset.get("Rows") or not dataset.get("Columns") or "PhotometricInterpretation" not in dataset:
        raise ImageFault("not a DICOM image: Rows, Columns and PhotometricInterpretation are needed")
    check_pixels(int(dataset.Columns), int(dataset.Rows))
    return dataset


def header_of(dataset: pydicom.Dataset) -> Header:
    """What it says of the frames."""
    return Header("DICOM", (int(dataset.Columns), int(dataset.Rows)), max(int(dataset.get("NumberOfFrames") or 1), 1))


def read_frame(stream: BinaryIO, frame: int = 0, window: Window | None = None) -> Picture:
    """One frame; `window` goes before what the file says. ImageFault if it cannot be read."""
    dataset = read_dataset(stream)
    header = header_of(dataset)
    check_frame(frame, header)
    _check_decoder(dataset)
    values = np.asarray(_stored(stream, dataset, frame))
    interpretation = str(dataset.PhotometricInterpretation)
    notes = tuple(_aspect_notes(dataset, frame))
    if interpretation in _GREY and values.ndim == 2:
        levels, applied, told = _grey_levels(values, dataset, frame, window)
        if interpretation == "MONOCHROME1":
            levels = 255 - levels
            told.append("MONOCHROME1: low values are shown bright")
        deep = None if levels.dtype == np.uint8 else levels
        image = Image.fromarray(levels).convert("RGB") if deep is None else shown(deep)
        return Picture(image, header, applied, (*notes, *told), deep)
    if window is not None:
        raise WindowFault(f"a window has no meaning for colours ({interpretation}); leave it out")
    if interpretation == "PALETTE COLOR":
        values = _palette(values, dataset)
    elif values.ndim == 3:
        values = _eight_bits(values, int(dataset.get("BitsStored") or 8))
    if values.ndim != 3 or values.shape[2] < 3:
        raise ImageFault(f"found PhotometricInterpretation {interpretation}, which is not known here")
    return Picture(Image.fromarray(np.ascontiguousarray(values[..., :3], np.uint8)), header, None, notes)


# ------------------------------------------------------------------------------------------------- stored values


def _transfer_syntax(dataset: pydicom.Dataset) -> Any:
    """How the file is encoded; very old ones do not say, and their reader found out."""
    found = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if found:
        return found
    implicit, little = dataset.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _check_decoder(dataset: pydicom.Dataset) -> None:
    """ImageFault where nothing that is installed decodes the pixels."""
    syntax = _transfer_syntax(dataset)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise ImageFault(f"compressed as {syntax.name}, which pydicom does not know") from error
    if decoder.is_available:
        return
    raise ImageFault(f"compressed as {syntax.name}, for which no decoder is installed; needed is {_others(decoder)}")


def _others(decoder: Any) -> str:
    """What to install to have one more decoder; empty where there is nothing."""
    needed = [text.partition(" requires ")[2] for text in decoder.missing_dependencies]
    return next((text for text in needed if "gdcm" not in text), "")


def _stored(stream: BinaryIO, dataset: pydicom.Dataset, frame: int) -> np.ndarray:
    """A frame's values as stored: [rows, columns], or [rows, columns, 3] with YBR turned into RGB."""
    syntax, source = _transfer_syntax(dataset), stream
    stream.seek(0)
    told = hasattr(dataset, "file_meta") and dataset.file_meta.get("TransferSyntaxUID")
    if not told or syntax.is_deflated:  # else this frame alone is read
        source = pydicom.dcmread(stream, force=True)
        source.file_meta = pydicom.dataset.FileMetaDataset()
        source.file_meta.TransferSyntaxUID = syntax
    try:
        return pixel_array(source, index=frame)
    except RuntimeError as error:
        more = _others(get_decoder(syntax)) if syntax.is_compressed and not syntax.is_deflated else ""
        raise ImageFault(f"{error}{f'; another decoder may: {more}' if more else ''}") from error


# ----------------------------------------------------------------------------------------------- grey and colours


def _grey_levels(
    stored: np.ndarray, dataset: pydicom.Dataset, frame: int, window: tuple[float, float] | None
) -> tuple[np.ndarray, tuple[float, float] | None, list[str]]:
    """Levels of stored values, float32 or, where 8 bits hold all of them, uint8; the window that was applied; notes."""
    modality = _group(dataset, frame, "PixelValueTransformationSequence")
    interest = _group(dataset, frame, "FrameVOILUTSequence")
    values, rescaled = _rescaled(stored, modality)
    function = str(interest.get("VOILUTFunction") or "LINEAR")
    if window is not None:
        return _windowed(values, window, function), window, []
    if table := interest.get("VOILUTSequence"):
        found, bits = _looked_up(np.round(values), table[0])
        return (found * (255.0 / (2**bits - 1))).astype(np.float32), None, ["the file's VOI table was applied"]
    own = _own_window(interest)
    if own is not None:
        try:
            return _windowed(values, own, function), own, _told_window(interest, own)
        except ImageFault:
            pass  # a file's own nonsense, such as a width of 0
    bits = int(dataset.get("BitsStored") or 16)
    if bits <= 8 and not rescaled and stored.min(initial=0) >= 0:
        return _eight_bits(stored, bits), None, []
    counted = ~_padding(stored, dataset)
    low, high = intensities.value_range(values, counted)
    note = f"the file has no window: its values from {low:g} to {high:g} were spread over the grey levels"
    return intensities.stretched(values, counted), None, [note]


def _rescaled(stored: np.ndarray, group: pydicom.Dataset) -> tuple[np.ndarray, bool]:
    """Values in the unit of the modality, and whether they differ from what is stored."""
    if table := group.get("ModalityLUTSequence"):
        return _looked_up(stored, table[0])[0], True
    slope, intercept = group.get("RescaleSlope"), group.get("RescaleIntercept")
    slope, intercept = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    return stored.astype(np.float64) * slope + intercept, (slope, intercept) != (1.0, 0.0)


def _windowed(values: np.ndarray, window: tuple[float, float], function: str) -> np.ndarray:
    try:
        return intensities.windowed(values, *window, function)
    except ValueError as error:
        raise WindowFault(str(error)) from error


def _own_window(group: pydicom.Dataset) -> tuple[float, float] | None:
    """The first window of the file."""
    pair = [_numbers(group.get(name)) for name in ("WindowCenter", "WindowWidth")]
    return (pair[0][0], pair[1][0]) if all(pair) else None


def _told_window(group: pydicom.Dataset, window: tuple[float, float]) -> list[str]:
    others = len(_numbers(group.get("WindowCenter"))) - 1
    more = f", the first of {others + 1} that it has" if others > 0 else ""
    return [f"the file's own window was applied: centre {window[0]:g}, width {window[1]:g}{more}"]


def _numbers(value: Any) -> list[float]:
    """One number or several as a list; empty where there is none."""
    if value is None or value == "":
        return []
    several = [value] if isinstance(value, (int, float, str)) else list(value)
    return [float(number) for number in several]


def _padding(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Which pixels only fill the rectangle: bool, of the shape of the stored values."""
    first = dataset.get("PixelPaddingValue")
    if not isinstance(first, int):
        return np.zeros(stored.shape, bool)
    last = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((first, last if isinstance(last, int) else first))
    return (stored >= low) & (stored <= high)


def _looked_up(values: np.ndarray, item: pydicom.Dataset) -> tuple[np.ndarray, int]:
    """Values through a modality or VOI table, float64, and the bits of its entries."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    table = _entries(item.LUTData, entries or 2**16)
    return _through(table, values, first).astype(np.float64), bits


def _palette(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """[rows, columns] stored values -> [rows, columns, 3] uint8."""
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        colours = apply_color_lut(stored, dataset)[..., :3].astype(np.int64)
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    else:
        channels = []
        for channel in ("Red", "Green", "Blue"):
            descriptor = dataset.get(f"{channel}PaletteColorLookupTableDescriptor")
            data = dataset.get(f"{channel}PaletteColorLookupTableData")
            if descriptor is None or data is None:
                raise ImageFault(f"PALETTE COLOR without a table for {channel.lower()}")
            entries, first, bits = (int(number) for number in descriptor)
            channels.append(_through(_entries(data, entries or 2**16), stored, first))
        colours = np.stack(channels, axis=-1)
    return np.clip(colours >> 8 if bits == 16 and colours.max(initial=0) > 255 else colours, 0, 255).astype(np.uint8)


def _entries(data: Any, count: int) -> np.ndarray:
    """A table's entries int64; bytes are of 8 or 16 bits, as their number says."""
    if isinstance(data, bytes):
        wide = len(data) >= 2 * count
        return np.frombuffer(data, "<u2" if wide else "u1")[:count].astype(np.int64)
    return np.atleast_1d(np.asarray(data, np.int64))[:count]


def _through(table: np.ndarray, values: np.ndarray, first: int) -> np.ndarray:
    """What the table has for each value; those before the first one and after the last take theirs."""
    if first >= 2**15 and values.min(initial=0) < 0:  # a negative number that was read as a positive one
        first -= 2**16
    return table[np.clip(values.astype(np.int64) - first, 0, len(table) - 1)]


def _eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned values of so many bits as levels."""
    return np.round(np.minimum(values * (255.0 / (2**bits - 1)), 255.0)).astype(np.uint8)


# --------------------------------------------------------------------------------------------------------- groups


def _group(dataset: pydicom.Dataset, frame: int, sequence: str) -> pydicom.Dataset:
    """Where a frame's attributes of one kind stand: its own group, that of all frames, or the file itself."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*per_frame[frame : frame + 1], *(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]):
        if found := group.get(sequence):
            return found[0]
    return dataset


def _aspect_notes(dataset: pydicom.Dataset, frame: int) -> Iterator[str]:
    """A note where pixels are not square (PixelSpacing and PixelAspectRatio give the vertical number first)."""
    measures = _group(dataset, frame, "PixelMeasuresSequence")
    for name in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        pair = _numbers(measures.get(name)) or _numbers(dataset.get(name))
        if len(pair) == 2 and min(pair) > 0:
            if abs(pair[0] / pair[1] - 1) > 0.01:
                yield f"pixels are not square ({name} {pair[0]:g} x {pair[1]:g}); they were taken as stored"
            return
