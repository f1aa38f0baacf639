"""CCA against a NumPy reference pixel by pixel, and against exact areas without any raster."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvr_jax.rewards import consensus as consensus_module
from medvr_jax.rewards.consensus import ConsensusResult, consensus, rasterise, usable_boxes

Z, R = 3, 64
FIELDS = ("eta", "high", "low", "resolution", "maximum_popularity")
# As a run calls it: a whole batch, one program.
tool_reward = jax.jit(consensus_module.tool_reward, static_argnames=FIELDS)


# ---- references: float64 NumPy, written without looking at the masks as interval tests -------------------------------


def reference_mask(boxes: np.ndarray, valid: np.ndarray, resolution: int) -> np.ndarray:
    """[Z, 4], [Z] -> [R, R]: fill slices of pixels, first and last found by rounding up."""
    mask = np.zeros((resolution, resolution), bool)
    for box, ok in zip(np.asarray(boxes, np.float64), valid, strict=True):
        if not ok or not np.all(np.isfinite(box)):
            continue
        x1, y1, x2, y2 = np.clip(box, 0, 1) * resolution
        if x2 <= x1 or y2 <= y1:
            continue
        spans = []
        for low, high in ((y1, y2), (x1, x2)):
            first, stop = int(np.ceil(low - 0.5)), int(np.ceil(high - 0.5))
            if stop == first:  # no centre inside: the pixel that holds the box's own centre
                first = min(int((low + high) / 2), resolution - 1)
                stop = first + 1
            spans.append(slice(first, stop))
        mask[spans[0], spans[1]] = True
    return mask


def reference_group(boxes, valid, correct, *, eta=0.5, high=1.0, low=0.5, resolution=R):
    """[M, Z, 4], [M, Z], [M] -> rewards [M], IoU [M], consensus [R, R]; the formulas of the paper with sets."""
    masks = [reference_mask(b, v, resolution) for b, v in zip(boxes, valid, strict=True)]
    voters = [m for m, c in zip(masks, correct, strict=True) if c]
    votes = sum((m.astype(int) for m in voters), np.zeros((resolution, resolution), int))
    agreed = votes > len(voters) / 2
    rewards, ious = [], []
    for mask, right in zip(masks, correct, strict=True):
        union = np.logical_or(mask, agreed).sum()
        iou = np.logical_and(mask, agreed).sum() / union if union else 0.0
        reward = 0.0
        if right and mask.any():
            reward = high if iou > eta else low
        rewards.append(reward)
        ious.append(iou)
    return np.array(rewards), np.array(ious), agreed


def exact_overlap(boxes: np.ndarray, valid: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact IoU [M] with the consensus and area of the union [M]: between neighbouring edges nothing changes."""
    boxes = np.clip(np.asarray(boxes, np.float64), 0, 1)
    xs, ys = np.unique(boxes[..., 0::2][valid]), np.unique(boxes[..., 1::2][valid])
    area = np.diff(ys)[:, None] * np.diff(xs)[None, :]
    middle_x, middle_y = (xs[1:] + xs[:-1]) / 2, (ys[1:] + ys[:-1]) / 2
    columns = (boxes[..., 0, None] < middle_x) & (middle_x < boxes[..., 2, None])  # [M, Z, x]
    rows = (boxes[..., 1, None] < middle_y) & (middle_y < boxes[..., 3, None])
    masks = (rows[..., :, None] & columns[..., None, :] & valid[..., None, None]).any(1)  # [M, y, x]
    agreed = masks[correct].sum(0) > correct.sum() / 2
    shared, joined = ((op(masks, agreed) * area).sum((1, 2)) for op in (np.logical_and, np.logical_or))
    return shared / np.maximum(joined, 1e-12), joined


# ---- random groups with every edge case ------------------------------------------------------------------------------


def random_box(rng: np.random.Generator) -> np.ndarray:
    low = rng.uniform(0, 0.8, 2)
    return np.concatenate([low, np.minimum(low + rng.uniform(0.05, 0.6, 2), 1.0)])


