"""The masking test on the page: its figures, what was blanked, and the answers before and after."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvr_jax.reports.masking import section
from medvr_jax.reports.page import write_report
from tests.evaluation.looking_policy import SIDE
from tests.reports.browser import CONTRAST, Watched, index, launched, text
from tests.reports.made_masking import make_masking
from tests.reports.made_run import NASTY, make_run
from tests.reports.test_page import read


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_run(tmp_path_factory.mktemp("runs") / "run", steps=12, groups=4, size=8)
    make_masking(made)
    write_report(made)
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as started:
        yield started


def test_figures_and_questions(run: Path) -> None:
    html = section(run)
    read(html)
    figures = json.loads((run / "evaluation" / "results.json").read_text())["masking"]["overall"]
    assert (
        figures["masks"]["zoomed"]["changed"]["mean"] == 0.5 and figures["differences"]["lesion"]["difference"] == 0.5
    )
    assert html.count("50\u00a0% [") >= 2 and html.count("+50.0 [+") == 2
    assert html.count('<article class="masked">') == 12 and html.count(">yes<") == 6 * 2


def test_regions_are_drawn_where_they_were(run: Path) -> None:
    shown = json.loads((run / "evaluation" / "masking_shown" / "shown.json").read_text())
    pictures = re.findall(r'<svg class="canvas".*?</svg>', section(run))
    assert len(pictures) == len(shown) == 12
    for entry, drawing in zip(shown, pictures, strict=True):
        assert f'viewBox="0 0 {SIDE} {SIDE}"' in drawing and drawing.count("data:image/jpeg;base64,") == 1
        for one in entry["masks"]:
            d = re.search(rf'<path class="blanked {one["mask"]}" d="([^"]*)"', drawing)[1]
            numbers = [float(number) for number in re.findall(r"[\d.]+", d)]
            ((x1, y1, x2, y2),) = one["region"]
            np.testing.assert_allclose(numbers, [SIDE * v for v in (x1, y1, x2, y2, x1)], atol=0.06)


def test_no_test_no_section(tmp_path: Path) -> None:
    assert section(tmp_path) == ""
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "results.json").write_text('{"accuracy": 1.0}')
    assert section(tmp_path) == ""
    (tmp_path / "evaluation" / "results.json").write_text("{")
    assert section(tmp_path) == ""


def test_a_missing_picture_and_one_from_elsewhere(tmp_path: Path) -> None:
    make_masking(tmp_path, count=3)
    folder = tmp_path / "evaluation" / "masking_shown"
    (folder / "0.jpg").rename(tmp_path / "secret.jpg")
    shown = json.loads((folder / "shown.json").read_text())
    (folder / "shown.json").write_text(json.dumps([shown[0], shown[1] | {"image": "../../secret.jpg"}, shown[2]]))
    html = section(tmp_path)
    read(html)
    assert html.count('<article class="masked">') == 3 and html.count("data:image") == 1


def test_hostile_texts_are_texts(tmp_path: Path) -> None:
    nasty = NASTY.replace("\ud800", "")
    make_masking(tmp_path, count=3, texts={"question": nasty, "options": (nasty, "b", "c", "d"), "dataset": nasty})
    html = section(tmp_path)
    reader = read(html)
    assert "<script" not in html and "onerror=alert(1)>" not in html and "{{7*7}}" in html
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_the_browser(browser: Any, run: Path, scheme: str) -> None:
    with Watched(browser, index(run), color_scheme=scheme) as page:
        page.keyboard.press("4")
        page.wait_for_selector("#masking article")
        assert not page.locator("#overview").is_visible() and page.locator("#masking article").count() == 12
        assert text(page, '#top nav a[aria-current="page"]') == "Masking"
        outline = page.locator("#masking .blanked.zoomed").first
        assert outline.evaluate("path => getComputedStyle(path).fill") == "none"
        control = page.locator("#masking .blanked.random").first
        assert control.evaluate("path => getComputedStyle(path).strokeDasharray") != "none"
        seen = page.evaluate(CONTRAST)
        assert seen["texts"] > 100 and seen["weak"] == [] and seen["nameless"] == []
        page.keyboard.press("1")
        page.wait_for_selector("#overview .panel")


def test_on_a_narrow_screen(browser: Any, run: Path) -> None:
    with Watched(browser, index(run), "#masking", viewport={"width": 360, "height": 740}) as page:
        assert page.locator("#masking article").first.is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
