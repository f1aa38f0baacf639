"""Consensus rewards of a batch: ours against a NumPy loop and against shapely's polygons.

    python tests/benchmarks/consensus.py [--runs=5] [--groups=256] [--output=DIR]

256 groups of 16 trajectories with 6 boxes each, our function at its default raster. The NumPy loops go group by group
and trajectory by trajectory over masks of the same raster: one asks of every pixel's centre whether a box holds it, as
the definition reads, the other fills slices. shapely unites boxes exactly and finds the majority by adding voter after
voter. Asserted: the loops' rewards and overlaps are ours; shapely's exact overlaps differ by no
more than the raster allows (the bound in `medvr_jax/rewards/consensus.py`), and rewards only where the exact overlap is
that near the threshold.

A call of ours is short: in each round it is called as often as fits the time that the quickest peer takes, and the mean
counts. The ratios are the medians of those of the rounds.
"""

from __future__ import annotations

import inspect
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import shapely  # noqa: E402

from medvr_jax.rewards.consensus import tool_reward  # noqa: E402
from tests.benchmarks import measure, models, tables  # noqa: E402

TRAJECTORIES, BOXES = 16, 6
DEFAULTS = {
    name: p.default for name, p in inspect.signature(tool_reward).parameters.items() if p.kind == p.KEYWORD_ONLY
}
R, ETA, HIGH, LOW = (DEFAULTS[name] for name in ("resolution", "eta", "high", "low"))
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
Result = tuple[np.ndarray, np.ndarray]  # rewards [B, M], IoU [B, M]


