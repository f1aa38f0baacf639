"""Windows on DICOM: the values of the file count, those that its own window cuts off, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from medvr_jax.inputs.images import PreparedImage, load_original
from medvr_jax.rollout.tools import run_tool_call, tools_by_name
from medvr_jax.rollout.tools.calls import ToolCall

NAME = "image_window_tool"
SEEN = PreparedImage(np.zeros((8, 1), np.float32), (1, 4, 8), resized_size=(112, 56), original_size=(200, 100))


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("own_window", [None, (40, 400)])
@pytest.mark.parametrize("window", [[20, 30], [100.5, 160.25], [-300, -2], [256, 900]])
def test_a_window_reaches_what_the_file_holds(
    tmp_path: Path, window: list[float], own_window: tuple[int, int] | None, inverted: bool
) -> None:
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for name in ("WindowCenter", "WindowWidth"):
        if name in dataset:
            del dataset[name]
    if own_window:
        dataset.WindowCenter, dataset.WindowWidth = own_window
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    file = tmp_path / "image.dcm"
    dataset.save_as(file)
    values = dataset.pixel_array.astype(np.float64) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    if own_window:  # DICOM PS3.3, C.11.2.1.2.1
        centre, width = own_window
        shown = ((values - (centre - 0.5)) / (width - 1) + 0.5) * 255
    else:
        shown = (values - values.min()) / (values.max() - values.min()) * 255
    shown = 255 - shown if inverted else shown
    original = load_original(file)
    assert np.abs(np.asarray(original.shown)[..., 0] - np.clip(shown, 0, 255)).max() < 0.51
    result = run_tool_call(ToolCall(NAME, {"window": window}), tools_by_name([NAME]), original, SEEN)
    if window[1] <= min(shown.min(), 0) or window[0] >= max(shown.max(), 255):
        assert result.error is not None and "outside the grey values" in result.error
        return
    exact = np.interp(shown, window, [0, 255])
    assert np.abs(np.asarray(result.image) - exact).max() < 0.52
    if own_window:  # these windows show what the file's own one does not
        assert np.ptp(exact) > 100
