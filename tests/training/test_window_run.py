"""Runs with the windowing tool: its rollouts, forks at its windows, and a short training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from medvr_jax import assembly
from medvr_jax.inputs.chat import encode_observation, encode_prompts
from medvr_jax.inputs.images import load_original
from medvr_jax.rollout.tools import parse_tool_call, run_tool_call
from medvr_jax.training import sharding
from medvr_jax.training.loop import train
from tests.tiny_run import small_config


@pytest.fixture(scope="module")
def rolled() -> tuple[Any, Any]:
    """A rollout with forks, which are sure where the entropy rises at all."""
    sizes = {"data__prompts_per_step": 4, "data__evaluation_batch": 4}
    config = small_config("window", evr__enabled=True, evr__p_base=0.9, evr__threshold=-0.5, **sizes)
    parts = assembly.assemble(config, jax.devices()[:1])
    params = jax.device_put(parts.params, sharding.parameter_shardings(parts.params, parts.sampling_layout))
    engine = parts.engine(assembly.training_rollout(config, parts.backbone))
    prompts = encode_prompts(parts.source.train(0, 4), parts.encoder)
    return parts, engine.run(params, prompts, assembly.run_seed_key(config, 0))


def test_the_policy_sees_what_the_tool_makes(rolled: tuple[Any, Any]) -> None:
    """The image at a trajectory's observation is the window that its own text asks for; equal windows share one."""
    parts, rollout = rolled
    per_image, shared = 16, 0
    for b, group in enumerate(rollout.trajectories):
        original, places = load_original(rollout.prompts[b].example.images[0]), {}
        for m, trajectory in enumerate(group):
            assert trajectory.zooms == ()
            index = np.asarray(rollout.feature_index[b, m])
            if not trajectory.images:
                assert (index < 0).all()
                continue
            assert trajectory.turns[0].observation == "image"
            call = parse_tool_call(trajectory.texts[0])
            image = run_tool_call(call, parts.tools, original, rollout.prompts[b].images[0]).image
            (place,) = set((index[index >= 0] // per_image).tolist())
            expected = encode_observation(parts.encoder, 0, crop=image).image
            np.testing.assert_array_equal(rollout.crops[b][place].patches, expected.patches)
            shared += places.setdefault(tuple(call.arguments["window"]), place) == place
            assert places[tuple(call.arguments["window"])] == place
        assert len(set(places.values())) == len(places)
    assert shared > 16


def test_forks_start_at_the_window(rolled: tuple[Any, Any]) -> None:
    """EVR's coordinates are the two numbers of the list: their entropies are H_tool, and a fork samples both anew."""
    parts, rollout = rolled
    decode, forks = parts.encoder.tokenizer.decode, 0
    for b, group in enumerate(rollout.trajectories):
        host = rollout.host
        for decision in rollout.decisions[b]:
            m, start = decision["slot"], decision["position"]
            tokens = host.tokens[b, m].tolist()
            end = next(i for i in range(start, len(tokens)) if "]" in decode([tokens[i]]))
            assert decode([tokens[start - 1]]).endswith("[")
            assert len(json.loads(f"[{decode(tokens[start:end])}]")) == 2
            np.testing.assert_allclose(decision["h_tool"], host.entropy[b, m, start:end].mean(), rtol=1e-4, atol=1e-6)
        for m, trajectory in enumerate(group):
            if trajectory.origin == "fork":
                own, parent = host.tokens[b, m], host.tokens[b, trajectory.parent]
                np.testing.assert_array_equal(own[: trajectory.fork_position], parent[: trajectory.fork_position])
                assert decode([own[trajectory.fork_position - 1]]).endswith("[")
                forks += 1
    assert forks >= 4


def test_the_variant_trains(tmp_path: Path) -> None:
    """Two updates through the entry point's own function; looks without boxes count as what they are."""
    sizes = {"data__prompts_per_step": 8, "mesh__host_devices": 8, "rollout__trajectories": 4}
    config = small_config("window", steps=2, export_at_end=False, **sizes)
    train(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    row = rows[1]
    assert np.isfinite(row["train/loss"]) and row["train/sampler_drift"] < 1e-4
    assert row["rollout/tool_rate"] > 0.5 and row["rollout/valid_call_rate"] > 0.5
    assert "eval/accuracy" in rows[0] and "eval/hit_rate" not in rows[0]
    lines = (tmp_path / "rollouts/step_000001.jsonl").read_text().splitlines()
    looked = [r for r in map(json.loads, lines) if any(t["observation"] == "image" for t in r["turns"])]
    assert looked and all(r["boxes"] == [] for r in looked)
    assert all(r["rewards"]["tool"] == (1.0 if r["correct"] else 0.0) for r in looked)
    assert (tmp_path / "report/index.html").is_file()
