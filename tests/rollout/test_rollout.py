"""Whole rollouts of the tiny policy, with crops and forks: against the scorer, transformers, and NumPy."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from medvr_jax import assembly
from medvr_jax.inputs.chat import encode_observation, encode_prompts
from medvr_jax.inputs.images import load_image
from medvr_jax.rollout import engine as engine_module
from medvr_jax.rollout import settings as settings_module
from medvr_jax.rollout.parts import PartedRollout
from medvr_jax.rollout.state import ACTIVE, DECISION_FIELDS, TURN_ENDED
from medvr_jax.rollout.trajectories import Rollout
from medvr_jax.rollout.turns import Sampled, TurnServer
from medvr_jax.training import sharding
from medvr_jax.training.rewarding import reward_rollout
from medvr_jax.training.trainer import Trainer
from medvr_jax.training.update import make_scorer
from tests.tiny_run import small_config

# A sure fork where the entropy rises at all, so that every rollout has some.
CONFIG = {"evr__p_base": 0.9, "evr__threshold": -0.2}


def roll(devices: int = 1, prompts: slice = slice(0, 4), step: int = 0, **overrides: object) -> tuple[Any, Rollout]:
    """A rollout of training prompts with the tiny policy."""
    count = prompts.stop - prompts.start
    config = small_config(**(CONFIG | {"data__prompts_per_step": count, "data__evaluation_batch": count} | overrides))
    parts = assembly.assemble(config, jax.devices()[:devices])
    shardings = sharding.parameter_shardings(parts.params, parts.sampling_layout)
    params = jax.device_put(parts.params, shardings)
    encoded = encode_prompts(parts.source.train(prompts.start, count), parts.encoder)
    engine = parts.engine(assembly.training_rollout(config, parts.backbone))
    return parts, engine.run(params, encoded, assembly.run_seed_key(config, step))


@pytest.fixture(scope="module")
def rolled() -> tuple[Any, Rollout]:
    parts, rollout = roll()
    flat = [t for group in rollout.trajectories for t in group]
    # What the tests below stand on; without crops and forks they would prove nothing.
    assert sum(bool(t.zooms) for t in flat) >= 8
    assert sum(t.origin == "fork" for t in flat) >= 4
    return parts, rollout


@pytest.fixture(scope="module")
def float64_log_probabilities(rolled: tuple[Any, Rollout]) -> dict[tuple[int, int], np.ndarray]:
    """By transformers' logits on the flat sequence of each trajectory: row t predicts response token t + 1."""
    parts, rollout = rolled
    banned = parts.engine(assembly.training_rollout(parts.config, parts.backbone)).tables.banned
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(parts.config.model.path).eval().float()
    found = {}
    for b, prompt in enumerate(rollout.prompts):
        for m in range(len(rollout.trajectories[b])):
            length = int(rollout.host.length[b, m])
            ids = np.concatenate([prompt.token_ids, rollout.host.tokens[b, m, 1:length]])
            images = [(image.patches, image.grid) for image in prompt.images]
            index = np.asarray(rollout.feature_index[b, m])
            for place in dict.fromkeys((index[index >= 0] // rollout.crop_features.shape[2]).tolist()):
                crop = rollout.crops[b][place]
                images.append((crop.patches, crop.grid))
            ids = torch.tensor(ids, dtype=torch.long)[None]
            with torch.no_grad():
                logits = model(
                    input_ids=ids,
                    pixel_values=torch.tensor(np.concatenate([patches for patches, _ in images])),
                    image_grid_thw=torch.tensor([grid for _, grid in images]),
                    mm_token_type_ids=(ids == parts.backbone.image_token_id).int(),
                ).logits[0]
            logits = logits[len(prompt.token_ids) - 1 :].numpy().astype(np.float64)
            scaled = np.where(np.asarray(banned), -np.inf, logits / parts.config.rollout.temperature)
            scaled = scaled - scaled.max(-1, keepdims=True)
            found[b, m] = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    return found


def entropies(log_p: np.ndarray) -> np.ndarray:
    """Of each row of log-probabilities."""
    with np.errstate(invalid="ignore"):
        return -np.where(np.isfinite(log_p), np.exp(log_p) * log_p, 0.0).sum(-1)


def test_sampler_equals_scorer(rolled: tuple[Any, Rollout]) -> None:
    parts, rollout = rolled
    trainer = Trainer(parts)
    rewards = reward_rollout(rollout, 1, assembly.reward_settings(parts.config))
    batch = trainer.train_batch(rollout, rewards)
    scored = make_scorer(parts.graphdef, assembly.update_settings(parts.config, parts.mesh), parts.training_layout)(
        trainer.state.params, batch, trainer._banned
    )
    mask = rollout.host.sampled
    assert mask.sum() > 1000
    difference = np.abs(np.asarray(scored) - rollout.host.log_probabilities)[mask]
    assert difference.max() <= 1e-4


def test_sampler_equals_transformers(
    rolled: tuple[Any, Rollout], float64_log_probabilities: dict[tuple[int, int], np.ndarray]
) -> None:
    parts, rollout = rolled
    for (b, m), log_p in float64_log_probabilities.items():
        where = np.flatnonzero(rollout.host.sampled[b, m])
        tokens = rollout.host.tokens[b, m, where]
        assert np.abs(log_p[where - 1, tokens] - rollout.host.log_probabilities[b, m, where]).max() <= 1e-4
        assert np.abs(entropies(log_p)[where - 1] - rollout.host.entropy[b, m, where]).max() <= 1e-4


def test_fork_decisions_equal_float64(
    rolled: tuple[Any, Rollout], float64_log_probabilities: dict[tuple[int, int], np.ndarray]
) -> None:
    """H_base, H_tool, Delta H and P of every decision, from transformers' logits and the tokens alone."""
    parts, rollout = rolled
    evr, tokenizer = parts.config.evr, parts.encoder.tokenizer
    seen = 0
    for b, decisions in enumerate(rollout.decisions):
        for decision in decisions:
            m, first = decision["slot"], decision["position"]
            entropy = entropies(float64_log_probabilities[b, m])  # row t: token t + 1
            texts = [tokenizer.decode([i]) for i in rollout.host.tokens[b, m].tolist()]
            assert texts[first - 1].endswith("[")
            last = next(t for t in range(first, len(texts)) if "]" in texts[t])
            h_base = entropy[: min(evr.base_tokens, last)].mean()  # tokens 1 … up to the closing bracket
            h_tool = entropy[first - 1 : last - 1][-evr.window :].mean()
            delta = h_tool - h_base
            np.testing.assert_allclose(
                [decision["h_base"], decision["h_tool"], decision["delta_h"]], [h_base, h_tool, delta], atol=1e-4
            )
            probability = min(max(evr.p_base + evr.gamma * delta, 0.0), 1.0)
            assert abs(decision["probability"] - probability) <= 1e-4
            assert decision["eligible"] == (delta > evr.threshold)
            assert decision["asked"] == (decision["eligible"] and decision["u"] < decision["probability"])
            if decision["granted"]:
                assert decision["asked"]
                child = rollout.trajectories[b][decision["child"]]
                assert (child.origin, child.parent, child.fork_position) == ("fork", m, first)
            seen += 1
    assert seen >= 16


def test_children_share_their_parents_beginning_and_draw_anew(rolled: tuple[Any, Rollout]) -> None:
    _, rollout = rolled
    host, different, forks = rollout.host, 0, 0
    for b, group in enumerate(rollout.trajectories):
        assert [t.origin for t in group[:4]] == ["base"] * 4
        for m, trajectory in enumerate(group):
            if trajectory.origin != "fork":
                continue
            parent, start = trajectory.parent, trajectory.fork_position
            for name in ("tokens", "sampled", "log_probabilities", "entropy"):
                array = getattr(host, name)
                np.testing.assert_array_equal(array[b, m, :start], array[b, parent, :start])
            # The distribution of the first coordinate is the parent's; what was drawn from it need not be.
            np.testing.assert_allclose(host.entropy[b, m, start], host.entropy[b, parent, start], atol=1e-5)
            different += not np.array_equal(
                host.tokens[b, m, start : start + 14], host.tokens[b, parent, start : start + 14]
            )
            forks += 1
    assert different > forks / 2


def test_what_is_sampled_follows_the_distribution() -> None:
    """The surprise of what was drawn after the fork must average to the recorded entropy."""
    _, rollout = roll(prompts=slice(100, 116), rollout__trajectories=16)
    surprise, entropy = [], []
    for b, group in enumerate(rollout.trajectories):
        for m, trajectory in enumerate(group):
            if trajectory.origin == "fork":
                tail = np.flatnonzero(rollout.host.sampled[b, m])
                tail = tail[tail >= trajectory.fork_position]
                surprise.append(-rollout.host.log_probabilities[b, m, tail].sum())
                entropy.append(rollout.host.entropy[b, m, tail].sum())
    difference = np.array(surprise) - np.array(entropy)
    assert len(difference) > 60
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(difference))


def same_tokens(first: Rollout, second: Rollout, rows: slice = slice(None)) -> None:
    for name in ("tokens", "sampled", "length"):
        np.testing.assert_array_equal(getattr(first.host, name)[rows], getattr(second.host, name))
    np.testing.assert_allclose(first.host.entropy[rows], second.host.entropy, atol=1e-4)
    assert first.trajectories[rows] == second.trajectories


def test_other_prompts_in_the_batch_change_nothing(rolled: tuple[Any, Rollout]) -> None:
    _, rollout = rolled
    _, fewer = roll(prompts=slice(2, 4))
    same_tokens(rollout, fewer, slice(2, 4))


@functools.cache
def eight_groups(devices: int) -> tuple[Any, Rollout]:
    return roll(devices, slice(0, 8), mesh__host_devices=devices)


def test_the_number_of_devices_changes_nothing() -> None:
    (_, one), (_, eight) = eight_groups(1), eight_groups(8)
    same_tokens(one, eight)
    assert one.decisions == [
        [{name: pytest.approx(value, abs=1e-4) for name, value in d.items()} for d in group]
        for group in eight.decisions
    ]


@pytest.mark.parametrize("devices", [1, 2])
def test_parts_change_nothing(devices: int) -> None:
    """Eight groups at once, or two from each of the batch's shards at a time: all that the update reads is the same."""
    parts, whole = eight_groups(devices)
    layout = parts.sampling_layout
    engine = parts.engine(assembly.training_rollout(parts.config, parts.backbone))
    params = jax.device_put(parts.params, sharding.parameter_shardings(parts.params, layout))
    key = assembly.run_seed_key(parts.config, 0)
    parted = PartedRollout(engine, layout, 8, 2 * devices).run(params, whole.prompts, key)
    same_tokens(whole, parted)
    assert [p.example.id for p in parted.prompts] == [p.example.id for p in whole.prompts]
    for one, other in zip(whole.crops, parted.crops, strict=True):
        for crop, same in zip((c for c in one if c), (c for c in other if c), strict=True):
            np.testing.assert_array_equal(crop.patches, same.patches)
    for name in ("prompt_inputs", "tokens", "positions", "feature_index", "prompt_batch"):
        for one, other in zip(*(jax.tree.leaves(getattr(x, name)) for x in (whole, parted)), strict=True):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-4, err_msg=name)
            assert not isinstance(one, jax.Array) or one.sharding.is_equivalent_to(other.sharding, one.ndim)


