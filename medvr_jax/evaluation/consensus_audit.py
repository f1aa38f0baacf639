"""The consensus of several samples, held against the true boxes: an audit of CCA, never a reward.

The right samples of a question vote as the right trajectories of a group do in training (`rewards/consensus.py`),
all of them, whatever rewards.maximum_popularity is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from medvr_jax.evaluation.figures import Figure
from medvr_jax.evaluation.grounding import ELSEWHERE, any_hit, mask_overlap
from medvr_jax.evaluation.markdown import correlation, interval, set_name, table
from medvr_jax.evaluation.questions import QuestionSet
from medvr_jax.evaluation.results import Section
from medvr_jax.evaluation.rows import Row, grouped, question_of, set_of
from medvr_jax.evaluation.statistics import Bootstrap, spearman
from medvr_jax.rewards.consensus import rasterise, tool_reward

_AT_ONCE = 32  # questions whose masks are in memory
_VOTERS = 2  # right samples that zoomed, at least, for a purity: one alone agrees with itself


class Audited(NamedTuple):
    """One question: the consensus' IoU with the true boxes' mask and the share of their area in it, None where there is
    no consensus; purity, true and estimated, None with fewer than two right samples that zoomed."""

    iou: float | None
    covered: float | None
    purity: float | None
    estimated: float | None


def audit_section(
    questions: Sequence[QuestionSet], rows: Sequence[Sequence[Row]], raster: int, eta: float
) -> Section | None:
    """Figures and table of every set with true boxes; None without any, for single answers, and without a zoom."""
    found = [row for one in rows for row in one]
    figures = (
        consensus_audit(found, raster=raster, eta=eta) if len(found) > sum(len(q.ids) for q in questions) else None
    )
    return Section("consensus", figures, audit_text(figures)) if figures else None


def consensus_audit(
    rows: Sequence[Row], *, raster: int, eta: float, bootstrap: Bootstrap | None = None
) -> Figure | None:
    """The figures as one JSON object, of each set and of all questions together.

    Args:
        rows: several answers to each question; those without a true box are left out.
        raster: side R of the masks.
        eta: a right sample agrees with the consensus if their IoU is above this.
    """
    bootstrap = bootstrap or Bootstrap()
    rows = [row for row in rows if row.get("true_boxes") and "boxes" in row]
    if not any(row["boxes"] for row in rows):
        return None
    sets = {
        name: audited(list(grouped(found, question_of).values()), raster, eta)
        for name, found in grouped(rows, set_of).items()
    }
    return {
        "bootstrap": dataclasses.asdict(bootstrap),
        "raster": raster,
        "eta": eta,
        "overall": _figures([one for found in sets.values() for one in found], bootstrap),
        "sets": {name: _figures(found, bootstrap) for name, found in sets.items()},
    }


def audited(groups: Sequence[Sequence[Row]], raster: int, eta: float) -> list[Audited]:
    """Each question, given as the rows of its samples."""
    return [one for start in range(0, len(groups), _AT_ONCE) for one in _audited(groups, start, raster, eta)]


def _audited(groups: Sequence[Sequence[Row]], start: int, raster: int, eta: float) -> Iterator[Audited]:
    """Of the questions from `start` on, as many as are looked at together."""
    samples = max(map(len, groups))
    zooms = max((len(row["boxes"]) for group in groups for row in group), default=0)
    most = max(len(group[0]["true_boxes"]) for group in groups)
    boxes, true = np.zeros((_AT_ONCE, samples, max(zooms, 1), 4)), np.zeros((_AT_ONCE, most, 4))
    valid, known = np.zeros(boxes.shape[:3], bool), np.zeros(true.shape[:2], bool)
    right = np.zeros(boxes.shape[:2], bool)
    chunk = groups[start : start + _AT_ONCE]
    for b, group in enumerate(chunk):
        _fill(true[b], known[b], group[0]["true_boxes"])
        for m, row in enumerate(group):
            _fill(boxes[b, m], valid[b, m], row["boxes"])
            right[b, m] = row["correct"]
    result, lesions = _agreement(boxes, valid, right, true, known, raster)
    ious, masks, lesions = np.asarray(result.iou), np.asarray(result.consensus), np.asarray(lesions)
    overlaps, covered = mask_overlap(masks, lesions)
    for b, group in enumerate(chunk):
        voting, agreed = right[b] & valid[b].any(-1), masks[b].any()
        enough = voting.sum() >= _VOTERS
        hits = [any_hit(row["boxes"], row["true_boxes"]) for row, votes in zip(group, voting, strict=False) if votes]
        yield Audited(
            iou=float(overlaps[b]) if agreed else None,
            covered=float(covered[b]) if agreed else None,
            purity=float(np.mean(hits)) if enough else None,
            estimated=float((ious[b][voting] > eta).mean()) if enough else None,
        )


def _fill(boxes: np.ndarray, flags: np.ndarray, found: Sequence[Sequence[float]]) -> None:
    boxes[: len(found)], flags[: len(found)] = np.reshape(found, (-1, 4)), True


@functools.partial(jax.jit, static_argnames="raster")
def _agreement(boxes: Any, valid: Any, right: Any, true: Any, known: Any, raster: int) -> Any:
    """The votes of all questions, and the masks [B, R, R] of their true boxes."""
    return tool_reward(boxes, valid, right, resolution=raster), rasterise(true, known, raster)


def _figures(found: Sequence[Audited], bootstrap: Bootstrap) -> Figure:
    with_consensus = [one for one in found if one.iou is not None]
    judged = [one for one in found if one.purity is not None]
    purity, estimated = (np.array([getattr(one, name) for one in judged]) for name in ("purity", "estimated"))
    return {
        "questions": len(found),
        "consensus": _mean([one.iou is not None for one in found], bootstrap),
        "iou": _mean([one.iou for one in with_consensus], bootstrap),
        "elsewhere": _mean([one.covered < ELSEWHERE for one in with_consensus], bootstrap),
        "purity": _mean(purity, bootstrap),
        "estimated_purity": _mean(estimated, bootstrap),
        "spearman": spearman(estimated, purity),
    }


def _mean(values: Sequence[float] | np.ndarray, bootstrap: Bootstrap) -> Figure | None:
    if not len(values):
        return None
    numbers = np.asarray(values, np.float64)
    low, high = bootstrap.interval(bootstrap.means(numbers))
    return {"questions": len(numbers), "mean": float(numbers.mean()), "low": low, "high": high}


def audit_text(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    scopes = {set_name(name): figure for name, figure in figures["sets"].items()}
    if len(scopes) > 1:
        scopes["all"] = figures["overall"]
    head = (
        "set", "questions", "with a consensus", "its IoU", "points elsewhere", "purity", "estimated purity", "Spearman",
    )  # fmt: skip
    lines = []
    for name, figure in scopes.items():
        line = [name, figure["questions"], *(interval(figure[key]) for key in ("consensus", "iou", "elsewhere"))]
        line += [interval(figure["purity"]), interval(figure["estimated_purity"]), correlation(figure["spearman"])]
        lines.append(line)
    return "\n\n".join(
        [
            "Of each question the right samples vote on where to look, as right trajectories do under CCA (masks of"
            f" {figures['raster']} x {figures['raster']}, IoU above {figures['eta']:g}), and the true boxes say whether"
            " they are right about that too. A consensus points elsewhere if it holds less than half of the true boxes'"
            " area. Purity is the share of right samples with a zoom that hit, its estimate the share that agree with"
            f" the consensus, both over questions with at least {_VOTERS} such samples; Spearman's correlation says how"
            " well the one tells the other.",
            table(head, lines),
        ]
    )
