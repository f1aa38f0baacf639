"""The viewer in a real browser: what it shows, how one moves in it, and that nothing gets in or out."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvr_jax.reports.metrics import read_json_lines
from medvr_jax.reports.page import write_report
from medvr_jax.reports.rollouts import rollout_steps
from medvr_jax.reports.viewer import groups_page
from tests.reports.browser import CONTRAST, Watched, index, launched, text
from tests.reports.made_run import NASTY, hostile_text, long_group, made_group, make_run, picture

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

RASTER = 64
LONG = "<b>long</b> " * 8_334  # 100 KB


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as started:
        yield started


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, moved to another folder after it was written."""
    made = make_run(tmp_path_factory.mktemp("made") / "run", steps=12, groups=4, size=8, nasty=True)
    write_report(made, raster=RASTER)
    return Path(shutil.move(made, tmp_path_factory.mktemp("elsewhere") / "moved run"))


@pytest.fixture(scope="module")
def records(run: Path) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """The recorded trajectories by step and group."""
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for step, path in rollout_steps(run).items():
        for record in read_json_lines(path):
            found.setdefault((step, record["group"]), []).append(record)
    return found


def written(tmp_path: Path, groups: list, **options: Any) -> Path:
    """A page of groups without a run."""
    file = tmp_path / "page.html"
    file.write_text(groups_page("A title", "A lead", groups, raster=RASTER, **options), "utf-8")
    return file


def votes(records: list[dict[str, Any]]) -> np.ndarray:
    """How many right trajectories looked at each pixel: a pixel is looked at where its centre lies in a box."""
    centres = (np.arange(RASTER) + 0.5) / RASTER
    counts = np.zeros((RASTER, RASTER), int)
    for record in records:
        looked = np.zeros((RASTER, RASTER), bool)
        for x1, y1, x2, y2 in record["boxes"]:
            looked |= ((y1 <= centres) & (centres < y2))[:, None] & ((x1 <= centres) & (centres < x2))[None]
        counts += looked & record["correct"]
    return counts


def test_a_group_has_its_boxes_votes_and_consensus(browser: Any, run: Path, records: dict) -> None:
    with Watched(browser, index(run), "#step=11&group=2&slot=0") as page:
        group = records[11, 2]
        assert text(page, ".where p").startswith("Step 11, group 2")
        for kind, right in (("right", True), ("wrong", False)):
            expected = sum(len(r["boxes"]) for r in group if r["correct"] is right)
            assert page.locator(f".canvas .box.{kind}").count() == expected
        assert page.locator(".canvas .truth:not(.under)").count() == 1
        counts = votes(group)
        areas = page.locator(".canvas .heat path").evaluate_all(
            "paths => paths.map(path => [...path.getAttribute('d').matchAll(/M(\\d+) \\d+H(\\d+)/g)]"
            ".reduce((sum, found) => sum + Number(found[2]) - Number(found[1]), 0))"
        )
        assert areas == [int((counts == n).sum()) for n in range(1, counts.max() + 1) if (counts == n).any()]
        mask = np.pad(counts > sum(r["correct"] for r in group) / 2, 1)
        border = (np.diff(mask.astype(int), axis=0) != 0).sum() + (np.diff(mask.astype(int), axis=1) != 0).sum()
        assert mask.any() and text_of_border(page) == border
        box = page.locator(".canvas .box.right").first
        assert box.is_visible()
        page.locator('.keys input[data-layer="boxes"]').uncheck()
        assert not box.is_visible()


def text_of_border(page: Any) -> int:
    return page.locator(".canvas .edge:not(.under)").get_attribute("d").count("M")


def test_every_image_is_stored_once(run: Path, records: dict) -> None:
    assert index(run).read_text().count("data:image/jpeg;base64,") == len(records) == 8


