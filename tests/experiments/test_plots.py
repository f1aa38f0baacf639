"""Bands, error bars and rows lie where their numbers say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np

from medvr_jax.experiments.plots import Line, Plot, RowPlot, draw, draw_rows


def of_class(svg: str, name: str) -> list[dict[str, str]]:
    return [dict(node.attrib) for node in ElementTree.fromstring(svg).iter() if node.get("class") == name]


def circles(svg: str) -> np.ndarray:
    found = [node for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("circle")]
    return np.array([[float(node.get("cx", "")), float(node.get("cy", ""))] for node in found])


def places(path: str) -> np.ndarray:
    return np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path), float)


def test_a_band_lies_around_its_line() -> None:
    """The line of twice the errors has a band twice as wide; the axis holds both."""
    points, errors = [(0.0, 0.2), (5.0, 0.4), (10.0, 0.9)], np.array([0.05, 0.0, 0.1])
    svg = draw(Plot("t", "x", "y", [Line("one", points, errors.tolist()), Line("two", points, (2 * errors).tolist())]))
    line = places(of_class(svg, "line")[0]["d"])
    scale = (line[0, 1] - line[2, 1]) / 0.7  # pixels of 1
    for factor, band in zip((1, 2), of_class(svg, "band"), strict=True):
        found = places(band["d"])
        low, high = found[:3], found[:2:-1]
        np.testing.assert_allclose(low[:, 0], line[:, 0])
        np.testing.assert_allclose(low[:, 1] - line[:, 1], factor * errors * scale, atol=0.11)
        np.testing.assert_allclose(line[:, 1] - high[:, 1], factor * errors * scale, atol=0.11)
        assert found[:, 1].min() >= 40 and found[:, 1].max() <= 236
    assert not of_class(svg, "error") and ".band" in svg


def test_points_have_error_bars() -> None:
    svg = draw(Plot("t", "x", "y", [Line("one", [(1.0, 0.5), (2.0, 0.7)], [0.1, 0.2], marks=True)]))
    (x1, y1), (x2, y2) = circles(svg)
    scale = (y1 - y2) / 0.2
    bars = [re.fullmatch(r"M(\S+) (\S+)V(\S+)", bar["d"]).groups() for bar in of_class(svg, "error")]
    for (x, low, high), place, value, error in zip(bars, (x1, x2), (y1, y2), (0.1, 0.2), strict=True):
        assert float(x) == place
        np.testing.assert_allclose([float(low) - value, value - float(high)], error * scale, atol=0.2)
    assert not of_class(svg, "band")


def test_one_point_can_be_drawn() -> None:
    svg = draw(Plot("t", "x", "y", [Line("one", [(0.5, 0.5)], [0.0], marks=True)]))
    assert len(circles(svg)) == 1 and "nan" not in svg


def test_more_lines_than_colours_differ() -> None:
    svg = draw(Plot("t", "x", "y", [Line(str(i), [(0, i), (1, i)]) for i in range(10)]))
    styles = [(line["style"], line["stroke-dasharray"]) for line in of_class(svg, "line")]
    assert len(set(styles)) == 10 and len(styles) == 20


def test_rows_are_drawn_to_scale() -> None:
    svg = draw_rows(
        RowPlot("a < b", "x", [("one", 0.2, 0.1), ("a name that is much too long to be shown whole", 0.6, None)])
    )
    (x1, y1), (x2, y2) = circles(svg)
    assert x1 < x2 and y1 < y2
    (bar,) = of_class(svg, "error")
    left, _, right = re.fullmatch(r"M(\S+) (\S+)H(\S+)", bar["d"]).groups()
    np.testing.assert_allclose([x1 - float(left), float(right) - x1], 0.1 * (x2 - x1) / 0.4, atol=0.11)
    names = [node.text for node in ElementTree.fromstring(svg).iter() if node.get("class") == "name"]
    assert names[0] == "one" and names[1].endswith("…")
