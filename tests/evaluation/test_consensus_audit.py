"""The audit of the consensus against NumPy, mask by mask, and against cases whose figures are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from medvr_jax.evaluation.consensus_audit import audit_section, audit_text, audited, consensus_audit
from medvr_jax.evaluation.questions import QuestionSet

RASTER = 64
TRUE = [0.5, 0.5, 0.625, 0.625]
FAR = [0.0, 0.0, 0.25, 0.25]
WIDE = [0.4375, 0.4375, 0.6875, 0.6875]  # holds the true box


def row(name: str, sample: int, correct: bool, boxes: list[list[float]], **more: Any) -> dict[str, Any]:
    fixed = {"id": name, "dataset": "made", "sample": sample, "correct": correct, "boxes": boxes, "true_boxes": [TRUE]}
    return fixed | more


def question(name: str, *samples: tuple[bool, list[list[float]]], **more: Any) -> list[dict[str, Any]]:
    return [row(name, number, *sample, **more) for number, sample in enumerate(samples)]


def test_figures_that_are_known() -> None:
    rows = [
        *question("on it", (True, [WIDE]), (True, [WIDE]), (True, [FAR]), (False, [FAR])),
        *question("elsewhere", (True, [FAR]), (True, [FAR]), (True, [WIDE]), (False, [WIDE])),
        *question("nobody agrees", (True, [FAR]), (True, [WIDE]), (False, []), (False, [])),
        *question("nobody is right", (False, [WIDE]), (False, [WIDE]), (False, []), (False, [])),
        *question("right without a look", (True, []), (True, []), (True, [WIDE]), (False, [])),
        *question("one alone", (True, [WIDE]), (False, []), (False, []), (False, [])),
        *question("no true box", (True, [WIDE]), (True, [WIDE]), (True, []), (True, []), true_boxes=[]),
    ]
    figures = consensus_audit(rows, raster=RASTER, eta=0.5)
    assert figures is not None and list(figures["sets"]) == ["made"] and figures["sets"]["made"] == figures["overall"]
    found = figures["overall"]
    assert found["questions"] == 6
    assert found["consensus"]["mean"] == 3 / 6  # on it, elsewhere, one alone
    assert found["iou"]["mean"] == pytest.approx((0.25 + 0 + 0.25) / 3) and found["iou"]["questions"] == 3
    assert found["elsewhere"]["mean"] == pytest.approx(1 / 3)
    assert found["purity"]["questions"] == 3  # on it 2/3, elsewhere 1/3, nobody agrees 1/2
    assert found["purity"]["mean"] == pytest.approx(0.5)
    assert found["estimated_purity"]["mean"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found["spearman"] == pytest.approx(stats.spearmanr([2 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 1 / 2]).statistic)
    assert "| made | 6 | 50.0 [" in audit_text(figures)


def test_any_rows_against_numpy() -> None:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(70):  # more than are looked at together
        corner = generator.uniform(0.1, 0.6, 2)
        true = [[*corner, *(corner + generator.uniform(0.05, 0.3, 2))]]
        if number % 3 == 0:
            true.append([0.7, 0.7, 0.9, 0.95])
        for sample in range(5):
            boxes = []
            for _ in range(int(generator.integers(0, 4))):
                near = np.clip(corner + generator.normal(0, 0.08, 2), 0, 0.65)
                boxes.append([*near, *(near + generator.uniform(0.05, 0.3, 2))])
            more = {"true_boxes": true, "dataset": ("one", "two")[number % 2]}
            rows.append(row(str(number), sample, bool(generator.random() < 0.7), boxes, **more))
    figures = consensus_audit(rows, raster=RASTER, eta=0.4)
    assert figures is not None and list(figures["sets"]) == ["one", "two"]
    expected = {name: [] for name in ("overall", "one", "two")}
    for number in range(70):
        group = rows[5 * number : 5 * number + 5]
        found = recomputed(group, 0.4)
        for name in ("overall", group[0]["dataset"]):
            expected[name].append(found)
    for name, found in expected.items():
        figure = figures["overall"] if name == "overall" else figures["sets"][name]
        assert figure["questions"] == len(found) == (70 if name == "overall" else 35)
        iou, covered = ([one[key] for one in found if one[key] is not None] for key in ("iou", "covered"))
        pairs = [(one["estimated"], one["purity"]) for one in found if one["purity"] is not None]
        assert 5 < len(iou) < len(found) and len(pairs) > 20
        assert figure["consensus"]["mean"] == pytest.approx(len(iou) / len(found))
        assert figure["iou"]["mean"] == pytest.approx(np.mean(iou), abs=1e-6)
        assert figure["elsewhere"]["mean"] == pytest.approx(np.mean(np.array(covered) < 0.5))
        assert figure["purity"]["mean"] == pytest.approx(np.mean([purity for _, purity in pairs]))
        assert figure["estimated_purity"]["mean"] == pytest.approx(np.mean([estimated for estimated, _ in pairs]))
        assert figure["spearman"] == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
        assert figure["iou"]["low"] < figure["iou"]["mean"] < figure["iou"]["high"]


def recomputed(group: list[dict[str, Any]], eta: float) -> dict[str, float | None]:
    """One question by hand: centres of pixels in boxes, votes, a strict majority."""
    centres = (np.arange(RASTER) + 0.5) / RASTER

    def painted(boxes: list[list[float]]) -> np.ndarray:
        mask = np.zeros((RASTER, RASTER), bool)
        for x1, y1, x2, y2 in boxes:
            mask |= ((y1 <= centres) & (centres < y2))[:, None] & ((x1 <= centres) & (centres < x2))
        return mask

    right = [one for one in group if one["correct"]]
    votes = sum((painted(one["boxes"]) for one in right), np.zeros((RASTER, RASTER), int))
    mask, true = votes > len(right) / 2, painted(group[0]["true_boxes"])
    zoomed = [one for one in right if one["boxes"]]
    ious = [(painted(one["boxes"]) & mask).sum() / max((painted(one["boxes"]) | mask).sum(), 1) for one in zoomed]

    def hits(box: list[float], lesion: list[float]) -> bool:
        x, y = (lesion[0] + lesion[2]) / 2, (lesion[1] + lesion[3]) / 2
        width = min(box[2], lesion[2]) - max(box[0], lesion[0])
        height = min(box[3], lesion[3]) - max(box[1], lesion[1])
        share = width * height / ((lesion[2] - lesion[0]) * (lesion[3] - lesion[1])) if min(width, height) > 0 else 0
        return box[0] <= x <= box[2] and box[1] <= y <= box[3] and share >= 0.5

    hit = [any(hits(box, lesion) for box in one["boxes"] for lesion in one["true_boxes"]) for one in zoomed]
    enough = len(zoomed) >= 2
    return {
        "iou": (mask & true).sum() / (mask | true).sum() if mask.any() else None,
        "covered": (mask & true).sum() / true.sum() if mask.any() else None,
        "purity": np.mean(hit) if enough else None,
        "estimated": np.mean(np.array(ious) > eta) if enough else None,
    }


def test_one_question_at_a_time_or_many() -> None:
    groups = [question(str(n), (True, [WIDE]), (True, [FAR]), (n % 2 == 0, [WIDE])) for n in range(40)]
    assert audited(groups, RASTER, 0.5) == [audited([group], RASTER, 0.5)[0] for group in groups]


def test_nothing_to_audit() -> None:
    without_boxes = question("q", (True, [WIDE]), (True, [WIDE]), true_boxes=[])
    never_zoomed = question("q", (True, []), (True, []))
    elsewhere = [{"id": "q", "dataset": "made", "sample": sample, "correct": True} for sample in range(2)]
    for rows in (without_boxes, never_zoomed, elsewhere, []):
        assert consensus_audit(rows, raster=RASTER, eta=0.5) is None
    questions = [QuestionSet("made", (), ("q",), "")]
    rows = question("q", (True, [WIDE]), (True, [WIDE]))
    assert audit_section(questions, [rows[:1]], RASTER, 0.5) is None  # greedy: nobody to agree with
    section = audit_section(questions, [rows], RASTER, 0.5)
    assert section is not None and section.name == "consensus" and section.figures["raster"] == RASTER
    assert audit_section(questions, [without_boxes], RASTER, 0.5) is None
