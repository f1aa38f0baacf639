"""The page of a made-up run: whole, self-contained, and safe whatever the texts say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvr_jax.errors import UserError
from medvr_jax.reports import charts, groups, summary
from medvr_jax.reports.metrics import json_line, read_json_lines, read_metrics
from medvr_jax.reports.page import _KEY, render, tiles, write_report
from medvr_jax.reports.rollouts import rollout_steps, write_rollouts
from medvr_jax.reports.text import escape, number, percent, signed
from tests.reports.made_run import NASTY, SIDE, make_run

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """Keeps tags, attributes and text, and fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.last_line = ""

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "nasty", steps=12, groups=4, size=6, nasty=True)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text("utf-8")


def test_page_is_well_formed_and_has_its_parts(page: str) -> None:
    reader = read(page)
    count = [tag for tag, _ in reader.tags].count
    assert count("article") == 8  # four of the last step, four of the first
    assert len(re.findall('class="panel"', page)) == len(charts.PANELS) + 1
    assert count("details") == 8 * 6 + 1
    assert "Step 0, before the first update" in page and "Step 11, after 11 updates" in page
    assert page.index("Step 11") < page.index("Step 0,")


def test_nothing_comes_from_outside(page: str) -> None:
    for tag, attributes in read(page).tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            if attributes.get(name):
                assert attributes[name].startswith(("#", "data:")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_texts_are_escaped(page: str) -> None:
    assert "<script>alert" not in page and "onerror=alert(1)>" not in page
    reader = read(page)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    text = "".join(reader.texts)
    shown = NASTY.replace("\x00", "\ufffd").replace("\ud800", "?")
    assert text.count(shown) >= 5  # question, option, prediction, turn and observation, as they were
    assert "\x00" not in page


def test_policy_allows_the_pages_own_script_only(page: str) -> None:
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    fingerprint = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = dict(read(page).tags[3][1])["content"]
    assert f"script-src 'sha256-{fingerprint}'" in policy and "default-src 'none'" in policy


def test_charts_carry_their_numbers(page: str, run: Path) -> None:
    rows = read_json_lines(run / "metrics.jsonl")
    charts_ = [attributes for tag, attributes in read(page).tags if attributes.get("class") == "chart"]
    first = json.loads(charts_[0]["data-points"])
    assert first["lines"][0] == [[row["step"], row["eval/accuracy"]] for row in rows if "eval/accuracy" in row]
    assert charts_[0]["aria-label"].startswith("Held-out questions: accuracy from 0.")


def test_page_is_the_same_twice(run: Path, page: str) -> None:
    assert write_report(run).read_text("utf-8") == page


def test_summary_and_table_markup(run: Path, page: str) -> None:
    text = (run / "report" / "summary.md").read_text()
    assert "| held-out accuracy (`eval/accuracy`) |" in text and "12 updates" in text
    rows = [line for line in text.partition("## Where the time went")[0].splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json_line({"step": 0, "reward/total": 0.5, "odd": "text"}))
    read(write_report(tmp_path).read_text())
    (tmp_path / "metrics.jsonl").write_text(json_line({"step": 3, "reward/total": None, "train/kl": 0}))
    read(write_report(tmp_path).read_text())


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no metrics\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl holds no row"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_compilations_of_a_resumed_run_add_up() -> None:
    """Each process counts from 0, and the second may well have compiled more by its first step than the first did."""
    rows = [{"step": step, "compilations": count} for step, count in enumerate([50, 50, 53, 53])]
    assert "- Compilations: 50, the last by step 0.\n" in summary.render("run", rows[:2])
    rows[2] |= {"resumed": True}
    text = "- Compilations: 103, the last by step 2; resumed, and so compiled anew, with step 2.\n"
    assert text in summary.render("run", rows)
    rows.append({"step": 4, "compilations": 54})
    assert "- Compilations: 104, the last by step 4; resumed" in summary.render("run", rows)
    assert "<small>the last by step 4; resumed, and so compiled anew, with step 2</small>" in tiles(rows)
    older = [{"step": step, "compilations": count} for step, count in enumerate([50, 50, 48, 48])]
    assert "- Compilations: 98, the last by step 2.\n" in summary.render("run", older)


def test_missing_images_and_strange_paths(run: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "copy"
    shutil.copytree(run, workdir)
    shutil.rmtree(workdir / "rollouts" / "images")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    for path in rollout_steps(workdir).values():
        path.write_text(path.read_text().replace("rollouts/images/", "../../"))
    page = write_report(workdir).read_text()
    assert "data:image" not in page
    read(page)
    assert groups.load_picture(workdir, "../secret.png") == ("data:,", (100, 100))


# ---- rollouts --------------------------------------------------------------------------------------------------------


def test_rollout_files_and_images(tmp_path: Path) -> None:
    Image.new("I;16", (2000, 500)).save(tmp_path / "wide.png")
    records = [{"prompt_id": name, "entropy": [float("nan")], "text": "é\u2028"} for name in ("a/../b", "c")]
    path = write_rollouts(tmp_path, 7, records, {"a/../b": tmp_path / "wide.png"})
    assert path.name == "step_000007.jsonl" and rollout_steps(tmp_path) == {7: path}
    first, second = read_json_lines(path)
    assert first["entropy"] == [None] and first["text"] == "é\u2028" and second["image"] is None
    with Image.open(tmp_path / first["image"]) as image:
        assert image.size == (768, 192) and image.mode == "RGB"
    assert not list(tmp_path.rglob("*.new"))


def test_steps_are_sorted_by_number(tmp_path: Path) -> None:
    for step in (1_000_000, 2, 999_999):
        write_rollouts(tmp_path, step, [])
    assert list(rollout_steps(tmp_path)) == [2, 999_999, 1_000_000]


# ---- drawing ---------------------------------------------------------------------------------------------------------


def test_outline_goes_round_the_mask_once() -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:5, 1:7] = True
    mask[3, 3:5] = False  # a hole
    segments = re.findall(r"M([\d.]+) ([\d.]+)([HV])([\d.]+)", groups.outline(mask, (8, 8)))
    length = sum(abs(float(end) - float(x if way == "H" else y)) for x, y, way, end in segments)
    assert length == 2 * (3 + 6) + 2 * (1 + 2)


def test_agreement_is_the_rewards_own() -> None:
    record = {"true_boxes": [], "correct": True}
    same = [record | {"boxes": [[0, 0, 0.5, 0.5]]} for _ in range(2)] + [record | {"boxes": []}]
    agreed = groups.agreement(same, 64)
    assert agreed[:32, :32].all() and agreed.sum() == 32 * 32
    assert groups.covered(agreed, [[0.25, 0.25, 0.75, 0.75]]) == 0.25
    np.testing.assert_array_equal(groups.agreement(same, 8), agreed[::8, ::8])


def test_the_consensus_is_drawn_on_the_runs_own_raster(run: Path) -> None:
    page = render(run, read_metrics(run / "metrics.jsonl"), 4, raster=8)
    outlines = [path for path in re.findall(r'class="agreed" d="([^"]+)"', page) if path not in str(_KEY)]
    assert outlines
    pixel = SIDE / 8
    assert all(float(place) % pixel == 0 for path in outlines for place in re.findall(r"[\d.]+", path))


def test_forks_follow_their_parents() -> None:
    def slot(number: int, origin: str = "base", parent: int | None = None) -> dict:
        return {"slot": number, "origin": origin, "parent": parent}

    records = [
        slot(0),
        slot(1),
        slot(2, "fork", 1),
        slot(3, "fresh"),
        slot(4, "fork", 0),
        slot(5, "fork", 4),
        slot(6, "fork", 9),
    ]
    order = [(record["slot"], depth) for record, depth in groups.family_order(records)]
    assert order == [(0, 0), (4, 1), (5, 2), (1, 0), (2, 1), (6, 0), (3, 0)]


def test_ticks_and_limits() -> None:
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert charts.ticks(-0.031, 0.052) == [-0.02, 0, 0.02, 0.04]
    assert charts.limits([0.3], 0, 1) == (0, 1)
    assert charts.limits([0.3, 1.4], 0, 1) == (0, 1.4)
    for values in ([0.0], [5.0, 5.0], [-2.0]):
        low, high = charts.limits(values, 0, None)
        assert low < high


def test_long_runs_are_thinned_to_means() -> None:
    line = [(float(i), 2.0 * i) for i in range(10_000)]
    thin = charts.thinned(line, 400)
    assert len(thin) == 400 and thin[0][1] == np.mean([2 * i for i in range(25)])
    assert charts.thinned([(0, None), (1, None)], 1) == [(1, None)]


def test_texts_and_numbers() -> None:
    assert escape("<&\"'>\x00\x1b") == "&lt;&amp;&quot;&#x27;&gt;\ufffd\ufffd"
    shown = [number(v) for v in (0.0, 2.0, -3.5, 0.12345, 1234.5, 2.3e-6, -2.3e-6, 1e7, None)]
    assert shown == ["0", "2", "−3.5", "0.123", "1,234", "2.3e-6", "−2.3e-6", "1.0e7", "–"]
    assert signed(-0.456) == "−0.46" and signed(None) == "–" and percent(0.934) == "93\u00a0%"
