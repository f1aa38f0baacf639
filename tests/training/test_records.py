"""The figures of a step, from made-up trajectories."""

from __future__ import annotations

import base64
import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from medvr_jax import assembly
from medvr_jax.datasets.example import Example
from medvr_jax.errors import UserError
from medvr_jax.inputs.boxes import ZoomBox
from medvr_jax.inputs.chat import Prompt
from medvr_jax.inputs.images import PreparedImage
from medvr_jax.inputs.tokenizer import load_tokenizer
from medvr_jax.rollout.trajectories import CROP, IMAGE, Calls, Rollout, TokenArrays, Trajectory, Turn
from medvr_jax.training.records import rollout_metrics, rollout_records, trajectory_facts
from medvr_jax.training.rewarding import reward_rollout
from medvr_jax.training.trainer import refuse_broken
from tests.inputs.tiny import TINY
from tests.tiny_run import small_config


def answered(letter: str, zoom: ZoomBox | None, origin: str = "base") -> Trajectory:
    """A trajectory that zoomed, or did not, and then answered."""
    call = Turn("<think>Look.</think><tool_call>{}</tool_call>", called=True, zoom=zoom, observation="crop")
    answer = Turn(f"<think>So.</think><answer>{letter}</answer>")
    return Trajectory((call, answer) if zoom else (answer,), "answer", origin, None, None)


def made_rollout() -> Rollout:
    """One group of four: right and wrong, each with a zoom and without."""
    zoom = ZoomBox((0, 0, 100, 100), (0.0, 0.0, 0.5, 0.5))
    group = [answered(letter, where) for letter in "AB" for where in (zoom, None)]
    example = Example("e", (), "Which?", ("a", "b"), "A", "choice")
    nothing = np.zeros((1, 4, 0), np.float32)
    return Rollout(
        prompts=[Prompt(example, nothing, nothing, 0, nothing, ())],
        trajectories=[group],
        host=TokenArrays(nothing, nothing, nothing, nothing, np.zeros((1, 4), np.int32)),
        decisions=[[]],
        prompt_inputs=None,
        prompt_batch=None,
        tokens=jnp.asarray(nothing),
        positions=jnp.asarray(nothing),
        feature_index=jnp.asarray(nothing),
        crop_features=(),
        crops=(),
        seconds={},
        calls=Calls(),
    )


def made_groups(*groups: tuple[tuple[tuple[float, ...], ...], list[Trajectory]]) -> Rollout:
    """Groups of four as (true boxes, trajectories); A is right."""
    rollout, nothing = made_rollout(), np.zeros((len(groups), 4, 0), np.float32)
    (prompt,) = rollout.prompts
    return dataclasses.replace(
        rollout,
        prompts=[
            dataclasses.replace(prompt, example=dataclasses.replace(prompt.example, boxes=true)) for true, _ in groups
        ],
        trajectories=[trajectories for _, trajectories in groups],
        host=TokenArrays(nothing, nothing, nothing, nothing, np.zeros((len(groups), 4), np.int32)),
        decisions=[[] for _ in groups],
    )


def without_boxes(rollout: Rollout) -> Rollout:
    """The same with images of a tool that shows the whole image."""

    def changed(turn: Turn) -> Turn:
        return dataclasses.replace(turn, zoom=None, observation="image") if turn.zoom else turn

    groups = [
        [dataclasses.replace(t, turns=tuple(map(changed, t.turns))) for t in group] for group in rollout.trajectories
    ]
    return dataclasses.replace(rollout, trajectories=groups)