def odd_box(rng: np.random.Generator, kind: str, popular: np.ndarray) -> np.ndarray:
    box = random_box(rng)
    match kind:
        case "popular":
            return popular
        case "near":
            return popular + rng.normal(0, 0.02, 4)
        case "on_grid":
            return np.round(box * R) / R
        case "on_centres":
            return np.clip((np.floor(box * R) + 0.5) / R, 0, 1)
        case "inverted":
            return box[[2, 1, 0, 3]]
        case "degenerate":
            return box[[0, 1, 0, 3]]
        case "partly_outside":
            return box + rng.choice([-0.5, 0.5], 4) * [1, 0, 1, 0]
        case "outside":
            return box + 1.5
        case "thin":
            return np.array([box[0], box[1], box[0] + rng.uniform(0.0005, 0.02), box[3]])
        case "not_finite":
            return np.where(np.arange(4) == rng.integers(4), rng.choice([np.nan, np.inf, -np.inf]), box)
    return box


KINDS = ("random", "popular", "near", "on_grid", "on_centres", "inverted", "degenerate", "partly_outside", "outside",
         "thin", "not_finite")  # fmt: skip


def random_groups(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    boxes = np.zeros((count, size, Z, 4), np.float32)
    valid = np.zeros((count, size, Z), bool)
    correct = rng.random((count, size)) < rng.choice([0.0, 0.1, 0.5, 0.9, 1.0], (count, 1))
    for g in range(count):
        popular = random_box(rng)
        plain = rng.random() < 0.3  # a third of the groups mostly agree
        for m in range(size):
            for z in range(rng.integers(0, Z + 1)):
                kind = "popular" if plain and rng.random() < 0.6 else rng.choice(KINDS)
                boxes[g, m, z] = odd_box(rng, kind, popular)
                valid[g, m, z] = rng.random() < 0.9
            if m and rng.random() < 0.15:
                boxes[g, m], valid[g, m] = boxes[g, m - 1], valid[g, m - 1]
    return boxes, valid, correct


def assert_equals_numpy(boxes: np.ndarray, valid: np.ndarray, correct: np.ndarray, **settings: int) -> ConsensusResult:
    """Compares group by group; the result as NumPy arrays."""
    result = jax.tree.map(np.asarray, tool_reward(boxes, valid, correct, **settings))
    for g in range(len(boxes)):
        reward, iou, agreed = reference_group(boxes[g], valid[g], correct[g], **settings)
        np.testing.assert_array_equal(result.consensus[g], agreed, err_msg=f"group {g}")
        np.testing.assert_array_equal(result.reward[g], reward.astype(np.float32), err_msg=f"group {g}")
        np.testing.assert_allclose(result.iou[g], iou, atol=1e-6, err_msg=f"group {g}")
        agreeing = [x == settings.get("high", 1.0) for x in reward if x]
        np.testing.assert_allclose(result.agreement[g], np.mean(agreeing or [0]), atol=1e-6, err_msg=f"group {g}")
    return result


@pytest.mark.parametrize("size", [2, 7, 16])
def test_equals_numpy_on_random_groups(size: int) -> None:
    boxes, valid, correct = random_groups(500, size, seed=size)
    result = assert_equals_numpy(boxes, valid, correct, resolution=R)
    assert {0.0, 0.5, 1.0} == set(np.unique(result.reward))  # all three outcomes were seen
    assert len(np.unique(result.agreement)) > 2


@pytest.mark.parametrize("resolution", [1, 20, 37])
def test_rasters_that_fill_no_whole_words(resolution: int) -> None:
    assert_equals_numpy(*random_groups(40, 5, seed=resolution), resolution=resolution)


# ---- edge cases by name ----------------------------------------------------------------------------------------------

HERE, THERE = [0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 0.9, 0.9]


def group(*trajectories: tuple[list, bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trajectories as (list of boxes, correct) -> arrays of one group."""
    boxes = np.zeros((1, len(trajectories), Z, 4), np.float32)
    valid = np.zeros((1, len(trajectories), Z), bool)
    for m, (own, _) in enumerate(trajectories):
        for z, box in enumerate(own):
            boxes[0, m, z], valid[0, m, z] = box, True
    return boxes, valid, np.array([[right for _, right in trajectories]])


CASES = {
    "nobody is right": (group(([HERE], False), ([HERE], False)), [0, 0]),
    "one is right": (group(([HERE], True), ([THERE], False)), [1, 0]),
    "all agree": (group(*[([HERE], True)] * 3), [1, 1, 1]),
    "tie of two": (group(([HERE], True), ([THERE], True)), [0.5, 0.5]),
    "tie of four": (group(*[([HERE], True)] * 2, *[([THERE], True)] * 2), [0.5] * 4),
    "two against one": (group(([HERE], True), ([HERE], True), ([THERE], True)), [1, 1, 0.5]),
    "right without a zoom": (group(([], True), ([HERE], True), ([HERE], True)), [0, 1, 1]),
    "those who never zoomed vote for nowhere": (group(([], True), ([], True), ([HERE], True)), [0, 0, 0.5]),
    "nobody zoomed": (group(([], True), ([], True)), [0, 0]),
    "wrong answers do not vote": (group(([HERE], True), *[([THERE], False)] * 3), [1, 0, 0, 0]),
    "a box twice is one box": (group(([HERE, HERE], True), ([HERE], True)), [1, 1]),
    "union of boxes": (group(([HERE, THERE], True), ([HERE, THERE], True), ([HERE], True)), [1, 1, 0.5]),
    "inverted box is no zoom": (group(([[0.5, 0.1, 0.1, 0.5]], True), ([HERE], True)), [0, 0.5]),
    "box outside is no zoom": (group(([[1.2, 1.2, 1.5, 1.5]], True), ([HERE], True)), [0, 0.5]),
    "box over the border is clipped": (group(([[-1, -1, 0.5, 0.5]], True), ([[0, 0, 0.5, 0.5]], True)), [1, 1]),
}


@pytest.mark.parametrize("name", CASES)
def test_edge_case(name: str) -> None:
    arrays, expected = CASES[name]
    np.testing.assert_array_equal(np.asarray(tool_reward(*arrays).reward)[0], np.float32(expected))


def test_iou_at_eta_is_not_enough() -> None:
    """Left half against the whole image: IoU is 1/2 exactly, and the formula asks for more than eta."""
    arrays = group(([[0, 0, 1, 1]], True), ([[0, 0, 1, 1]], True), ([[0, 0, 0.5, 1]], True))
    result = tool_reward(*arrays, eta=0.5)
    assert float(result.iou[0, 2]) == 0.5 and float(result.reward[0, 2]) == 0.5
    assert float(tool_reward(*arrays, eta=0.49).reward[0, 2]) == 1.0


def test_high_and_low_are_fields() -> None:
    arrays, _ = CASES["two against one"]
    np.testing.assert_array_equal(tool_reward(*arrays, high=3.0, low=0.25).reward[0], [3.0, 3.0, 0.25])


def test_rows_are_y_and_columns_are_x() -> None:
    mask = np.asarray(rasterise(jnp.array([[0.0, 0.5, 0.25, 1.0]]), jnp.array([True]), 8))
    assert mask[4:, :2].all() and mask.sum() == 8


def test_neighbours_share_no_pixel_and_leave_none_out() -> None:
    edges = np.linspace(0, 1, 12)
    stripes = np.stack([edges[:-1], np.zeros(11), edges[1:], np.ones(11)], -1)[:, None]
    masks = np.asarray(rasterise(jnp.asarray(stripes, jnp.float32), jnp.ones((11, 1), bool), R))
    assert (masks.sum(0) == 1).all()


def test_a_usable_box_never_vanishes() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.999, (500, 1, 2))
    boxes = jnp.asarray(np.concatenate([low, low + 1e-4], -1), jnp.float32)
    valid = jnp.ones((500, 1), bool)
    assert bool(usable_boxes(boxes, valid).all())
    assert (np.asarray(rasterise(boxes, valid, 16)).sum((-1, -2)) == 1).all()


def test_groups_do_not_see_each_other() -> None:
    boxes, valid, correct = random_groups(8, 6, seed=5)
    together = tool_reward(boxes, valid, correct)
    for g in range(8):
        alone = tool_reward(boxes[g : g + 1], valid[g : g + 1], correct[g : g + 1])
        jax.tree.map(lambda a, b, g=g: np.testing.assert_array_equal(a[0], b[g]), alone, together)


def test_counts_are_votes_of_correct_trajectories() -> None:
    boxes, valid, correct = random_groups(20, 5, seed=6)
    masks = jax.jit(rasterise, static_argnums=2)(boxes, valid, R)
    _, counts = jax.jit(consensus)(masks, correct)
    np.testing.assert_array_equal(counts, (np.asarray(masks) & correct[..., None, None]).sum(1))


# ---- what the raster costs -------------------------------------------------------------------------------------------


def plain_groups(count: int, size: int, side: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes with sides of at least `side` scattered around a common place, so that overlaps are of every size."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(0.3, 0.7, (count, 1, 1, 2))
    centre = place + rng.normal(0, 0.08, (count, size, 1, 2))
    half = rng.uniform(side / 2, side, (count, size, 1, 2))
    centre = np.clip(centre, half, 1 - half)
    boxes = np.concatenate([centre - half, centre + half], -1).astype(np.float32)
    return boxes, np.ones((count, size, 1), bool), rng.random((count, size)) < 0.7


@pytest.mark.parametrize("resolution", [16, 32, 64, 128])
def test_resolution_error_of_two_boxes_is_bounded(resolution: int) -> None:
    """One correct trajectory is the consensus; the other's overlap with it is |IoU_R - IoU| <= 4/(Rs) + 2/(Rs)^2."""
    side = 0.125
    boxes, valid, _ = plain_groups(1000, 2, side, seed=resolution)
    correct = np.tile([True, False], (1000, 1))
    found = np.asarray(tool_reward(boxes, valid, correct, resolution=resolution).iou)
    exact = np.stack([exact_overlap(*x)[0] for x in zip(boxes, valid, correct, strict=True)])
    errors = np.abs(found - exact)
    bound = 4 / (resolution * side) + 2 / (resolution * side) ** 2
    print(f"two boxes, R={resolution}: max {errors.max():.4f}, mean {errors.mean():.4f}, bound {bound:.4f}")
    assert errors.max() <= bound
    assert (errors[:, 0] == 0).all()  # a box always agrees with itself


def test_resolution_error_of_groups_is_bounded_and_shrinks() -> None:
    """In any group: the area between true and rastered edges, divided by the union, bounds the error of the IoU."""
    boxes, valid, correct = plain_groups(400, 8, side=0.125, seed=3)
    sides = (boxes[..., 2:] - boxes[..., :2]).astype(np.float64).sum(-1)[..., 0]  # [groups, M], width + height
    exact, union = (np.stack(x) for x in zip(*map(exact_overlap, boxes, valid, correct), strict=True))
    means = {}
    for resolution in (32, 64, 128):
        result = tool_reward(boxes, valid, correct, resolution=resolution)
        errors = np.abs(np.asarray(result.iou) - exact)
        moved = sides / resolution + 1 / resolution**2
        bound = (moved + (moved * correct).sum(1, keepdims=True)) / union
        assert (errors <= bound).all()
        means[resolution] = errors.mean()
        flips = ((np.asarray(result.iou) > 0.5) != (exact > 0.5))[correct].mean()
        print(f"groups, R={resolution}: max {errors.max():.4f}, mean {errors.mean():.5f}, rewards changed {flips:.2%}")
        assert errors.max() <= 8 / (resolution * 0.125)
        assert flips <= 2 / resolution
    assert means[32] > 1.7 * means[64] > 1.7**2 * means[128]  # first order in 1/R


def test_agreement_is_that_of_right_trajectories_with_a_box() -> None:
    right = (([HERE], True), ([HERE], True), ([THERE], True))
    arrays = group(*right, ([], True), ([THERE], False), ([HERE], False))
    assert float(tool_reward(*arrays).agreement[0]) == 0.0  # two of four right ones are no majority: nobody agrees
    arrays = group(*right, ([HERE], True), ([], True), ([THERE], False))
    assert float(tool_reward(*arrays).agreement[0]) == 0.75
    nobody = tool_reward(*group(([HERE], False), ([], True)))
    assert float(nobody.agreement[0]) == 0.0 and not np.asarray(nobody.reward).any()
