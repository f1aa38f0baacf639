"""The closed forms of the consensus: against `rewards/consensus.py` on sampled boxes, and in the cases one can think
through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvr_jax.experiments import theory
from medvr_jax.experiments.theory import BoxKinds
from medvr_jax.rewards import consensus

SIDE, RESOLUTION, GROUPS, M = 448, 64, 1500, 16  # edges at multiples of 7 pixels lie on the raster's lines
LESION = (196, 196, 238, 238)
HABITS = ((14, 14, 84, 84), (350, 14, 420, 84), (14, 350, 84, 420), (350, 350, 420, 420))


def around(step: int, side: int) -> list[tuple[int, int, int, int]]:
    """All boxes of that side on a lattice that hold a lesion of 28 pixels at 210."""
    places = range(238 - side, 211, step)
    return [(x, y, x + side, y + side) for x in places for y in places]


def sample(
    kinds: BoxKinds, purity: float, correct_chance: float, trajectories: int, first: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Kinds `[B, M]` of the trajectories' boxes and which are correct; `first` makes the first one a correct hit (1) or
    a correct miss (0). Trajectories from `trajectories` on are wrong."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(kinds.hit), size=(GROUPS, M), p=kinds.chance * np.where(kinds.hit, purity, 1 - purity))
    correct = (rng.random(drawn.shape) < correct_chance) & (np.arange(M) < trajectories)
    if first is not None:
        of_first = kinds.chance * (kinds.hit == bool(first))
        drawn[:, 0], correct[:, 0] = rng.choice(len(of_first), size=GROUPS, p=of_first), True
    return drawn, correct


@jax.jit
def real(boxes: jax.Array, correct: jax.Array, eta: float) -> consensus.ConsensusResult:
    """The code that training runs."""
    return consensus.tool_reward(boxes, jnp.ones(boxes.shape[:3], bool), correct, eta=eta, resolution=RESOLUTION)


def reward(kinds: BoxKinds, drawn: np.ndarray, correct: np.ndarray, eta: float = 0.5) -> consensus.ConsensusResult:
    """Of one box for each trajectory."""
    return real((kinds.boxes[drawn] / SIDE).astype(np.float32)[:, :, None], correct, eta)


CLOSE_42 = BoxKinds.of(around(14, 42), [HABITS[0]])  # four boxes, neighbours overlap with IoU .5 exactly
FINE_42 = BoxKinds.of(around(7, 42), [HABITS[0]])  # nine boxes
SIZES = BoxKinds.of([LESION, (189, 189, 259, 259)], HABITS[:2])
ONE = BoxKinds.of([LESION], [HABITS[0]])
THREE = BoxKinds.of([LESION], HABITS[:3])
NEAR = BoxKinds.of([LESION], [(224, 196, 266, 238), HABITS[1]])  # a habit that overlaps with the lesion's box
# kinds, purity, correct trajectories n of a group, η
FIXED = [
    (ONE, 0.1, 4, 0.5), (ONE, 0.35, 5, 0.5), (ONE, 0.6, 8, 0.5), (THREE, 0.3, 3, 0.5), (THREE, 0.3, 8, 0.5),
    (THREE, 0.6, 16, 0.5), (CLOSE_42, 0.7, 4, 0.5), (CLOSE_42, 0.7, 8, 0.5), (CLOSE_42, 0.7, 8, 0.4),
    (CLOSE_42, 0.4, 5, 0.4), (FINE_42, 0.7, 5, 0.5), (FINE_42, 0.5, 4, 0.7), (SIZES, 0.5, 7, 0.5), (SIZES, 0.7, 8, 0.3),
    (NEAR, 0.5, 6, 0.5), (NEAR, 0.4, 9, 0.2),
]  # fmt: skip
# kinds, purity, chance to be correct, M
BINOMIAL = [(ONE, 0.3, 0.5, 8), (THREE, 0.45, 0.25, 16), (CLOSE_42, 0.7, 0.6, 8), (SIZES, 0.5, 0.4, 10)]
MAJORITY = [(0.3, 5), (0.5, 8), (0.65, 4), (0.8, 3), (0.55, 16)]
MAJORITY_OF_GROUP = [(0.5, 0.3, 8), (0.6, 0.5, 16), (0.75, 0.25, 16)]


def measured_gap(
    kinds: BoxKinds, purity: float, chance: float, trajectories: int, eta: float, seed: int
) -> tuple[float, float]:
    """The gap between groups whose first trajectory is a hit and groups where it is a miss, with its standard error."""
    first = [
        np.asarray(reward(kinds, *sample(kinds, purity, chance, trajectories, hit, 2 * seed + hit), eta).reward)[:, 0]
        for hit in (0, 1)
    ]
    return first[1].mean() - first[0].mean(), np.sqrt(sum(x.var() / len(x) for x in first))


@pytest.mark.parametrize("setting", range(len(FIXED)))
def test_the_reward_gap_of_n_correct_trajectories(setting: int) -> None:
    kinds, purity, correct, eta = FIXED[setting]
    expected = theory.tool_reward_gap(kinds, purity, correct, eta=eta)
    measured, error = measured_gap(kinds, purity, 1.0, correct, eta, setting)
    assert abs(measured - expected) < 3 * error, (measured, expected, error)


@pytest.mark.parametrize("setting", range(len(BINOMIAL)))
def test_the_reward_gap_of_a_group(setting: int) -> None:
    kinds, purity, chance, trajectories = BINOMIAL[setting]
    expected = theory.tool_reward_gap_of_group(kinds, purity, chance, trajectories)
    measured, error = measured_gap(kinds, purity, chance, trajectories, 0.5, 100 + setting)
    assert abs(measured - expected) < 3 * error, (measured, expected, error)


@pytest.mark.parametrize(
    ("rho", "limit", "count"),
    [
        (0.1, 0.1, 60), (0.2, 0.1, 60), (0.3, 0.1, 60), (0.85, 0.1, 60), (0.75, 0.2, 60), (0.2, 0.4, 60),
        (0.3, 1.0, 60), (0.85, 0.1, 4), (0.3, 0.05, 2), (0.5, 0.2, 1),
    ],
)  # fmt: skip
def test_the_gap_of_a_vote_without_popular_looks(rho: float, limit: float, count: int) -> None:
    """Lesions at so many places; a hundred images at a time, whose first right trajectory is a hit, then a miss."""
    correct, images, habits = 6, 100, len(HABITS)
    places = np.array([(x, y, x + 42, y + 42) for x in range(98, 336, 42) for y in range(14, 434, 42)])
    places = places[:: len(places) // count]
    rng = np.random.default_rng(int(1000 * (rho + limit)) + count)
    rewards: list[list[np.ndarray]] = [[], []]
    for number in range(24):
        boxes = np.array(HABITS)[rng.integers(habits, size=(images, correct))]
        hit = rng.random((images, correct)) < rho
        # One image's first trajectory at a time would be exact; half of them at once moves popularities by little.
        hit[: images // 2, 0] = number % 2
        boxes = np.where(hit[..., None], places[rng.integers(len(places), size=images)][:, None], boxes)
        found = consensus.tool_reward(
            (boxes / SIDE).astype(np.float32)[:, :, None],
            jnp.ones((images, correct, 1), bool),
            jnp.ones((images, correct), bool),
            resolution=RESOLUTION,
            maximum_popularity=limit,
        )
        rewards[number % 2].append(np.asarray(found.reward)[: images // 2, 0])
    miss, hits = (np.concatenate(x) for x in rewards)
    error = np.sqrt(miss.var() / len(miss) + hits.var() / len(hits))
    expected = theory.habit_gap_of_votes(rho, correct, habits, limit, count)
    assert abs(hits.mean() - miss.mean() - expected) <= 3 * error + 1e-9, (hits.mean(), miss.mean(), expected)


@pytest.mark.parametrize("habits", [1, 2, 5])
def test_without_popular_votes_the_gap_is_positive_at_every_purity(habits: int) -> None:
    below, above = 1 / (habits + 1) - 0.001, 1 / (habits + 1) + 0.02
    purities = np.linspace(0.001, 1, 500)
    for correct in range(2, 17):
        assert all(theory.habit_gap_of_votes(rho, correct, habits, below) > 0 for rho in purities)
        assert any(theory.habit_gap_of_votes(rho, correct, habits, above) < 0 for rho in purities)
        crowded = [theory.habit_gap_of_votes(rho, correct, habits, below, 1 / (below + 0.01)) for rho in purities]
        assert min(crowded) < 0


def pointing(kinds: BoxKinds, purity: float, chance: float, trajectories: int, seed: int) -> float:
    """Share of groups whose consensus is the lesion's box."""
    found = reward(kinds, *sample(kinds, purity, chance, trajectories, None, seed))
    x1, y1, x2, y2 = np.asarray(LESION) * RESOLUTION // SIDE
    lesion = np.zeros((RESOLUTION, RESOLUTION), bool)
    lesion[y1:y2, x1:x2] = True
    return float((np.asarray(found.consensus) == lesion).all((1, 2)).mean())


