"""The words behind a recipe's colon: what they set, what they leave alone, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs import medvlm_r1_qwen2_vl_2b as medvlm
from configs import variants
from medvr_jax import configuration
from medvr_jax.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MEDVR = ("tiny_cpu", "medvr_qwen2_5_vl_3b", "medvr_qwen2_5_vl_7b", "medvr_qwen2_5_vl_32b", "omnimedvqa_36k")
ZOOM = ("image_zoom_in_tool",)
# tools, forks, tool reward, gamma
EXPECTED = {
    "text": ((), False, "none", 0.5),
    "zoom": (ZOOM, False, "conditional", 0.5),
    "evr": (ZOOM, True, "conditional", 0.5),
    "cca": (ZOOM, False, "consensus", 0.5),
    "full": (ZOOM, True, "consensus", 0.5),
    "reward=none": (ZOOM, True, "none", 0.5),
    "reward=unconditional": (ZOOM, True, "unconditional", 0.5),
    "full,reward=conditional": (ZOOM, True, "conditional", 0.5),
    "reward=cca": (ZOOM, True, "consensus", 0.5),
    "zoom,reward=none": (ZOOM, False, "none", 0.5),
    "gamma=0": (ZOOM, True, "consensus", 0.0),
    "full,gamma=0.25": (ZOOM, True, "consensus", 0.25),
    "gamma=1, evr": (ZOOM, True, "conditional", 1.0),
    "gamma=2,reward=none": (ZOOM, True, "none", 2.0),
}


def load(name: str, variant: str | None = None) -> Any:
    spec = f"{CONFIGS}/{name}.py" + ("" if variant is None else f":{variant}")
    return configuration.load_config(spec, files=False)


def refused(name: str, variant: str) -> str:
    """What is said of a variant that a recipe does not have."""
    with pytest.raises(UserError, match="^--config: found variant") as caught:
        load(name, variant)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", MEDVR)
def test_medvr_variants_set_what_they_name_and_nothing_else(name: str) -> None:
    plain = dict(configuration.leaves(load(name)))
    fields = ("rollout.tools", "evr.enabled", "rewards.tool", "evr.gamma")
    for variant, expected in EXPECTED.items():
        flat = dict(configuration.leaves(load(name, variant)))
        assert tuple(flat[field] for field in fields) == expected, variant
        differing = {field for field in flat if flat[field] != plain[field]}
        assert differing <= {*fields, *(["prompt.system"] if name == "tiny_cpu" else [])}, variant


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (
            "",
            "found variant '', allowed are text, zoom, evr, cca, full, reward=none|unconditional|conditional|cca, gam",
        ),
        ("zooom", "found variant 'zooom', allowed are text, zoom"),
        ("zoom,", "found variant '', allowed are"),
        ("zoom,full", "found variant 'zoom,full' with both zoom and full"),
        ("gama=1", "found variant 'gama=1', allowed are"),
        ("gamma", "found variant 'gamma', allowed are"),
        ("gamma=1,gamma=2", "with gamma twice"),
        ("gamma=", "found variant 'gamma=', allowed are numbers from 0 on"),
        ("gamma=-1", "found variant 'gamma=-1', allowed are numbers"),
        ("gamma=nan", "found variant 'gamma=nan', allowed are numbers"),
        ("gamma=inf", "found variant 'gamma=inf', allowed are numbers"),
        ("reward=consensus", "found variant 'reward=consensus', allowed are none, unconditional, conditional, cca"),
        ("text,reward=cca", "found variant 'text,reward=cca', but text has no tool"),
        ("cca,reward=none", "found variant 'cca,reward=none', but cca is the reward"),
        ("zoom,gamma=1", "found variant 'zoom,gamma=1', but zoom has no forks"),
    ],
)
def test_what_a_variant_cannot_be(variant: str, message: str) -> None:
    assert message in refused("medvr_qwen2_5_vl_7b", variant)


def test_medvlm_r1_is_the_papers_recipe() -> None:
    config = load("medvlm_r1_qwen2_vl_2b")
    assert config.rollout.tools == () and not config.evr.enabled and config.rollout.trajectories == 4
    assert config.rewards.scheme == "medvlm_r1" and config.rewards.tool == "none"
    assert config.grpo.aggregation == "sequence" and config.grpo.kl_weight == 0.04 and config.grpo.normalise_by_std
    assert config.optimizer.learning_rate == 1e-6 and config.rollout.temperature == 1.0
    assert config.rollout.response_length == 512 and config.prompt.max_pixels == 401408
    assert config.steps * config.data.prompts_per_step == 2 * 600 and config.data.test_examples == 3 * 300
    assert config.data.sets == ("medvlm_r1",)
    assert "single-letter choice" in config.prompt.template


@pytest.mark.parametrize("modality", medvlm.MODALITIES)
def test_a_modality_is_all_that_med_r1_changes(modality: str) -> None:
    plain = dict(configuration.leaves(load("medvlm_r1_qwen2_vl_2b")))
    flat = dict(configuration.leaves(load("medvlm_r1_qwen2_vl_2b", f"modality={modality}")))
    assert {name for name in flat if flat[name] != plain[name]} == {"data.sets"}
    assert flat["data.sets"] == (f"omnimedvqa/{medvlm.MODALITIES[modality]}",)


def test_tiny_is_the_same_method() -> None:
    """What the tiny variant changes is the model, the data, the budget and the form of its one question."""
    plain = dict(configuration.leaves(load("medvlm_r1_qwen2_vl_2b")))
    flat = dict(configuration.leaves(load("medvlm_r1_qwen2_vl_2b", "tiny")))
    for name in flat:
        if name.startswith(("rewards.", "grpo.", "evr.", "rollout.t")) or name == "rollout.max_turns":
            assert flat[name] == plain[name], name


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("small", "found variant 'small', allowed are tiny, modality=ct|mri|xray"),
        ("modality=pet", "found variant 'modality=pet', allowed are ct, mri, xray"),
        ("tiny,modality=ct", "found variant 'tiny' with a modality"),
        ("", "found variant ''"),
    ],
)
def test_what_a_variant_of_medvlm_r1_cannot_be(variant: str, message: str) -> None:
    assert message in refused("medvlm_r1_qwen2_vl_2b", variant)


def test_words_are_those_of_the_ablation() -> None:
    assert tuple(variants.ROWS) == ("text", "zoom", "evr", "cca", "full")
    assert variants.parse("full", ("full",), {}) == variants.Variant("full", {})