def test_a_trajectory_shows_its_text_crop_rewards_and_entropies(browser: Any, run: Path, records: dict) -> None:
    group = records[11, 1]
    child = next(record for record in group if record["origin"] == "fork")
    with Watched(browser, index(run), f"#step=11&group=1&slot={child['slot']}") as page:
        spoken = "".join(piece for piece, own in zip(child["pieces"], child["sampled"], strict=True) if own)
        assert "".join(page.locator(".turn .k").all_text_contents()) == spoken
        assert page.locator(".turn .k.inherited").count() == child["fork_position"]
        facts = text(page, ".reading .facts")
        assert f"Reward{child['rewards']['total']:.2f}" in facts
        assert f"Advantage{child['advantage']:+.2f}".replace("-", "\u2212") in facts
        # The crop is a window on the one image.
        x1, y1, x2, y2 = (448 * v for v in child["boxes"][0])
        window = [float(v) for v in page.locator(".crop").get_attribute("viewBox").split()]
        np.testing.assert_allclose(window, [x1, y1, x2 - x1, y2 - y1], atol=0.02)
        # The most uncertain token is darker than a certain one, and says so.
        entropy = np.where(child["sampled"], child["entropy"], -1)
        token = page.locator(f'.k[data-i="{int(entropy.argmax())}"]')
        level = int(np.searchsorted([0.02, 0.1, 0.3, 0.6, 1, 1.5], entropy.max(), side="right"))
        assert f"e{level}" in token.get_attribute("class").split()
        token.hover()
        readout = text(page, ".reading .readout")
        assert f"entropy {entropy.max():.3f} nats" in readout
        assert f"{abs(child['log_probabilities'][int(entropy.argmax())]):.3f}" in readout
        assert page.locator(".observation .k").count() > 0
        assert page.locator(".observation .placeholder").text_content() == "[image: 16 tokens]"


def painted(boxes: list[list[float]]) -> np.ndarray:
    """The pixels whose centre lies in a box."""
    right = {"boxes": boxes, "correct": True}
    return votes([right]) > 0


def test_origins_are_counted_apart(browser: Any, run: Path, records: dict) -> None:
    for (step, number), group in records.items():
        with Watched(browser, index(run), f"#step={step}&group={number}&slot=0") as page:
            parts = []
            for origin, label in (("base", "base"), ("fork", "forks"), ("fresh", "fresh")):
                some = [record["correct"] for record in group if record["origin"] == origin]
                parts += [f"{label} {sum(some)} of {len(some)}"] if some else []
            right = f"{sum(record['correct'] for record in group)} of {len(group)} right"
            assert len(parts) > 1 and text(page, ".about > .quiet").startswith(f"{right} ({', '.join(parts)})")


def test_where_the_consensus_points(browser: Any, tmp_path: Path) -> None:
    """On the true place, elsewhere, nowhere: as a fact, and as a filter where the place is known."""
    rng, true = np.random.default_rng(0), [0.5, 0.5, 0.625, 0.625]
    boxes = {"on": [0.45, 0.45, 0.7, 0.7], "off": [0.55, 0.55, 0.8, 0.8], "far": [0.1, 0.1, 0.3, 0.3]}
    groups = []
    for number, (name, box) in enumerate(boxes.items()):
        group = made_group(rng, 0, number, 8, 0.5, np.array([0.4, 0.6]))
        for slot, record in enumerate(group):
            record |= {"correct": slot < 5, "boxes": [box] if slot < 4 else [], "true_boxes": [true], "question": name}
        groups.append((group, None))
    split = json.loads(json.dumps(groups[0][0]))
    for slot, record in enumerate(split):
        record |= {"group": 3, "question": "split", "boxes": [boxes["far" if slot % 2 else "on"]]}
    split[0]["correct"] = False
    unknown = [record | {"group": 4, "question": "unknown", "true_boxes": []} for record in groups[2][0]]
    file = written(tmp_path, [*groups, (split, None), (unknown, None)])
    facts = {}
    with Watched(browser, file, "#trajectories") as page:
        for number in range(5):
            page.evaluate(f"location.hash = 'step=0&group={number}&slot=0'")
            expect(page.locator(".where p")).to_contain_text(f"group {number}")
            facts[text(page, ".about h3")] = text(page, ".about > .quiet")
        page.locator('[data-filter="elsewhere"]').click()
        assert [text_ for text_ in page.locator(".entry .asks").all_text_contents()] == ["off", "far"]
        assert text(page, ".count") == "16 trajectories in 2 groups"
    lesion = painted([true])
    for name, box in boxes.items():
        looked = painted([box])
        iou, covered = ((looked & lesion).sum() / other.sum() for other in (looked | lesion, lesion))
        assert f"IoU {iou:.2f}" in facts[name] and f"covering {round(100 * covered)}\u00a0%" in facts[name]
        assert ("points elsewhere" in facts[name]) == (covered < 0.5) == (name != "on")
    assert "no consensus" in facts["split"] and "points elsewhere" not in facts["split"]
    assert "consensus on" in facts["unknown"] and "IoU" not in facts["unknown"]
    with Watched(browser, written(tmp_path, [(unknown, None)]), "#trajectories") as page:
        assert page.locator(".chip[data-filter]").count() == 5


