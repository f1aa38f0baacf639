"""The figures of an experiment as Markdown, and as JSON Lines for other programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medvr_jax.experiments.grid import Experiment
from medvr_jax.experiments.options import ACCURACY
from medvr_jax.experiments.run_files import Run
from medvr_jax.experiments.statistics import Difference, Mean
from medvr_jax.experiments.summary import (
    HIT_RATE,
    ArmSummary,
    Comparison,
    Runs,
    comparisons,
    shown_steps,
    summarise_arm,
)
from medvr_jax.reports.metrics import json_line

_NOTE = """Means over seeds ± standard error. Accuracy: held-out questions, one greedy trajectory each. Area: under the
curve of the accuracy over the steps, divided by their number. Right in training: base trajectories alone, which no fork
selected, mean over the steps. Differences are taken seed by seed, on the same questions in the same order; brackets
are 95 % intervals (Student's t) over seeds, for these held-out questions, bold where they exclude zero, and none is
corrected for their number. The last column is the true difference that so many pairs, spread like these, would find in
four of five experiments."""


def table(experiment: Experiment, runs: Runs) -> str:
    """All arms, then all differences."""
    summaries = [summarise_arm(name, list(runs[name].values())) for name in experiment.arms]
    return "\n\n".join([_arms(summaries), _differences(comparisons(experiment, runs)), _NOTE]) + "\n"


def result_lines(runs: Runs) -> str:
    """One JSON object for each finished run."""
    return "".join(json_line(_result(run)) for of_arm in runs.values() for run in of_arm.values())


def _result(run: Run) -> dict[str, object]:
    curve = run.curve(ACCURACY)
    return {
        "arm": run.arm,
        "seed": run.seed,
        "area": run.area,
        "final": run.final(ACCURACY),
        "hit_rate": run.final(HIT_RATE),
        "steps": [step for step, _ in curve],
        "curve": [value for _, value in curve],
        "seconds": run.seconds,
    }


def _arms(summaries: Sequence[ArmSummary]) -> str:
    steps = shown_steps(summaries)
    columns = ["seeds", *(f"accuracy at {step}" for step in steps), "hit rate", "right in training", "area"]
    rows = [
        [one.name, str(one.count), *(_mean(one.accuracy.get(step)) for step in steps)]
        + [_mean(mean) for mean in (one.hit_rate, one.base_right, one.area)]
        for one in summaries
    ]
    return "\n".join(_markdown(["arm", *columns], rows))


def _differences(found: Sequence[Comparison]) -> str:
    if not found:
        return "No seed has two arms to compare yet."
    rows = [
        [f"{one.first} − {one.second}", str(one.area.count), _interval(one.area), _interval(one.final)]
        + [share(one.area.detectable)]
        for one in found
    ]
    return "\n".join(_markdown(["difference", "pairs", "area", "accuracy at the end", "detectable area"], rows))


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|---{'|---:' * (len(columns) - 1)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def share(value: float | None, sign: str = "") -> str:
    """.612, 1.000, −.026; with `sign` "+" also +.090; a dash for none."""
    if value is None:
        return "–"
    text = f"{abs(value):.3f}".removeprefix("0" if abs(value) < 0.9995 else "")
    return ("−" if value < 0 and float(text) else sign) + text


def _mean(mean: Mean | None) -> str:
    if mean is None:
        return "–"
    return share(mean.value) + ("" if mean.error is None else f" ± {share(mean.error)}")


def _interval(difference: Difference) -> str:
    text = share(difference.mean, "+")
    if difference.low is None:
        return text
    text += f" [{share(difference.low, '+')}, {share(difference.high, '+')}]"
    return f"**{text}**" if difference.is_clear else text
