"""The recipe of the arms: every arm is valid, and differs from the baseline in what its name says alone."""

from __future__ import annotations

import pytest

from configs import arms, variants
from medvr_jax.configuration import load_config
from medvr_jax.experiments.grid import Experiment, read_experiment
from medvr_jax.fields import leaves

SPEC = "configs/arms.py"
EVR, TOOL = "evr.enabled", "rewards.tool"
CHANGES = {  # from the arm `zoom`
    "text": {"rollout.tools", "prompt.system", TOOL},
    "zoom": set(),
    "evr": {EVR},
    "evr_one_pass": {EVR, "evr.spending"},
    "cca": {TOOL},
    "both": {EVR, TOOL},
    "random": {EVR, "evr.gate"},
    "random_one_pass": {EVR, "evr.gate", "evr.spending"},
    "uncertain": {EVR, "evr.position"},
    "gamma_0": {EVR, "evr.gamma"},
    "gamma_2": {EVR, "evr.gamma"},
    "unrewarded": {TOOL},
    "unconditional": {TOOL},
    "both_4": {EVR, TOOL, "rollout.trajectories"},
    "cca_eta_.4": {TOOL, "rewards.eta"},
    "cca_votes": {TOOL, "rewards.maximum_popularity"},
    "both_votes": {EVR, TOOL, "rewards.maximum_popularity"},
    "prior_zoom": {"data.synthetic.prior", "steps"},
    "anywhere_zoom": {"data.synthetic.lesions"},
}


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return read_experiment(load_config(SPEC), SPEC, [])


def test_arms_differ_in_what_they_say(experiment: Experiment) -> None:
    plain = dict(leaves(experiment.arms["zoom"].config))
    for name, changes in CHANGES.items():
        own = dict(leaves(experiment.arms[name].config))
        assert {field for field in own if own[field] != plain[field]} == changes, name


def test_the_grid_is_that_of_the_question(experiment: Experiment) -> None:
    """Ten seeds for the paper's arms, five for the controls, and every pair on the same questions."""
    seeds = {name: len(arm.seeds) for name, arm in experiment.arms.items()}
    assert all(seeds[name] >= 10 for name in ("text", "zoom", "evr", "evr_one_pass", "cca", "both"))
    assert all(seeds[name] >= 5 for name in seeds)
    gammas = {experiment.arms[name].config.evr.gamma for name in seeds if name.startswith("gamma") or name == "evr"}
    assert gammas == {0, 0.25, 0.5, 1, 2}
    sizes = {arm.config.rollout.trajectories for name, arm in experiment.arms.items() if name.startswith("both")}
    assert sizes == {4, 8, 16, 32}


def test_fields_behind_a_variant() -> None:
    assert variants.split_fields("evr,gamma=1,evr.spending=one_pass") == (
        "evr,gamma=1",
        [("evr.spending", "one_pass")],
    )
    assert variants.split_fields("steps=3,reward=none, zoom") == ("reward=none,zoom", [("steps", "3")])
    assert variants.split_fields("rewards.eta=0.4") == ("", [("rewards.eta", "0.4")])
    config = arms.get_config("rewards.eta=0.4,data.synthetic.lesions=anywhere")
    assert (config.rewards.eta, config.data.synthetic.lesions, config.rewards.tool) == (0.4, "anywhere", "consensus")