def test_forks_are_followed_both_ways(browser: Any, run: Path, records: dict) -> None:
    group = records[11, 1]
    child = next(record for record in group if record["origin"] == "fork")
    decision = next(d for d in group[child["parent"]]["decisions"] if d["child"] == child["slot"])
    with Watched(browser, index(run), f"#step=11&group=1&slot={child['parent']}") as page:
        assert f"ΔH +{decision['delta_h']:.2f}" in " ".join(page.locator(".branches text").all_text_contents())
        row = text(page, ".wide table tbody tr")
        assert f"{decision['h_base']:.3f}" in row and f"{decision['probability']:.3f}" in row
        page.locator(f'.turn .branch[data-child="{child["slot"]}"]').click()
        assert text(page, ".reading h4").startswith(f"Trajectory {child['slot']}")
        assert page.locator(".k.at").get_attribute("data-i") == str(child["fork_position"])
        assert page.url.endswith(f"slot={child['slot']}&token={child['fork_position']}")
        assert f"u {decision['u']:.2f}" in text(page, ".family")
        page.locator(".branch.origin").click()
        assert text(page, ".reading h4").startswith(f"Trajectory {child['parent']}")
        page.locator(f'.mark[data-child="{child["slot"]}"]').click()
        assert text(page, ".reading h4").startswith(f"Trajectory {child['slot']}")
        page.go_back()
        assert text(page, ".reading h4").startswith(f"Trajectory {child['parent']}")


def test_filters_orders_steps_and_search(browser: Any, run: Path, records: dict) -> None:
    last = {group: found for (step, group), found in records.items() if step == 11}

    def expected(test: Any) -> str:
        counts = [sum(bool(test(r)) for r in found) for found in last.values()]
        groups = sum(count > 0 for count in counts)
        total = sum(counts)
        return f"{total} trajector{'y' if total == 1 else 'ies'} in {groups} group{'' if groups == 1 else 's'}"

    tests = {
        "wrong": lambda r: not r["correct"],
        "right": lambda r: r["correct"],
        "forked": lambda r: r["origin"] == "fork" or any(d["granted"] for d in r["decisions"]),
        "blind": lambda r: not r["boxes"],
    }
    with Watched(browser, index(run), "#trajectories") as page:
        assert text(page, ".count") == expected(lambda r: True)
        for name, test in tests.items():
            page.locator(f'[data-filter="{name}"]').click()
            if any(test(r) for found in last.values() for r in found):
                assert text(page, ".count") == expected(test)
            else:
                assert text(page, ".count") == "Nothing matches."
            page.locator(f'[data-filter="{name}"]').click()
        page.locator('[data-filter="wrong"]').click()
        page.locator('[data-filter="forked"]').click()
        assert text(page, ".count") == expected(lambda r: tests["wrong"](r) and tests["forked"](r))
        for name in ("wrong", "forked"):
            page.locator(f'[data-filter="{name}"]').click()

        page.locator("#order").select_option("wrong")
        wrong = [int(re.match(r"(\d+) of", t)[1]) for t in page.locator(".entry .name span").all_text_contents()]
        assert wrong == sorted(wrong) and len(wrong) == 4
        page.locator("#order").select_option("recorded")

        page.locator("#search").fill("Error: the call is not")
        matching = expected(lambda r: "error: the call is not" in "".join(r["pieces"]).lower())
        count = page.locator(".count")
        expect(count).to_have_text("Nothing matches." if matching.startswith("0") else matching)
        page.locator("#search").fill("no such words anywhere")
        expect(count).to_have_text("Nothing matches.")
        page.locator("#search").fill("")
        expect(count).to_have_text(expected(lambda r: True))
        page.locator("#step").select_option("0")
        assert text(page, ".where p").startswith("Step 0, group 0")
        page.locator("#step").select_option("all")
        assert page.locator(".entry").count() == 8


