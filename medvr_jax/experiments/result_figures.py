"""The figures of an experiment, from its runs: curves with bands, points with error bars, rows of arms."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from medvr_jax.evaluation.statistics import spearman
from medvr_jax.experiments.grid import Experiment
from medvr_jax.experiments.options import AREA, CURVES, ENTROPY, TITLES, FigureOption
from medvr_jax.experiments.plots import Line, Plot, RowPlot, draw, draw_rows
from medvr_jax.experiments.run_files import Run
from medvr_jax.experiments.statistics import mean_of
from medvr_jax.experiments.summary import Runs, mean_curve
from medvr_jax.fields import leaves

_BINS = 8  # of equally many zooms
AREA_NAME = "area under the accuracy curve"


def figures(experiment: Experiment, runs: Runs) -> dict[FigureOption, str]:
    """SVG text of every figure of the recipe that there are runs for."""
    drawn = {figure: _draw(figure, experiment, runs) for figure in experiment.grid.figures}
    return {figure: svg for figure, svg in drawn.items() if svg}


def _draw(figure: FigureOption, experiment: Experiment, runs: Runs) -> str | None:
    known = [[name for name in names if runs[name]] for names in figure.series]
    if figure.kind == AREA:
        rows = [(name, mean_of([run.area for run in runs[name].values()])) for names in known for name in names]
        found = [(f"{name} ({mean.count})", mean.value, mean.error) for name, mean in rows]
        return draw_rows(RowPlot(figure.title, f"{AREA_NAME}, ± standard error (seeds)", found)) if found else None
    if figure.kind == ENTROPY:
        lines = [entropy_line(name, list(runs[name].values())) for names in known for name in names]
        x_name, y_name = "mean entropy of the coordinates, nats; ± standard error over seeds", "IoU with the true box"
    elif figure.metric:
        lines = [curve_line(name, list(runs[name].values()), figure.metric) for names in known for name in names]
        x_name, y_name = "updates; band: ± standard error", TITLES[CURVES] if figure.kind == CURVES else figure.metric
    else:
        lines = [field_line(names, figure.kind, experiment, runs) for names in known if names]
        x_name, y_name = f"{figure.kind}; ± standard error", AREA_NAME
    lines = [line for line in lines if line.points]
    return draw(Plot(figure.title, x_name, y_name, lines)) if lines else None


def curve_line(name: str, runs: Sequence[Run], key: str) -> Line:
    """The mean of a key over the seeds, step by step, with its band."""
    means = mean_curve(runs, key)
    points = [(float(step), mean.value) for step, mean in means.items()]
    return Line(f"{name} ({len(runs)})", points, [mean.error or 0.0 for mean in means.values()])


def field_line(names: Sequence[str], field: str, experiment: Experiment, runs: Runs) -> Line:
    """The area of some arms against a field of their configurations, over the seeds that all of them have.

    The line is called by what the arms' names begin with, if that is the same.
    """
    seeds = sorted(set.intersection(*(set(runs[name]) for name in names)))
    label = f"{os.path.commonprefix(list(names)).rstrip('_. ') or ', '.join(names)} ({len(seeds)})"
    found = []
    for name in names if seeds else ():
        mean = mean_of([runs[name][seed].area for seed in seeds])
        found.append((float(dict(leaves(experiment.arms[name].config))[field]), mean.value, mean.error or 0.0))
    found.sort()
    return Line(label, [(x, y) for x, y, _ in found], [error for _, _, error in found], marks=True)


def entropy_line(name: str, runs: Sequence[Run]) -> Line:
    """Mean IoU of zooms in bins of their entropy, over all seeds; its error is that over the seeds' own means.

    The label tells the rank correlation over all zooms, if it is defined.
    """
    entropy, iou = (np.array([look[i] for run in runs for look in run.looks], np.float64) for i in (0, 1))
    if not len(entropy):
        return Line(name, [], [])
    seed = np.repeat(np.arange(len(runs)), [len(run.looks) for run in runs])
    edges = np.unique(np.quantile(entropy, np.linspace(0, 1, _BINS + 1)))
    bins = np.clip(np.searchsorted(edges, entropy, side="right") - 1, 0, max(len(edges) - 2, 0))
    points, errors = [], []
    for number in np.unique(bins):
        inside = bins == number
        of_seeds = [iou[inside & (seed == s)].mean() for s in np.unique(seed[inside])]
        points.append((float(entropy[inside].mean()), float(iou[inside].mean())))
        errors.append(mean_of(of_seeds).error or 0.0)
    correlation = spearman(entropy, iou)
    told = "" if correlation is None else f", rank correlation {correlation:+.2f}".replace("-", "−")
    return Line(f"{name} ({len(entropy)} zooms{told})", points, errors, marks=True)