def test_only_regions_count_for_the_consensus() -> None:
    """A look at the whole image votes for nowhere, as an answer without a look does."""
    settings = assembly.reward_settings(small_config(rewards__tool="consensus"))
    tool = [reward_rollout(r, 1, settings).tool for r in (made_rollout(), without_boxes(made_rollout()))]
    np.testing.assert_array_equal(tool[0], [[0.5, 0, 0, 0]])  # one of two right ones is no strict majority
    np.testing.assert_array_equal(tool[1], [[0, 0, 0, 0]])


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize(("tool", "expected"), [("none", 0), ("conditional", 0.25), ("unconditional", 0.5)])
def test_the_tool_reward_is_what_entered_the_total(tool: str, expected: float, boxes: bool) -> None:
    """Whether the images that came back are regions or not."""
    settings = assembly.reward_settings(small_config(rewards__tool=tool))
    rollout = made_rollout() if boxes else without_boxes(made_rollout())
    figures = rollout_metrics(trajectory_facts(rollout, reward_rollout(rollout, 1, settings)))
    assert figures["reward/tool"] == expected and figures["rollout/valid_call_rate"] == 1.0
    assert figures["reward/total"] == pytest.approx(
        figures["reward/accuracy"] + figures["reward/format"] + figures["reward/tool"]
    )


HERE = ZoomBox((0, 0, 100, 100), (0.0, 0.0, 0.5, 0.5))
THERE = ZoomBox((100, 100, 200, 200), (0.5, 0.5, 1.0, 1.0))


def mixed_groups() -> Rollout:
    """Two of three right ones look at the lesion; nobody knows where it is; all agree on the wrong place."""
    return made_groups(
        (
            ((0.1, 0.1, 0.3, 0.3),),
            [answered("A", HERE), answered("B", HERE), answered("A", HERE, "fork"), answered("A", THERE, "fork")],
        ),
        ((), [answered("A", HERE), answered("A", None), answered("A", THERE, "fork"), answered("B", None, "fresh")]),
        (((0.6, 0.6, 0.7, 0.7),), [answered("A", HERE, origin) for origin in ("base", "base", "fresh", "fresh")]),
    )


def test_the_base_half_stands_apart_and_audits_stay_audits() -> None:
    settings = assembly.reward_settings(small_config(rewards__tool="consensus"))
    rollout = mixed_groups()
    rewards = reward_rollout(rollout, 1, settings)
    facts = trajectory_facts(rollout, rewards)
    assert all(len(x) == 3 and x.dtype != object for x in facts.values())  # what processes send each other
    figures = rollout_metrics(facts)
    expected = {
        "rollout/right_rate": 10 / 12,
        "base/right_rate": 5 / 6,
        "base/tool_rate": 5 / 6,
        "base/format_rate": 1 / 6,  # the made-up calls lack a name, at 0.2 each
        "base/reward_tool": (1 + 0 + 0.5 + 0 + 1 + 1) / 6,
        "base/reward_total": (2 + 0 + 1.5 + 1 + 2 + 2 - 5 * 0.2) / 6,
        "base/sampled_tokens": 0.0,
        "base/hit_rate": 2 / 4,
        "base/purity": 1 / 3,
        "fork/right_rate": 1.0,
        "fork/tool_rate": 1.0,
        "fork/reward_tool": (1 + 0.5 + 0.5) / 3,
        "fork/reward_total": (2 + 1.5 + 1.5 - 3 * 0.2) / 3,
        "fork/hit_rate": 1 / 2,
        "fork/purity": 1 / 2,
        "reward/purity": (2 / 3 + 0 + 1) / 3,
        "reward/vote_rate": 1.0,
        "audit/hit_rate": 3 / 8,
        "audit/purity": 2 / 7,
        "audit/consensus_iou": (13 * 13 / (32 * 32) + 0) / 2,  # of a raster of 64 x 64
        "audit/consensus_elsewhere": 1 / 2,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert "reward/accuracy_base" not in figures
    blind = dataclasses.replace(
        rollout, prompts=[dataclasses.replace(p, example=rollout.prompts[1].example) for p in rollout.prompts]
    )
    same = reward_rollout(blind, 1, settings)
    np.testing.assert_array_equal(same.total, rewards.total)
    ends = ("hit_rate", "base/purity", "fork/purity")
    audited = {name for name in figures if name.startswith("audit/") or name.endswith(ends)}
    assert set(figures) - audited == set(rollout_metrics(trajectory_facts(blind, same)))


def test_what_no_group_has_is_left_out() -> None:
    """No forks, no true boxes, and one right look alone, which always agrees."""
    rollout = made_rollout()
    settings = assembly.reward_settings(small_config(rewards__tool="consensus"))
    figures = rollout_metrics(trajectory_facts(rollout, reward_rollout(rollout, 1, settings)))
    assert figures["base/right_rate"] == figures["rollout/right_rate"] == 0.5
    assert not [name for name in figures if name.startswith(("fork/", "audit/")) or name.endswith("hit_rate")]
    assert "reward/purity" not in figures


def test_popular_looks_have_no_vote_and_the_files_say_so() -> None:
    """For the three groups 5/6, 6/7 and 3/5 of the others' right looks are HERE; to look nowhere is not popular."""
    settings = assembly.reward_settings(small_config(rewards__tool="consensus", rewards__maximum_popularity=0.7))
    rollout = mixed_groups()
    rewards = reward_rollout(rollout, 1, settings)
    np.testing.assert_array_equal(rewards.tool, [[0.5, 0, 0.5, 1], [0.5, 0, 0.5, 0], [1, 1, 1, 1]])
    figures = rollout_metrics(trajectory_facts(rollout, rewards))
    assert figures["reward/vote_rate"] == pytest.approx(7 / 10)
    host = dataclasses.replace(rollout.host, **{name: np.zeros((3, 4, 1)) for name in ("tokens", "sampled", "entropy")})
    records = rollout_records(dataclasses.replace(rollout, host=host), rewards, 0, range(3), load_tokenizer(TINY))
    found = [[record["votes"] for record in records if record["group"] == group] for group in range(3)]
    assert found == [[False, False, False, True], [False, True, True, False], [True] * 4]


def test_popularity_needs_the_groups_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(rewards__tool="consensus", rewards__maximum_popularity=0.1)
    assert assembly.reward_settings(config).maximum_popularity == 0.1
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        UserError, match=r"rewards.maximum_popularity: found 0.1 in a run of 2 processes, allowed is 1.0"
    ):
        assembly.reward_settings(config)
    assembly.reward_settings(small_config())