def test_keys(browser: Any, run: Path, records: dict) -> None:
    with Watched(browser, index(run)) as page:
        assert page.locator("#overview").is_visible() and not page.locator("#trajectories").is_visible()
        page.keyboard.press("2")
        page.wait_for_selector(".lane[aria-current]")
        lanes = [int(slot) for slot in page.locator("button.lane").evaluate_all("l => l.map(x => x.dataset.slot)")]
        assert sorted(lanes) == list(range(8))

        def current() -> int:
            return int(page.locator("button.lane[aria-current]").get_attribute("data-slot"))

        assert current() == lanes[0]
        page.keyboard.press("j")
        page.keyboard.press("j")
        assert current() == lanes[2]
        page.keyboard.press("k")
        assert current() == lanes[1]
        page.keyboard.press("ArrowRight")
        assert "group 1" in text(page, ".where p")
        page.keyboard.press("k")  # before the first trajectory: the last of the group before
        assert "group 0" in text(page, ".where p") and current() == lanes[-1]
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowLeft")
        assert "group 0" in text(page, ".where p")
        page.keyboard.press("/")
        page.keyboard.type("jk?t")  # these are letters here
        assert page.locator("#search").input_value() == "jk?t"
        page.keyboard.press("Escape")
        assert page.locator("#search").input_value() == ""
        page.keyboard.press("?")
        assert page.locator("dialog").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("dialog").is_visible()
        page.keyboard.press("3")
        expect(page.locator("#figures table")).to_be_visible()
        page.keyboard.press("2")
        parent = next(r for r in records[11, 1] if any(d["granted"] for d in r["decisions"]))
        page.evaluate(f"location.hash = 'step=11&group=1&slot={parent['slot']}'")
        expect(page.locator(".reading h4")).to_contain_text(f"Trajectory {parent['slot']}")
        page.keyboard.press("f")
        assert current() != parent["slot"]
        page.keyboard.press("p")
        assert current() == parent["slot"]
        page.locator(".tokens").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        moved = page.locator(".k.at").get_attribute("data-i")
        assert "group 1" in text(page, ".where p") and moved is not None


BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def test_themes(browser: Any, run: Path) -> None:
    with Watched(browser, index(run), color_scheme="light") as page:
        light = page.evaluate(BACKGROUND)
        page.get_by_label("Dark").check(force=True)
        dark = page.evaluate(BACKGROUND)
        assert light != dark and sum(map(int, re.findall(r"\d+", dark))) < 120
        page.get_by_label("Auto").check(force=True)
        assert page.evaluate(BACKGROUND) == light
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(BACKGROUND) == dark
        page.keyboard.press("t")  # light
        assert page.evaluate(BACKGROUND) == light


