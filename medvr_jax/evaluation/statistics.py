"""How sure is a figure, and do two runs differ? Pure functions of arrays, one value per question [Q]."""

from __future__ import annotations

import dataclasses
import math
import zlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: by question, `repeats` times, the middle `level` of the means."""

    repeats: int = 1000
    seed: int = 0
    level: float = 0.95

    def means(self, values: np.ndarray, label: str = "") -> np.ndarray:
        """Means `[R]` of samples with replacement of `values [Q]`; figures that are put together need different labels.

        How often each distinct value is drawn is all that the mean depends on, and is multinomial: one draw of counts
        instead of Q draws of questions.
        """
        generator = np.random.default_rng([self.seed, zlib.crc32(label.encode())])
        levels, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
        drawn = generator.multinomial(len(values), counts / len(values), size=self.repeats)
        return drawn @ levels / len(values)

    def interval(self, means: np.ndarray) -> tuple[float, float]:
        """The ends of the middle `level` of the means `[R]`."""
        tail = (1 - self.level) / 2
        low, high = np.quantile(means, (tail, 1 - tail))
        return float(low), float(high)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of `wins` against `losses` when each is as likely (ties are left out).

    For one right or wrong answer per question this is McNemar's exact test.
    """
    number = wins + losses
    if not number:
        return 1.0
    logarithms = [
        math.lgamma(number + 1) - math.lgamma(k + 1) - math.lgamma(number - k + 1) - number * math.log(2)
        for k in range(min(wins, losses) + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logarithms)))


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that at least one of `k` of the samples, drawn without replacement, is right: unbiased for k new ones."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks `[Q]` from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def pearson(first: np.ndarray, second: np.ndarray) -> float | None:
    """Correlation of two arrays `[Q]`; None where one does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Correlation of the ranks of two arrays `[Q]`; None where one does not vary."""
    return pearson(ranks(np.asarray(first)), ranks(np.asarray(second)))