def make_groups(count: int, seed: int = 0) -> Arrays:
    """boxes [B, M, Z, 4] scattered around one place of each group, valid [B, M, Z], correct [B, M]."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0.3, 0.7, (count, 1, 1, 2)) + rng.normal(0, 0.1, (count, TRAJECTORIES, BOXES, 2))
    half = rng.uniform(0.05, 0.2, (count, TRAJECTORIES, BOXES, 2))
    centre = np.clip(centre, half, 1 - half)
    boxes = np.concatenate([centre - half, centre + half], -1).astype(np.float32)
    valid = rng.random((count, TRAJECTORIES, BOXES)) < 0.9
    return boxes, valid, rng.random((count, TRAJECTORIES)) < 0.6


def numpy_slices(boxes: np.ndarray, valid: np.ndarray, correct: np.ndarray) -> Result:
    """Group by group, trajectory by trajectory; each box fills a slice of a mask of R x R pixels."""

    def mask_of(own: np.ndarray) -> np.ndarray:
        mask = np.zeros((R, R), bool)
        for box in own:
            x1, y1, x2, y2 = (int(np.ceil(v * R - 0.5)) for v in box)
            mask[y1:y2, x1:x2] = True
        return mask

    return _numpy_loop(boxes, valid, correct, mask_of)


def numpy_centres(boxes: np.ndarray, valid: np.ndarray, correct: np.ndarray) -> Result:
    """The same; each mask by asking of every pixel's centre whether a box holds it."""
    y, x = (np.mgrid[:R, :R] + 0.5) / R

    def mask_of(own: np.ndarray) -> np.ndarray:
        mask = np.zeros((R, R), bool)
        for x1, y1, x2, y2 in own:
            mask |= (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        return mask

    return _numpy_loop(boxes, valid, correct, mask_of)


def _numpy_loop(
    boxes: np.ndarray, valid: np.ndarray, correct: np.ndarray, mask_of: Callable[[np.ndarray], np.ndarray]
) -> Result:
    rewards, overlaps = np.zeros(correct.shape), np.zeros(correct.shape)
    for g in range(len(boxes)):
        masks = [mask_of(boxes[g, m][valid[g, m]]) for m in range(TRAJECTORIES)]
        votes = np.zeros((R, R), int)
        for mask, right in zip(masks, correct[g], strict=True):
            if right:
                votes += mask
        agreed = votes > correct[g].sum() / 2
        for m, mask in enumerate(masks):
            union = np.logical_or(mask, agreed).sum()
            overlaps[g, m] = np.logical_and(mask, agreed).sum() / union if union else 0.0
            if correct[g, m] and mask.any():
                rewards[g, m] = HIGH if overlaps[g, m] > ETA else LOW
    return rewards, overlaps


def with_shapely(boxes: np.ndarray, valid: np.ndarray, correct: np.ndarray) -> Result:
    """Exact unions and intersections of polygons."""
    rewards, overlaps = np.zeros(correct.shape), np.zeros(correct.shape)
    for g in range(len(boxes)):
        shapes = [
            shapely.union_all(shapely.box(*boxes[g, m][valid[g, m]].astype(float).T)) for m in range(TRAJECTORIES)
        ]
        agreed = _majority([s for s, right in zip(shapes, correct[g], strict=True) if right])
        shared = shapely.area(shapely.intersection(shapes, agreed))
        union = shapely.area(shapes) + shapely.area(agreed) - shared
        overlaps[g] = np.where(union > 0, shared / np.maximum(union, 1e-12), 0.0)
        zoomed = ~shapely.is_empty(shapes)
        rewards[g] = np.where(correct[g] & zoomed, np.where(overlaps[g] > ETA, HIGH, LOW), 0.0)
    return rewards, overlaps


def _majority(voters: list[shapely.Geometry]) -> shapely.Geometry:
    """The part of the plane that more than half of the voters cover, voter by voter: what k of those so far cover."""
    layers = [shapely.Polygon()] * (len(voters) // 2 + 1)
    for seen, voter in enumerate(voters):
        for k in range(min(seen, len(layers) - 1), -1, -1):
            layers[k] = shapely.union(layers[k], shapely.intersection(layers[k - 1], voter) if k else voter)
    return layers[-1]


def raster_bound(boxes: np.ndarray, valid: np.ndarray, correct: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """[B, M]: by how much the raster may change each overlap: area between true and rastered edges over the union."""
    sides = (boxes[..., 2:] - boxes[..., :2]).astype(np.float64).sum(-1)
    moved = (np.where(valid, sides / R + 1 / R**2, 0.0)).sum(-1)
    everywhere = moved + (moved * correct).sum(-1, keepdims=True)
    own = np.where(valid, (boxes[..., 2:] - boxes[..., :2]).astype(np.float64).prod(-1), 0.0).max(-1)
    return everywhere / np.maximum(own, 1e-12)  # the union is no smaller than a trajectory's largest box


def check_results(ours: Result, loop: Result, exact: Result, arrays: Arrays) -> dict[str, float]:
    """AssertionError if the three do not agree within the raster's resolution; returns how near they are."""
    boxes, valid, correct = arrays
    np.testing.assert_array_equal(ours[0], loop[0].astype(np.float32))
    np.testing.assert_allclose(ours[1], loop[1], atol=1e-6)
    difference = np.abs(ours[1] - exact[1])
    assert (difference <= raster_bound(boxes, valid, correct, exact[1])).all()
    assert difference.mean() <= 1 / R, "on average the raster costs less than a pixel of the side"
    flipped = ours[0] != exact[0].astype(np.float32)
    assert (np.abs(exact[1] - ETA)[flipped] <= difference.max()).all()
    assert flipped.mean() <= 1 / R
    return {
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "rewards_changed": float(flipped.mean()),
    }


def run(groups: int, runs: int, output: str | None) -> dict:
    """Measures, checks and reports."""
    arrays = make_groups(groups)
    function = jax.jit(lambda *arrays: tool_reward(*arrays)[:2])  # what a run asks for

    on_device = jax.device_put(arrays)

    def ours() -> Result:
        found = jax.block_until_ready(function(*on_device))
        return np.asarray(found[0]), np.asarray(found[1])

    contenders: dict[str, Callable[[], Result]] = {
        "ours": ours,
        "NumPy loop, pixel centres": lambda: numpy_centres(*arrays),
        "NumPy loop, slices": lambda: numpy_slices(*arrays),
        "shapely": lambda: with_shapely(*arrays),
    }
    results: dict[str, Result] = {}
    times = measure.take_turns(contenders, runs, results.__setitem__, short=["ours"])
    for loop in ("NumPy loop, pixel centres", "NumPy loop, slices"):
        closeness = check_results(results["ours"], results[loop], results["shapely"], arrays)
    ratios = {name: measure.ratios(times, "ours", name) for name in times}
    rows = [
        {
            "CCA": name,
            "median, ms": 1e3 * statistics.median(values),
            "times ours, median of the rounds": ratios[name]["paired_median"],
        }
        for name, values in times.items()
    ]
    return tables.report(
        "consensus",
        rows,
        protocol="rounds of one call of each in turn, after one that does not count; ours: the mean of as many calls in"
        " each round as take as long as the quickest of the others",
        sizes={"groups": groups, "trajectories": TRAJECTORIES, "boxes": BOXES, "raster": R},
        seconds=times,
        figures=closeness | {"ratios": ratios},
        output=output,
    )


def main() -> None:
    """Reads the command line."""
    parser = tables.parser(__doc__)
    parser.add_argument("--groups", type=int, default=256)
    arguments = models.start(parser)
    run(arguments.groups, arguments.runs, arguments.output)


if __name__ == "__main__":
    main()
