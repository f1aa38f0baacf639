"""From measured values to the 256 levels of a screen: pure functions of arrays.

Levels are float32 on the scale of the screen, 0 black and 255 white, and keep all digits of the values; what a window
cuts off lies below or above. `on_screen` makes of them what is shown.
"""

from __future__ import annotations

import math

import numpy as np

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def windowed(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Levels by a window, as DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3 define it; values of any shape.

    ValueError for a width that the function has no meaning for: LINEAR needs 1 or more, the others more than 0.
    """
    if function not in FUNCTIONS:
        raise ValueError(f"the window function {function!r} is unknown; known are {', '.join(FUNCTIONS)}")
    least = 1.0 if function == "LINEAR" else 0.0
    if width < least or width <= 0:
        raise ValueError(f"a window of width {width:g}; {function} needs {'1 or more' if least else 'more than 0'}")
    values = np.asarray(values, np.float64)
    if function == "SIGMOID":
        share = 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)))
    elif function == "LINEAR" and width == 1:
        share = np.where(values > centre - 0.5, 1.0, 0.0)
    else:
        half = 0.5 if function == "LINEAR" else 0.0
        share = (values - (centre - half)) / (width - 2 * half) + 0.5
    return _levels(share)


def on_screen(levels: np.ndarray) -> np.ndarray:
    """Levels as uint8."""
    return np.round(np.clip(levels, 0.0, 255.0)).astype(np.uint8)


def stretched(values: np.ndarray, considered: np.ndarray | None = None) -> np.ndarray:
    """Levels from the least of the finite values to the greatest; what is not finite counts as 0.

    considered: bool of the same shape, the values that say what least and greatest are; all by default.
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    low, high = value_range(values, considered)
    return _levels((np.where(finite, values, 0.0) - low) / max(high - low, 1e-12))


def value_range(values: np.ndarray, considered: np.ndarray | None = None) -> tuple[float, float]:
    """The least and the greatest of the finite values, among those `considered`; (0, 0) where there is none."""
    counted = np.isfinite(values)
    if considered is not None and (counted & considered).any():
        counted = counted & considered
    return (float(values[counted].min()), float(values[counted].max())) if counted.any() else (0.0, 0.0)


def _levels(share: np.ndarray) -> np.ndarray:
    return (np.nan_to_num(share) * 255.0).astype(np.float32)


def parse_window(text: str) -> tuple[float, float] | None:
    """(centre, width) of "centre,width"; None for a text that is not two numbers, the width more than 0."""
    parts = text.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return None
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)) or numbers[1] <= 0:
        return None
    return numbers[0], numbers[1]