def test_every_decision_has_all_fields(rolled: tuple[Any, Rollout]) -> None:
    _, rollout = rolled
    assert all(tuple(d) == DECISION_FIELDS for group in rollout.decisions for d in group)


def test_random_keys_change_with_the_step(rolled: tuple[Any, Rollout]) -> None:
    _, rollout = rolled
    _, later = roll(step=1)
    assert not np.array_equal(rollout.host.tokens, later.host.tokens)


def test_a_trajectory_without_room_for_its_observation_ends_before_it() -> None:
    """Text and image are appended together or not at all."""
    parts, rollout = roll(rollout__response_length=64)
    assert dataclasses.asdict(rollout.host)["length"].max() <= 64
    called = [t for group in rollout.trajectories for t in group if any(turn.call_box for turn in t.turns)]
    assert called and all(t.ended == "truncated" and not t.zooms for t in called)
    assert not (rollout.host.tokens == parts.backbone.image_token_id).any()


def test_growing_caches_change_nothing(rolled: tuple[Any, Rollout], monkeypatch: pytest.MonkeyPatch) -> None:
    """From 14 slots over 28 and 56 to 112, with forks and crops on the way."""
    monkeypatch.setattr(settings_module, "SHORTEST_CACHE", 14)
    _, grown = roll(rollout__sizes=4)
    lengths = [slots for _, _, slots in grown.calls.decode]
    assert lengths == sorted(lengths) and {14, 28, 56, 112} <= set(lengths)
    same_tokens(rolled[1], grown)