@pytest.mark.parametrize("kinds", [ONE, THREE], ids=["one habit", "three"])
def test_the_consensus_points_at_the_lesion_as_often_as_hits_are_the_majority(kinds: BoxKinds) -> None:
    settings = [(theory.right_consensus(rho, n), rho, 1.0, n) for rho, n in MAJORITY]
    settings += [(theory.right_consensus_of_group(rho, c, m), rho, c, m) for rho, c, m in MAJORITY_OF_GROUP]
    for seed, (expected, *setting) in enumerate(settings):
        error = np.sqrt(expected * (1 - expected) / GROUPS)
        assert abs(pointing(kinds, *setting, seed=200 + seed) - expected) < 3 * error, (setting, expected)


@pytest.mark.parametrize("habits", [1, 3, 4])
def test_the_enumeration_is_the_binomial_where_boxes_are_shared_or_apart(habits: int) -> None:
    kinds = BoxKinds.of([LESION], HABITS[:habits])
    for correct in range(1, 12):
        for rho in (0.05, 0.3, 0.9):
            expected = theory.habit_gap(rho, correct, habits)
            assert theory.tool_reward_gap(kinds, rho, correct) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("habits", [1, 2, 5])
def test_the_gap_changes_its_sign_where_a_hit_is_as_common_as_each_habit(habits: int) -> None:
    for correct in range(2, 17):
        assert theory.habit_gap(1 / (habits + 1), correct, habits) == pytest.approx(0, abs=1e-14)
        assert theory.habit_gap(1 / (habits + 1) + 0.01, correct, habits) > 0
        assert theory.habit_gap(1 / (habits + 1) - 0.01, correct, habits) < 0


