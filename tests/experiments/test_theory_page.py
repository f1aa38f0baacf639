"""`docs/theory.md`: its figures are what the command draws, and the numbers of its table are the theory's."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from medvr_jax.experiments import figures, plots, theory
from medvr_jax.experiments.theory import BoxKinds

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "theory.md").read_text(encoding="utf-8")


def numbers(svg: str) -> tuple[str, np.ndarray]:
    """The text without its numbers, and the numbers."""
    pattern = r"-?\d+\.?\d*"
    return re.sub(pattern, "#", svg), np.array([float(x) for x in re.findall(pattern, svg)])


def test_the_page_shows_every_figure() -> None:
    assert set(re.findall(r"\(theory/(\w+)\.svg\)", PAGE)) == set(figures.FIGURES)
    assert {path.stem for path in (DOCS / "theory").glob("*.svg")} == set(figures.FIGURES)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_the_committed_figure_is_what_the_command_draws(name: str) -> None:
    text, values = numbers(plots.draw(figures.FIGURES[name]()))
    committed_text, committed = numbers((DOCS / "theory" / f"{name}.svg").read_text(encoding="utf-8"))
    assert text == committed_text
    np.testing.assert_allclose(values, committed, atol=0.11)  # a coordinate may round the other way


def test_lines_are_drawn_to_scale() -> None:
    lines = [plots.Line("one", [(0, 0), (1, 0.5), (2, 1)]), plots.Line("two", [(0, 1)])]
    plot = plots.Plot("a < b", "x", "y", lines, 0, 1)
    root = ElementTree.fromstring(plots.draw(plot))
    paths = [node.get("d", "") for node in root.iter() if node.get("class") == "line"]
    places = np.array(re.findall(r"([\d.]+) ([\d.]+)", paths[0]), float)
    assert len(places) == 3 and len(paths) == 4  # a line and its sample, twice
    np.testing.assert_allclose(places[1], places[[0, 2]].mean(0), atol=0.1)
    assert places[0, 0] < places[2, 0] and places[0, 1] > places[2, 1]
    assert [node.text for node in root.iter() if node.get("class") == "name"] == ["one", "two"]


def table() -> list[tuple[str, list[float]]]:
    rows = re.findall(r"^\| ((?:one|42|56)[^|]*) \|(.*)\|$", PAGE, re.MULTILINE)
    return [(name, [float(x) for x in cells.split("|")]) for name, cells in rows]


def test_the_table_holds_the_theorys_numbers() -> None:
    rows = table()
    assert len(rows) == 5
    for name, (zero, at_seven_tenths, paid) in rows:
        found = re.match(r"(\d+) px boxes, (\d+) px lattice, η = (\.\d)", name)
        side, step, eta = (int(found[1]), int(found[2]), float(found[3])) if found else (42, 14, 0.5)
        hits = figures.around(step, side) if found else [(200, 200, 242, 242)]
        kinds = BoxKinds.of(hits, [(0, 0, 42, 42)])
        gaps = theory.tool_reward_gap(kinds, np.array([zero - 0.0006, zero + 0.0006, 0.7]), figures.CORRECT, eta=eta)
        assert gaps[0] < 0 < gaps[1], name
        assert gaps[2] == pytest.approx(at_seven_tenths, abs=6e-4), name
        rewards = theory.tool_reward_by_kind(kinds, 1.0, figures.CORRECT, eta=eta)
        assert rewards @ np.where(kinds.hit, kinds.chance, 0) == pytest.approx(paid, abs=6e-4), name