def test_the_theme_is_remembered(browser: Any, run: Path) -> None:
    context = browser.new_context(color_scheme="light")
    for expected in (None, "dark"):
        page = context.new_page()
        page.goto(index(run).as_uri())
        assert page.evaluate("document.documentElement.dataset.theme ?? null") == expected
        page.get_by_label("Dark").check(force=True)
    context.close()


def test_a_page_without_memory_works(browser: Any, run: Path) -> None:
    watched = Watched(browser, index(run), color_scheme="light")
    with watched as page:
        page.add_init_script(
            "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('denied'); } })"
        )
        watched.asked.clear()
        page.reload()
        page.get_by_label("Dark").check(force=True)
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        page.keyboard.press("2")
        page.locator('.keys input[data-layer="boxes"]').uncheck()
        assert page.locator(".layer.off").count() == 1


def test_hostile_texts_are_texts(browser: Any, run: Path, tmp_path: Path) -> None:
    shown = NASTY.replace("\ud800", "?").replace("\x00", "\x00")
    with Watched(browser, index(run), "#step=0&group=0&slot=0") as page:
        scripts = page.locator("script").count()
        for selector in (".about h3", ".options li span", ".reading .answer b", ".turn .text", ".observation .error"):
            assert clean(text(page, selector)) == clean(shown), selector
        assert page.locator("img, iframe, body details").count() == 0
        assert scripts == page.locator("head script, body > script").count()
    rng = np.random.default_rng(0)
    group = made_group(rng, 0, 0, 4, 0.5, np.array([0.4, 0.6]))
    texts = [
        LONG,
        "</script><script>alert(1)</script><!-- <script>",
        "\u202e\u2066 right to left \u05d0\u05d1",
        "\"'`${1}\\",
    ]
    for record, hostile in zip(group, texts, strict=True):
        record |= hostile_text(hostile) | {"question": hostile, "prediction": hostile, "ended": hostile}
        record["options"] = [hostile]
    for number, hostile in enumerate(texts):
        groups = [([group[number] | {"question": hostile}], None)]
        file = written(tmp_path, groups, metrics=[{"step": 0, "reward/total": 1.0}], notice=hostile)
        with Watched(browser, file, "#trajectories") as page:
            for selector in (".notice", ".about h3", ".reading .answer b", ".turn .text", ".observation .error"):
                assert clean(text(page, selector)) == clean(hostile), (number, selector)
            assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def clean(shown: str) -> str:
    """Characters that HTML cannot hold are shown as U+FFFD, or left out of comparisons."""
    return re.sub("[\x00\ufffd?]", "", shown)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_names(browser: Any, run: Path, records: dict, scheme: str) -> None:
    child = next(record for record in records[11, 1] if record["origin"] == "fork")
    with Watched(browser, index(run), color_scheme=scheme) as page:
        for address in ("overview", f"step=11&group=1&slot={child['slot']}", "step=0&group=0&slot=0", "figures"):
            page.evaluate(f"location.hash = '{address}'")
            page.wait_for_timeout(100)
            seen = page.evaluate(CONTRAST)
            assert seen["texts"] > 20
            assert seen["weak"] == [] and seen["nameless"] == []


def test_narrow_screens(browser: Any, run: Path) -> None:
    with Watched(browser, index(run), viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True) as page:
        for address in ("overview", "step=11&group=1&slot=0", "step=0&group=0&slot=0", "figures"):
            page.evaluate(f"location.hash = '{address}'")
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, address
        page.evaluate("location.hash = 'trajectories'")
        assert not page.locator(".list").is_visible()
        page.get_by_role("button", name="Groups").click()
        page.locator(".entry").nth(2).click()
        assert "group 2" in text(page, ".where p") and not page.locator(".list").is_visible()


def test_without_scripts_the_curves_are_there(browser: Any, run: Path) -> None:
    with Watched(browser, index(run), java_script_enabled=False) as page:
        assert page.locator("svg.chart").count() > 10 and page.locator("svg.chart").first.is_visible()
        assert page.get_by_text("scripts are switched off here").is_visible()
        assert page.locator("#figures table").is_visible()