def test_a_half_reward_is_not_a_right_answer() -> None:
    """Under MedVLM-R1's scheme R_acc may be 0.5: it counts in the reward, and nowhere as right."""
    settings = assembly.reward_settings(small_config("text", rewards__scheme="medvlm_r1"))
    texts = [
        "<think>So.</think><answer>A</answer>",
        "<think>So.</think><answer>A. a</answer>",
        "<answer>A</answer>",
        "",
    ]
    rollout = made_rollout()
    group = [Trajectory((Turn(text),), "answer", "base", None, None) for text in texts]
    rollout = dataclasses.replace(rollout, trajectories=[group])
    rewards = reward_rollout(rollout, 0, settings)
    np.testing.assert_array_equal(rewards.accuracy, [[1.0, 0.5, 1.0, 0.0]])
    np.testing.assert_array_equal(rewards.format, [[1.0, 1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(rewards.total, [[2.0, 1.5, 1.0, 0.0]])
    figures = rollout_metrics(trajectory_facts(rollout, rewards))
    assert figures["reward/accuracy"] == 0.625 and figures["rollout/right_rate"] == 0.5
    assert figures["rollout/format_rate"] == 0.5
    host = dataclasses.replace(rollout.host, **{name: np.zeros((1, 4, 1)) for name in ("tokens", "sampled", "entropy")})
    records = rollout_records(dataclasses.replace(rollout, host=host), rewards, 0, [0], load_tokenizer(TINY))
    assert [record["correct"] for record in records] == [True, False, True, False]


def test_a_record_tells_its_text_token_by_token_and_its_boxes_in_three_spaces() -> None:
    tokenizer = load_tokenizer(TINY)
    call = '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 28, 56]}}</tool_call><|im_end|>'
    answer = "<answer>A é</answer><|im_end|>"
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in (call, "<|image_pad|><|image_pad|>!", answer)]
    tokens = np.array([[0, *ids[0], *ids[1], *ids[2], 0, 0]])  # one before the response, two that were never reached
    length, none = np.array([[tokens.size - 2]]), np.zeros(tokens.shape)
    sampled = np.array([[False] + [True] * len(ids[0]) + [False] * len(ids[1]) + [True] * (len(ids[2]) + 2)])
    zoom = ZoomBox((0, 0, 100, 400), (0.0, 0.0, 0.25, 0.5))
    trajectory = Trajectory(
        (Turn(call, True, (0, 0, 28, 56), zoom, "crop"), Turn(answer)), "answer", "base", None, None
    )
    rollout = made_rollout()
    image = PreparedImage(np.zeros((0, 0), np.float32), (1, 8, 8), (112, 112), (400, 800))
    rollout = dataclasses.replace(
        rollout,
        prompts=[dataclasses.replace(rollout.prompts[0], images=(image,))],
        trajectories=[[trajectory]],
        host=TokenArrays(*(x[None] for x in (tokens, sampled, none, none)), length),
    )
    (record,) = rollout_records(rollout, None, 3, [7], tokenizer)
    assert len(record["pieces"]) == len(record["token_ids"]) == len(record["sampled"]) == tokens.size - 3
    spoken = [piece for piece, own in zip(record["pieces"], record["sampled"], strict=True) if own]
    assert "".join(spoken) == call + answer and "".join(record["pieces"]) == f"{call}!{answer}"
    assert record["resized_size"] == [112, 112]
    (found,) = record["zooms"]
    assert found.pop("normalised") == [0.0, 0.0, 0.25, 0.5] and found.pop("original") == [0, 0, 100, 400]
    assert found == {"turn": 0, "tool": "image_zoom_in_tool", "resized": [0.0, 0.0, 28.0, 56.0]}
    assert record["correct"] is record["rewards"] is record["advantage"] is record["consensus_iou"] is None


def test_a_truncated_trajectory_is_not_well_formed() -> None:
    settings = assembly.reward_settings(small_config("text", rewards__scheme="medvlm_r1"))
    turn = Turn("<think>So.</think><answer>A</answer>")
    group = [Trajectory((turn,), ended, "base", None, None) for ended in ("answer", "truncated")] * 2
    rewards = reward_rollout(dataclasses.replace(made_rollout(), trajectories=[group]), 0, settings)
    np.testing.assert_array_equal(rewards.format, [[1.0, 0.0, 1.0, 0.0]])


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_an_update_without_finite_numbers_ends_the_run(name: str) -> None:
    sound = {"loss": 0.5, "grad_norm": 1.0}
    refuse_broken(sound)
    with pytest.raises(UserError, match=f"optimizer.learning_rate: the update's {name} is nan"):
        refuse_broken(sound | {name: float("nan")})


def test_images_that_tools_made_are_kept_for_the_first_groups() -> None:
    """Small, and equal to what came back; a crop is not kept, since it can be cut again."""
    grey = np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, 512))
    made = Turn("a", True, observation=IMAGE, draw=lambda: Image.fromarray(grey))
    call = '<tool_call>{"name": "x", "arguments": {}}</tool_call>'
    turns = (made, Turn(call, True, zoom=ZoomBox((0, 0, 9, 9), (0.0, 0.0, 1.0, 1.0)), observation=CROP), Turn("c"))
    rollout = dataclasses.replace(made_rollout(), trajectories=[[Trajectory(turns, "answer", "base", None, None)]])
    tokenizer = load_tokenizer(TINY)
    (kept,), (left,) = (rollout_records(rollout, None, 0, [group], tokenizer, pictured=3) for group in (2, 3))
    assert ["picture" in turn for turn in kept["turns"]] == [True, False, False]
    assert not any("picture" in turn for turn in left["turns"])
    scheme, _, data = kept["turns"][0]["picture"].partition(",")
    assert scheme == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (256, 128)
        expected = np.asarray(Image.fromarray(grey).resize((256, 128)), float)
        assert np.abs(np.asarray(image, float) - expected).max() <= 6
