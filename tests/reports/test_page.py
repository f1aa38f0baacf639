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
from medvr_jax.reports import charts, packing, summary
from medvr_jax.reports.agreement import agreement
from medvr_jax.reports.metrics import json_line, read_json_lines
from medvr_jax.reports.page import chosen_groups, read_picture, tiles, write_report
from medvr_jax.reports.rollouts import rollout_steps, write_rollouts
from medvr_jax.reports.text import escape, number, percent, signed
from tests.reports.made_run import NASTY, make_run, trajectory

SECTIONS = ("overview", "trajectories", "figures")
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
    assert len(re.findall('class="panel"', page)) == len(charts.PANELS) + 1
    assert [attributes["id"] for tag, attributes in reader.tags if tag == "section"] == list(SECTIONS)
    groups = [attributes for tag, attributes in reader.tags if attributes.get("type") == "application/json"]
    assert len(groups) == 4 + 4 + 2  # of the first and the last step; the vocabulary and the index


def test_nothing_comes_from_outside(page: str) -> None:
    for tag, attributes in read(page).tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            if attributes.get(name):
                assert attributes[name].startswith(("#", "data:")), (tag, attributes)
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_data_cannot_leave_its_place(page: str) -> None:
    """Whatever texts say, no script ends early and none begins; what they say is kept."""
    assert "<script>alert" not in page and "onerror=alert(1)>" not in page
    reader = read(page)
    assert [attributes for tag, attributes in reader.tags if tag == "script" and not attributes] == [{}, {}]
    found = re.search(r'<script type="application/json" id="group-0">(.*?)</script>', page, re.DOTALL)[1]
    assert not set("<>&") & set(found)
    group = json.loads(found)
    shown = NASTY.replace("\ud800", "?")  # as it was written into the run's files
    assert group["question"] == group["options"][0] == group["trajectories"][0]["prediction"] == shown


def test_policy_allows_the_pages_own_script_and_style_only(page: str) -> None:
    policy = dict(read(page).tags[3][1])["content"]
    texts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    fingerprints = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]
    assert f"script-src {' '.join(fingerprints)};" in policy and len(fingerprints) == 2
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy


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
    rows = [line for line in text.splitlines() if line.startswith("|")]
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
    assert read_picture(workdir, "../secret.png") is None


def test_groups_are_shared_evenly_among_steps(tmp_path: Path) -> None:
    for step in range(0, 50, 10):
        write_rollouts(
            tmp_path, step, [{"group": group, "slot": 0, "step": step, "prompt_id": ""} for group in range(8)]
        )

    def chosen(count: int) -> list[tuple[int, int]]:
        return [(group[0]["step"], group[0]["group"]) for group, _ in chosen_groups(tmp_path, count)]

    assert chosen(100) == [(step, group) for step in range(0, 50, 10) for group in range(8)]
    assert chosen(7) == [(0, 0), (10, 0), (20, 0), (30, 0), (30, 1), (40, 0), (40, 1)]
    assert chosen(3) == [(0, 0), (20, 0), (40, 0)] and chosen(1) == [(40, 0)] and chosen(0) == []


# ---- rollouts --------------------------------------------------------------------------------------------------------


def test_rollout_files_and_images(tmp_path: Path) -> None:
    Image.new("I;16", (2000, 500)).save(tmp_path / "wide.png")
    records = [{"prompt_id": name, "entropy": [float("nan")], "text": "é\u2028"} for name in ("a/../b", "c")]
    path = write_rollouts(tmp_path, 7, records, {"a/../b": tmp_path / "wide.png"})
    assert path.name == "step_000007.jsonl" and rollout_steps(tmp_path) == {7: path}
    first, second = read_json_lines(path)
    assert first["entropy"] == [None] and first["text"] == "é\u2028" and second["image"] is None
    with Image.open(tmp_path / first["image"]) as image:
        assert image.format == "JPEG" and image.size == (768, 192) and image.mode == "L"
    assert not list(tmp_path.rglob("*.new"))


def test_steps_are_sorted_by_number(tmp_path: Path) -> None:
    for step in (1_000_000, 2, 999_999):
        write_rollouts(tmp_path, step, [])
    assert list(rollout_steps(tmp_path)) == [2, 999_999, 1_000_000]


# ---- drawing ---------------------------------------------------------------------------------------------------------


def test_numbers_survive_the_packing() -> None:
    rng = np.random.default_rng(0)
    record = trajectory(rng, 0, 0, 0, 0.5, np.array([0.5, 0.5]))
    record |= {"sampled": [False, True, True], "pieces": ["a", "b", "a"], "token_ids": [7, 8, 7]}
    record |= {"entropy": [0.0, 1.2345, None], "log_probabilities": [0.0, -99.0, -0.5]}
    words = packing.Vocabulary()
    words.number(["x", "a"], [1, 7])
    packed = packing.group_piece([record], None, agreement([record], 64), words)["trajectories"][0]

    def numbers(name: str) -> list[int]:
        return np.frombuffer(base64.b64decode(packed[name]), "<u2").tolist()

    assert packed["sampled"] == [0, 1, 2]
    assert numbers("entropy") == [0, 1234, packing.UNKNOWN] and numbers("surprise") == [0, packing.UNKNOWN - 1, 500]
    assert numbers("tokens") == [1, 2, 1] and words.packed() == {"pieces": ["x", "a", "b"], "ids": [1, 7, 8]}


def test_disagreement() -> None:
    def group(*answers: str | None) -> list[dict]:
        return [{"prediction": answer} for answer in answers]

    assert packing.disagreement(group("A", "A")) == 0 and packing.disagreement(group("A", None)) == 0.5
    assert packing.disagreement(group(*"ABCD")) == 0.75


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