def test_serving_ahead_changes_nothing(rolled: tuple[Any, Rollout], monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns are read, and crops cut, while other rows still sample, as often as the engine says."""
    begun: list[np.ndarray] = []
    begin = TurnServer.begin_serving

    def begin_serving(server: TurnServer, sampled: Sampled) -> None:
        begun.append(np.array([(sampled.status == status).sum() for status in (TURN_ENDED, ACTIVE)]))
        begin(server, sampled)

    monkeypatch.setattr(TurnServer, "begin_serving", begin_serving)
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "SERVE_AHEAD_AT", (0.25, 0.5, 0.9))
        _, ahead = roll()
    early = [ended for ended, active in begun if active]
    assert len(early) == 3 and early == sorted(early) and early[-1] < 32  # of 32 rows
    begun.clear()
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "SERVE_AHEAD_AT", ())
        _, after = roll()
    assert not [ended for ended, active in begun if active]
    for rollout in (ahead, after):
        same_tokens(rolled[1], rollout)
        assert rollout.calls.steps == rolled[1].calls.steps


def test_a_crop_is_encoded_once_for_its_group(rolled: tuple[Any, Rollout]) -> None:
    """However many trajectories ask for it; and each sees the crop of its own box."""
    parts, rollout = rolled
    repeated = 0
    for b, group in enumerate(rollout.trajectories):
        boxes = [zoom.original for trajectory in group for zoom in trajectory.zooms]
        assert sum(crop is not None for crop in rollout.crops[b]) == len(set(boxes))
        repeated += len(boxes) - len(set(boxes))
        image = load_image(rollout.prompts[b].example.images[0])
        for m, trajectory in enumerate(group):
            index = np.asarray(rollout.feature_index[b, m])
            places = list(dict.fromkeys((index[index >= 0] // rollout.crop_features.shape[2]).tolist()))
            assert len(places) == len(trajectory.zooms)
            for place, zoom in zip(places, trajectory.zooms, strict=True):
                again = encode_observation(parts.encoder, 0, crop=image.crop(zoom.original)).image
                np.testing.assert_array_equal(rollout.crops[b][place].patches, again.patches)
    assert repeated > 0
