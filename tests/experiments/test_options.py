"""The section `experiment`: what it means, and what it cannot mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvr_jax.configuration import leaves, load_config
from medvr_jax.errors import UserError
from medvr_jax.experiments.options import read_grid
from tests.experiments.made_runs import RECIPE, made_experiment

ARMS = '("zoom=zoom", "calm=evr,gamma=0@3", "plain=")'


def test_arms_are_variants_with_seeds() -> None:
    experiment = made_experiment(arms=ARMS, seeds=2, pairs="calm-plain", figures='("G=evr.gamma:calm,plain;zoom",)')
    zoom, calm, plain = experiment.arms.values()
    assert (zoom.seeds, calm.seeds, plain.seeds) == ((0, 1), (0, 1, 2), (0, 1))
    assert (zoom.config.evr.enabled, calm.config.evr.gamma, plain.config.evr.gamma) == (False, 0.0, 0.5)
    assert zoom.model == calm.model and len(zoom.model) == 16
    grid = experiment.grid
    assert (grid.baseline, grid.pairs, grid.workers) == ("zoom", (("calm", "plain"),), 2)
    (figure,) = grid.figures
    assert (figure.title, figure.kind, figure.series) == ("G", "evr.gamma", (("calm", "plain"), ("zoom",)))
    assert (figure.stem, figure.metric) == ("g", None)


def test_overrides_apply_to_every_arm() -> None:
    overrides = [("experiment.arms", "zoom=zoom,evr=evr"), ("seed", "7"), ("grpo.clip_high", "0.5")]
    from medvr_jax.experiments.grid import read_experiment

    experiment = read_experiment(load_config(RECIPE, overrides), RECIPE, overrides)
    assert [arm.config.grpo.clip_high for arm in experiment.arms.values()] == [0.5, 0.5]
    assert experiment.arms["evr"].seeds == tuple(range(7, 17))


def test_figures_have_titles_of_their_own() -> None:
    texts = '("curves:a", "eval/hit_rate:a", "area:a", "entropy:a", "rollout.trajectories:a", "Aus = 3=curves:a")'
    config = load_config(RECIPE, [("experiment.arms", "a=zoom"), ("experiment.figures", texts)])
    figures = read_grid(dict(leaves(config))).figures
    assert [figure.metric for figure in figures] == [
        "eval/accuracy",
        "eval/hit_rate",
        None,
        None,
        None,
        "eval/accuracy",
    ]
    assert len({figure.stem for figure in figures}) == 6
    assert figures[-1].title == "Aus = 3"
    assert figures[4].title == "Area under the accuracy curve against rollout.trajectories"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": "zoom"}, "experiment.arms: found 'zoom', allowed are NAME=VARIANT and NAME=VARIANT@SEEDS"),
        ({"arms": "../up=zoom"}, "experiment.arms: found '../up=zoom', allowed are"),
        ({"arms": "a=zoom@0"}, "experiment.arms: found 'a=zoom@0', allowed are"),
        ({"arms": "(3,)"}, "experiment.arms: found 3, allowed are"),
        ({"arms": "a=zoom,a=evr"}, "experiment.arms: found the name 'a' 2 times, allowed is once"),
        ({"arms": "a=zoom", "baseline": "b"}, "experiment.baseline: found 'b', allowed are the names in"),
        ({"baseline": "b"}, "experiment.baseline: found 'b', allowed are none without experiment.arms"),
        ({"arms": "a=zoom", "pairs": "a"}, "experiment.pairs: found 'a', allowed are NAME-NAME"),
        ({"arms": "a=zoom", "pairs": "a-c"}, "experiment.pairs: found 'c', allowed are the names"),
        ({"arms": "a=zoom", "pairs": "a-a"}, "experiment.pairs: found 'a-a', allowed are two different arms"),
        ({"arms": "a=zoom,b=evr", "pairs": "a-b,a-b"}, "experiment.pairs: found 'a-b', allowed are two different arms"),
        ({"arms": "a=zoom", "figures": "curves"}, "experiment.figures: found 'curves', allowed are KIND:NAME,NAME"),
        ({"arms": "a=zoom", "figures": "=curves:a"}, "experiment.figures: found '=curves:a', allowed are"),
        ({"arms": "a=zoom", "figures": "curves:b"}, "experiment.figures: found 'b', allowed are the names"),
        ({"arms": "a=zoom", "figures": "curvs:a"}, "found the kind 'curvs', allowed are curves, area, entropy"),
        ({"arms": "a=zoom", "figures": "speed/samples:a"}, "found the kind 'speed/samples', allowed are curves"),
        ({"arms": "a=zoom", "figures": "evr.enabled:a"}, "experiment.figures: found the kind 'evr.enabled', allowed"),
        ({"arms": "a=zoom", "figures": '("curves:a,area:a",)'}, "experiment.figures: found 'area:a', allowed are"),
        ({"arms": "a=zoom", "figures": '("curves:a", "curves:a")'}, "2 figures with the title 'Held-out accuracy'"),
        ({"seeds": 0}, "experiment.seeds: found 0, allowed is 1 or more"),
        ({"workers": 0}, "experiment.workers: found 0, allowed is 1 or more"),
        ({}, "experiment.arms: found (), but --mode=experiment runs the arms that the recipe names"),
        ({"arms": "a=zoom,b=zooom"}, "experiment.arms: b: --config: found variant 'zooom', allowed are text"),
        ({"arms": "a=zoom,b=window", "pairs": "a-b"}, "experiment.pairs: found 'a-b', which differ in"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_costs_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        made_experiment(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_arms_with_other_questions_are_not_compared_with_the_baseline() -> None:
    experiment = made_experiment(arms="a=zoom,b=window,c=evr")
    assert [experiment.comparable(name, "a") for name in "abc"] == [True, False, True]


def test_a_supervised_recipe_has_no_arms(tmp_path: Path) -> None:
    from medvr_jax.experiments.grid import read_experiment

    overrides, recipe = [("experiment.arms", "a=")], "configs/tiny_warmup.py"
    with pytest.raises(UserError, match="trainer: found 'supervised' in arm a, --mode=experiment needs 'grpo'"):
        read_experiment(load_config(recipe, overrides), recipe, overrides)