def test_reduced_motion(browser: Any, run: Path) -> None:
    with Watched(browser, index(run), "#step=11&group=1&slot=0&token=3", reduced_motion="reduce") as page:
        assert page.evaluate("getComputedStyle(document.querySelector('.k.landed')).animationName") == "none"


def test_runs_recorded_before_there_were_pieces(browser: Any, run: Path, records: dict, tmp_path: Path) -> None:
    old = [
        {key: value for key, value in record.items() if key not in ("pieces", "zooms", "resized_size")}
        for record in records[11, 1]
    ]
    slot = next(record["slot"] for record in old if record["boxes"])
    with Watched(browser, written(tmp_path, [(old, None)]), f"#step=11&group=1&slot={slot}") as page:
        assert page.locator(".canvas .box").count() == sum(len(record["boxes"]) for record in old)
        assert page.locator(".turn .text").all_text_contents() == [turn["text"] for turn in old[slot]["turns"]]
        assert page.locator(".crop").count() == 1 and page.locator(".branches .level").count() > 1


def test_answers_that_nobody_can_judge(browser: Any, records: dict, tmp_path: Path) -> None:
    unknown = {"correct": None, "rewards": None, "advantage": None, "consensus_iou": None, "true_boxes": []}
    group = [record | unknown for record in records[11, 1]]
    page_file = written(
        tmp_path, [(group, picture(np.random.default_rng(0), np.array([0.4, 0.6])))], notice="No device."
    )
    with Watched(browser, page_file) as page:
        assert text(page, ".notice") == "No device." and text(page, "h1") == "A title"
        assert page.locator('[data-filter="wrong"]').count() == 0 and page.locator(".verdict").count() == 0
        counts = votes([record | {"correct": True} for record in group])
        assert page.locator(".canvas .heat path").count() == len(np.unique(counts[counts > 0]))
        assert page.locator(".canvas .box.unknown").count() == sum(len(record["boxes"]) for record in group)


def test_a_tool_may_bring_its_own_picture(browser: Any, records: dict, tmp_path: Path) -> None:
    small = (
        f"data:image/png;base64,{base64.b64encode(picture(np.random.default_rng(0), np.array([0.4, 0.6]))).decode()}"
    )
    group = json.loads(json.dumps(records[11, 1][:2]))
    for record, address in zip(group, (small, "https://example.com/x.png"), strict=True):
        record |= {"boxes": [], "zooms": [], "decisions": []}
        record["turns"][0] |= {"observation": "image", "picture": address}
    file = written(tmp_path, [(group, None)])
    with Watched(browser, file, "#step=11&group=1&slot=0") as page:
        assert page.locator("img.own").evaluate("image => image.complete && image.naturalWidth") == 448
        page.keyboard.press("j")
        assert page.locator("img.own").count() == 0
        assert "whole image in another form" in text(page, ".observation")


def test_two_thousand_trajectories_are_one_file_of_moderate_size(browser: Any, tmp_path: Path) -> None:
    """125 groups of 16 trajectories of 300 tokens, each with an image; tests/benchmarks/viewer.py has the times."""
    rng = np.random.default_rng(0)
    few = [(long_group(rng, group, 16, 300), picture(rng, np.array([0.4, 0.6]))) for group in range(5)]
    many = [([record | {"group": n} for record in few[n % 5][0]], few[n % 5][1]) for n in range(125)]
    file = written(tmp_path, many)
    assert file.stat().st_size < 60e6
    with Watched(browser, file) as page:
        assert text(page, ".count") == "2,000 trajectories in 125 groups"
        page.locator(".entry").nth(77).click()
        assert "group 77" in text(page, ".where p")
        first = many[77][0][0]
        spoken = "".join(piece for piece, own in zip(first["pieces"], first["sampled"], strict=True) if own)
        assert "".join(page.locator(".turn .k").all_text_contents()) == spoken
