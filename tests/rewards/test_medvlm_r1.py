"""MedVLM-R1's rewards, by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from medvr_jax.rewards.answers import extract_answer
from medvr_jax.rewards.format import is_well_formed
from medvr_jax.rewards.medvlm_r1 import accuracy_reward, format_reward
from medvr_jax.rewards.total import total_reward
from medvr_jax.training.advantages import group_advantages

OPTIONS = ("CT", "lung", "a B-cell tumour", "nothing")


def of(text: str, answer: str = "B", options: tuple[str, ...] = OPTIONS) -> float:
    """R_acc of what stands between the tags."""
    said = extract_answer(f"<think>so</think><answer>{text}</answer>")
    return accuracy_reward(said, answer=answer, answer_kind="choice", options=options)


@pytest.mark.parametrize("text", ["B", "b", " B ", "\nB\n", "Ｂ"])
def test_the_right_letter_alone(text: str) -> None:
    assert of(text) == 1.0


@pytest.mark.parametrize(
    "text",
    ["B. lung", "B) lung", "(B)", "(b)", "b)", "b. lung", "B.", "B:lung", "B, lung", "B\nlung", "**B**", "选B"]
    + ["Option B", "The answer is B.", "I think B", "lung (B)"],
)
def test_the_right_letter_with_text(text: str) -> None:
    assert of(text) == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "C",
        "E",  # no option
        "a",
        "A. CT",
        "A lung",  # a capital by itself is a letter, even of a wrong sentence
        "A, B",
        "A or B",
        "B or E",
        "B and B",  # named twice
        "BB",
        "AB",
        "ABCD",
        "lung",  # no letter at all
        "a lung",
        "both",
        "Bone",
        "B1",
        "1B",
        "Bénard",
        "C. a B-cell tumour",
        "",
        " ",
        "...",
        "?",
        "2",
    ],
)
def test_nothing_else_earns_anything(text: str) -> None:
    assert of(text) == 0.0


def test_letters_of_many_options() -> None:
    """The word I is a letter where there are nine options or more; letters past J where there are so many."""
    nine, twelve = tuple("abcdefghi"), tuple("abcdefghijkl")
    assert of("I", "I", nine) == 1.0
    assert of("It is I.", "I", nine) == 0.5
    assert of("I think B", "B", nine) == 0.0
    assert of("L", "L", twelve) == 1.0
    assert of("B or L", "B", twelve) == 0.0


@pytest.mark.parametrize(
    ("text", "accuracy", "form"),
    [
        ("<think>x</think><answer>B</answer>", 1.0, 1.0),
        ("<think>x</think>\n\n<answer>B. lung</answer>", 0.5, 1.0),
        ("<think>x</think><answer>A</answer>", 0.0, 1.0),
        ("<answer>B</answer>", 1.0, 0.0),
        ("B", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("<think>x</think><answer></answer>", 0.0, 0.0),
        ("<think>x</think><answer>B</answer> surely", 1.0, 0.0),
        ("<think>x</think><answer>B", 0.0, 0.0),
        ("<answer>B</answer><think>x</think>", 1.0, 0.0),
        ("<think>x</think><answer>B</answer><answer>B</answer>", 0.0, 0.0),  # repeated tags
        ("<think>x</think><answer>A</answer><answer>B</answer>", 0.0, 0.0),
        ("<think>x</think><think>y</think><answer>B</answer>", 1.0, 0.0),
        ("<think><answer>B</answer></think><answer>B</answer>", 0.0, 0.0),
    ],
)
def test_both_rewards_are_summed(text: str, accuracy: float, form: float) -> None:
    found = accuracy_reward(extract_answer(text), answer="B", answer_kind="choice", options=OPTIONS)
    earned = format_reward(jnp.array([[is_well_formed([text])]]))
    assert (found, float(earned[0, 0])) == (accuracy, form)
    total = total_reward(jnp.array([[found]]), earned, jnp.zeros((1, 1)), tool_mode="none")
    assert float(total[0, 0]) == accuracy + form


def test_other_kinds_of_answers() -> None:
    for said, answer, kind, reward in (
        ("Yes, it is.", "yes", "yes_no", 1.0),
        ("yes and no", "yes", "yes_no", 0.0),
        ("left lung", "Left lung", "open", 1.0),
        ("B", "liver", "closed", 0.0),
    ):
        assert accuracy_reward(said, answer=answer, answer_kind=kind) == reward
    assert accuracy_reward(None, answer="yes", answer_kind="yes_no") == 0.0


def test_advantages_of_every_group_of_four() -> None:
    """(r - mean) / (std + 1e-4) with the sample deviation, for all groups that the rewards can make."""
    values = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    groups = np.stack(np.meshgrid(*[values] * 4), -1).reshape(-1, 4)
    found, spread = group_advantages(jnp.asarray(groups))
    deviation = groups.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(found, (groups - groups.mean(1, keepdims=True)) / (deviation + 1e-4), atol=2e-5)
    np.testing.assert_array_equal(spread, deviation[:, 0] > 0)