def test_half_is_no_majority() -> None:
    assert theory.right_consensus(0.5, 2) == 0.25
    assert theory.right_consensus(0.5, 7) == pytest.approx(0.5)
    assert theory.right_consensus(0.7, 1) == 0.7
    assert theory.right_consensus(1.0, 0) == 0
    np.testing.assert_allclose(theory.right_consensus_of_group(1.0, 0.25, 16), 1 - 0.75**16)


def test_one_step_of_14_pixels_is_too_far_for_a_box_of_42() -> None:
    """Two hits with boxes one step apart have IoU .5, which is not above η = .5; a little less than .5 forgives it."""
    kinds = BoxKinds.of([LESION, (210, 196, 252, 238)], [HABITS[0]])
    strict, lenient = (theory.tool_reward_by_kind(kinds, 1.0, 3, eta=eta) for eta in (0.5, 0.49))
    np.testing.assert_allclose(strict[:2], [0.5 + 0.5 * 0.75] * 2)  # both others elsewhere: a minority of one
    np.testing.assert_allclose(lenient[:2], [1, 1])


def test_purity_is_what_is_left_when_luck_is_counted() -> None:
    assert theory.purity(0.2, 0.25) == pytest.approx(0.5)
    assert theory.purity(0.2, 0.0) == 1
    assert theory.purity(0.5, 0.25, reading=0.25) == pytest.approx(0.5)
