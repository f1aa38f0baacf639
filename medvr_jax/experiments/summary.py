"""From the runs of an experiment to its figures: one row per arm, and differences seed by seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from medvr_jax.experiments.grid import Experiment
from medvr_jax.experiments.options import ACCURACY
from medvr_jax.experiments.run_files import Run
from medvr_jax.experiments.statistics import Difference, Mean, mean_of, paired_difference

Runs = Mapping[str, Mapping[int, Run]]  # by arm, then by seed
HIT_RATE, BASE_RIGHT = "eval/hit_rate", "base/right_rate"
_SHOWN_STEPS = 4  # at which the table tells the accuracy


@dataclasses.dataclass(frozen=True)
class ArmSummary:
    """Means over the seeds of an arm; None where no run has the figure.

    Attributes:
        name: of the arm.
        count: seeds that are done.
        accuracy: held-out, by step.
        hit_rate: of the held-out zooms at the end.
        base_right: right answers among the base trajectories of training, mean over all steps.
        area: under the curve of the held-out accuracy.
    """

    name: str
    count: int
    accuracy: Mapping[int, Mean]
    hit_rate: Mean | None
    base_right: Mean | None
    area: Mean | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """first - second over the seeds that both have: the area, and the accuracy at the end."""

    first: str
    second: str
    area: Difference
    final: Difference


def summarise_arm(name: str, runs: Sequence[Run]) -> ArmSummary:
    """The row of an arm."""
    base = [float(np.mean([value for _, value in curve])) for run in runs if (curve := run.curve(BASE_RIGHT))]
    return ArmSummary(
        name=name,
        count=len(runs),
        accuracy=mean_curve(runs, ACCURACY),
        hit_rate=_mean([run.final(HIT_RATE) for run in runs]),
        base_right=_mean(base),
        area=_mean([run.area for run in runs]),
    )


def _mean(values: Sequence[float | None]) -> Mean | None:
    known = [value for value in values if value is not None]
    return mean_of(known) if known else None


def mean_curve(runs: Sequence[Run], key: str) -> dict[int, Mean]:
    """By step, the mean over the runs that have a number there."""
    found: dict[int, list[float]] = {}
    for run in runs:
        for step, value in run.curve(key):
            found.setdefault(step, []).append(value)
    return {step: mean_of(found[step]) for step in sorted(found)}


def compare(first: str, second: str, runs: Runs) -> Comparison | None:
    """None where no seed has both."""
    seeds = sorted(set(runs[first]) & set(runs[second]))
    if not seeds:
        return None
    one, other = ([runs[name][seed] for seed in seeds] for name in (first, second))
    return Comparison(
        first,
        second,
        paired_difference([run.area for run in one], [run.area for run in other]),
        paired_difference([run.final(ACCURACY) for run in one], [run.final(ACCURACY) for run in other]),
    )


def comparisons(experiment: Experiment, runs: Runs) -> list[Comparison]:
    """Every arm against the baseline, where both answer the same questions, then the further pairs."""
    baseline = experiment.grid.baseline
    wanted = [(n, baseline) for n in experiment.arms if n != baseline and experiment.comparable(n, baseline)]
    found = (compare(first, second, runs) for first, second in dict.fromkeys([*wanted, *experiment.grid.pairs]))
    return [one for one in found if one]


def shown_steps(summaries: Sequence[ArmSummary]) -> list[int]:
    """A few of the steps at which accuracy is known, the first and the last among them, spread evenly."""
    steps = sorted({step for summary in summaries for step in summary.accuracy})
    places = np.linspace(0, len(steps) - 1, min(_SHOWN_STEPS, len(steps))).round().astype(int)
    return [steps[place] for place in places]
