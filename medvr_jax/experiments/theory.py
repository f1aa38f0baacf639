"""When EVR's forks and CCA's consensus help: exact chances in a small model, in float64 NumPy.

Forks. A trajectory samples a text z, the prefix, and then a box. In symbols: `p_z` the chance of a prefix, `s_z` the
chance that a box sampled after it succeeds, `P_z` the chance that it is forked when asked (0 where the gate is shut),
`s̄ = Σ p_z s_z`, M the trajectories of a group, `h = M // 2` the base half, `F = M - h` the fork budget. A fork keeps
its parent's prefix and samples the box again; a fresh trajectory samples both.

Consensus. Of the correct trajectories of a group some are hits, which looked at the lesion, and some lucky misses;
`ρ`, the purity, is the share of hits, n the number of correct trajectories.

Axis letters: Z prefixes, U prefixes with an open gate, C ways to divide something, K kinds of boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Prefixes(NamedTuple):
    """What may stand before the coordinates, `[Z]` float64 each: `chance` p_z (they sum to 1), `success` s_z, `fork`
    P_z."""

    chance: np.ndarray
    success: np.ndarray
    fork: np.ndarray

    @classmethod
    def of(cls, chance: Sequence[float], success: Sequence[float], fork: Sequence[float] | float) -> Prefixes:
        """From plain numbers; one P for all prefixes is the control in which entropy carries no information."""
        chance, success = np.asarray(chance, np.float64), np.asarray(success, np.float64)
        return cls(chance, success, np.broadcast_to(np.asarray(fork, np.float64), chance.shape))

    @property
    def mean_success(self) -> float:
        """s̄, the success of a fresh trajectory."""
        return float(self.chance @ self.success)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """H `[...]` in nats of distributions `[..., V]`."""
    p = np.asarray(probabilities, np.float64)
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), axis=-1)


def fork_chance(delta_h: np.ndarray, p_base: float, gamma: float, threshold: float) -> np.ndarray:
    """P_z = clip(P_base + γ ΔH_z, 0, 1) where ΔH_z is above the threshold, else 0; same shape as `delta_h`."""
    delta_h = np.asarray(delta_h, np.float64)
    return np.where(delta_h > threshold, np.clip(p_base + gamma * delta_h, 0.0, 1.0), 0.0)


def pair_gain(prefixes: Prefixes) -> float:
    """`E_z[P_z (1 - s_z)(s_z - s̄)]`: by so much a base trajectory and its one fork (fresh, where it does not fork) fail
    less often together than two fresh ones. Forking once raises the chance of a success if and only if it is positive.
    """
    p, s, fork = prefixes
    return float(p @ (fork * (1 - s) * (s - prefixes.mean_success)))


def no_success_fresh(prefixes: Prefixes, trajectories: int) -> float:
    """`(1 - s̄)^M`: nobody of M fresh trajectories succeeds."""
    return (1 - prefixes.mean_success) ** trajectories


def no_success_one_pass(prefixes: Prefixes, trajectories: int) -> float:
    """`{E_z[(1 - s_z)((1 - P_z)(1 - s̄) + P_z (1 - s_z))]}^h (1 - s̄)^(M - 2h)`: each base trajectory is asked once."""
    p, s, fork = prefixes
    fresh = 1 - prefixes.mean_success
    pair = p @ ((1 - s) * ((1 - fork) * fresh + fork * (1 - s)))
    base = trajectories // 2
    return float(pair**base * fresh ** (trajectories - 2 * base))


def no_success_repeated(prefixes: Prefixes, trajectories: int, max_passes: int = 8) -> float:
    """As above when the eligible base trajectories are asked as their boxes close, and in up to `max_passes` more
    passes until the F slots are used; what is left becomes fresh trajectories.

    Given how many base trajectories have which prefix, only the number of free slots is carried from pass to pass.
    Slots are handed out in slot order, which matters in the pass that runs out of them alone; as base trajectories are
    independent draws of the same law, those served in it are a random subset of those who asked.
    """
    p, s, fork = prefixes
    failure, fresh = 1 - s, 1 - prefixes.mean_success
    is_open = fork > 0
    base, budget = trajectories // 2, trajectories - trajectories // 2
    terms = np.concatenate([[np.sum((p * failure)[~is_open])], (p * failure)[is_open]])  # E[failed; prefix]
    counts = _divisions(base, len(terms))
    weight = _multinomial(counts) * np.prod(terms**counts, axis=1)
    served = _served(counts[:, 1:], fork[is_open], failure[is_open], base)

    asked, free = np.arange(base + 1)[:, None], np.arange(budget + 1)[None, :]
    granted = np.minimum(asked, free)
    value = np.broadcast_to(fresh ** np.arange(budget + 1), (len(counts), budget + 1))  # [C, free slots]
    for _ in range(1 + max_passes):
        value = np.sum(served[:, asked, granted] * value[:, free - granted], axis=1)
    return float(weight @ value[:, budget])


def no_success_until_used(prefixes: Prefixes, trajectories: int) -> float:
    """Repeated passes without a limit where one prefix u alone has an open gate, in closed form:
    `(E[1 - s_z]^h - q^h)(1 - s_u)^F + q^h (1 - s̄)^F` with `q = E[1 - s_z; z ≠ u]`."""
    p, s, fork = prefixes
    (u,) = np.flatnonzero(fork > 0)
    base, fresh = trajectories // 2, 1 - prefixes.mean_success
    budget = trajectories - base
    others = fresh - p[u] * (1 - s[u])
    return float((fresh**base - others**base) * (1 - s[u]) ** budget + others**base * fresh**budget)


def _served(counts: np.ndarray, fork: np.ndarray, failure: np.ndarray, base: int) -> np.ndarray:
    """One pass over base trajectories of which `counts [C, U]` have each prefix with an open gate.

    Returns `[C, a, g]`: the chance that a of them ask, times the chance that g random ones among these a all fail with
    their new box. It is the coefficient of x^a y^g in `Π_u (1 - P_u + P_u x (1 + (1 - s_u) y))^count`, divided by the
    number of ways to choose g of a; a discrete Fourier transform reads the coefficients off.
    """
    size = base + 1
    roots = np.exp(2j * np.pi * np.arange(size) / size)
    x, y = roots[:, None], roots[None, :]
    values = np.ones((len(counts), size, size), np.complex128)
    for u in range(counts.shape[1]):
        factor = 1 - fork[u] + fork[u] * x * (1 + failure[u] * y)
        powers = factor ** np.arange(size)[:, None, None]
        values *= powers[counts[:, u]]
    coefficients = np.fft.fft2(values, axes=(1, 2)).real / size**2
    ways = np.array([[math.comb(a, g) for g in range(size)] for a in range(size)], np.float64)
    return np.where(ways > 0, coefficients / np.maximum(ways, 1), 0.0)


def _divisions(total: int, parts: int) -> np.ndarray:
    """All `[C, parts]` int64 rows of numbers >= 0 with that sum."""
    if parts == 1:
        return np.full((1, 1), total)
    rows = [_divisions(total - first, parts - 1) for first in range(total + 1)]
    heads = [np.full((len(rest), 1), first) for first, rest in enumerate(rows)]
    return np.concatenate([np.concatenate(pair, axis=1) for pair in zip(heads, rows, strict=True)])


def _multinomial(counts: np.ndarray) -> np.ndarray:
    """`total! / Π count!` `[C]` of rows `[C, K]`."""
    factorial = np.array([float(math.factorial(i)) for i in range(int(counts.sum(axis=1).max(initial=0)) + 1)])
    return factorial[counts.sum(axis=1)] / np.prod(factorial[counts], axis=1)


def binomial(total: int, chance: float) -> np.ndarray:
    """The chance of 0, 1, …, `total` successes, `[total + 1]`."""
    k = np.arange(total + 1)
    return np.array([math.comb(total, i) for i in k], np.float64) * chance**k * (1 - chance) ** (total - k)


def purity(hit_rate: float, luck: float, reading: float = 1.0) -> float:
    """ρ: the share of hits among correct trajectories, where a hit answers right with chance `reading` and a miss with
    chance `luck`."""
    read, guessed = hit_rate * reading, (1 - hit_rate) * luck
    return read / (read + guessed)


def right_consensus(purity: float, correct: int) -> float:
    """More than half of n correct trajectories are hits: then, and only then, a strict majority points at the lesion
    that the hits share, wherever the others look (if that is elsewhere)."""
    return float(binomial(correct, purity)[correct // 2 + 1 :].sum())


def right_consensus_of_group(purity: float, correct_chance: float, trajectories: int) -> float:
    """The same where each of M trajectories is correct with a chance of its own; no correct one: no consensus."""
    by_number = [right_consensus(purity, n) for n in range(trajectories + 1)]
    return float(binomial(trajectories, correct_chance) @ by_number)


def shared_box_reward(share: float, correct: int, high: float = 1.0, low: float = 0.5) -> float:
    """E[R_tool] of a correct trajectory whose very box each of the n - 1 others has with chance `share`, while all
    other boxes lie elsewhere: high if more than half of the n have it."""
    others = binomial(correct - 1, share)
    agreed = others[np.arange(correct) + 1 > correct / 2].sum()
    return float(low + (high - low) * agreed)


def habit_gap(purity: float, correct: int, habits: int = 1, high: float = 1.0, low: float = 0.5) -> float:
    """E[R_tool | hit] - E[R_tool | lucky miss] where hits share one box, and misses spread evenly over `habits` others.

    It is positive if and only if ρ > 1 / (habits + 1), whatever n >= 2 is.
    """
    hit = shared_box_reward(purity, correct, high, low)
    return hit - shared_box_reward((1 - purity) / habits, correct, high, low)


def habit_gap_of_votes(
    purity: float,
    correct: int,
    habits: int,
    maximum_popularity: float,
    places: float = math.inf,
    high: float = 1.0,
    low: float = 0.5,
) -> float:
    """`habit_gap` where who is too popular has no vote, for a step of many questions whose findings are equally often
    at each of `places` places: a habit has the popularity (1 - ρ) / habits, a hit ρ / places.

    With a limit τ it is positive for every purity if 1 / places <= τ < 1 / (habits + 1) (and n >= 2).
    """
    habits_vote = (1 - purity) / habits <= maximum_popularity
    hits_vote = purity / places <= maximum_popularity
    if habits_vote and hits_vote:
        return habit_gap(purity, correct, habits, high, low)
    if hits_vote:
        return high - low  # only hits vote, and all of them agree
    if not habits_vote:
        return 0.0  # nobody votes
    others = binomial(correct - 1, 1 - purity)  # only misses vote: a hit never agrees, a miss with its own habit
    return -sum(p * (shared_box_reward(1 / habits, 1 + n, high, low) - low) for n, p in enumerate(others))


class BoxKinds(NamedTuple):
    """The boxes that correct trajectories may hold: `boxes [K, 4]` (x1, y1, x2, y2) in any unit, `hit [K]` bool, and
    `chance [K]` of each among hits, or among misses."""

    boxes: np.ndarray
    hit: np.ndarray
    chance: np.ndarray

    @classmethod
    def of(cls, hits: Sequence[Sequence[float]], misses: Sequence[Sequence[float]]) -> BoxKinds:
        """Hits and misses spread evenly over their boxes."""
        hit = np.arange(len(hits) + len(misses)) < len(hits)
        chance = np.where(hit, 1 / len(hits), 1 / len(misses))
        return cls(np.array([*hits, *misses], np.float64), hit, chance)


def tool_reward_by_kind(
    kinds: BoxKinds,
    purity: float | np.ndarray,
    correct: int,
    *,
    eta: float = 0.5,
    high: float = 1.0,
    low: float = 0.5,
) -> np.ndarray:
    """E[R_tool] under CCA of a correct trajectory with a box of each kind, given n correct ones in its group:
    `[..., K]` for purities `[...]`.

    All divisions of the other n - 1 among the kinds are enumerated; masks are unions of the cells between the boxes'
    edges, so that areas are exact.
    """
    law = np.where(kinds.hit, np.asarray(purity)[..., None], 1 - np.asarray(purity)[..., None]) * kinds.chance
    counts = _divisions(correct - 1, len(kinds.chance))
    weight = _multinomial(counts) * np.prod(law[..., None, :] ** counts, axis=-1)  # [..., C]
    cover, area = _cells(kinds.boxes)
    votes = counts @ cover
    rewards = []
    for mask in cover:
        agreed = (2 * (votes + mask) > correct) * area
        shared = agreed @ mask
        iou = shared / (area @ mask + agreed.sum(axis=1) - shared)
        rewards.append(weight @ np.where(iou > eta, high, low))
    return np.stack(rewards, axis=-1)


def tool_reward_gap(
    kinds: BoxKinds,
    purity: float | np.ndarray,
    correct: int,
    *,
    eta: float = 0.5,
    high: float = 1.0,
    low: float = 0.5,
) -> np.ndarray:
    """E[R_tool | hit] - E[R_tool | lucky miss] given n correct trajectories, `[...]` for purities `[...]`."""
    rewards = tool_reward_by_kind(kinds, purity, correct, eta=eta, high=high, low=low)
    return rewards @ np.where(kinds.hit, kinds.chance, -kinds.chance)


def tool_reward_gap_of_group(
    kinds: BoxKinds, purity: float, correct_chance: float, trajectories: int, *, eta: float = 0.5
) -> float:
    """The same where each of the M - 1 others is correct with a chance of its own."""
    number = binomial(trajectories - 1, correct_chance)
    return float(sum(p * tool_reward_gap(kinds, purity, 1 + n, eta=eta) for n, p in enumerate(number)))


def _cells(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The plane cut at all edges of `boxes [K, 4]`: which cells each box covers `[K, cells]`, 0 or 1; their areas."""
    x, y = np.unique(boxes[:, [0, 2]]), np.unique(boxes[:, [1, 3]])
    x1, y1, x2, y2 = boxes.T[..., None]
    inside_x = (x1 <= x[:-1]) & (x[1:] <= x2)
    inside_y = (y1 <= y[:-1]) & (y[1:] <= y2)
    cover = (inside_y[:, :, None] & inside_x[:, None, :]).reshape(len(boxes), -1)
    return cover.astype(np.float64), np.outer(np.diff(y), np.diff(x)).ravel()
