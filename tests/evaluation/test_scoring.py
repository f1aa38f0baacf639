"""Both rules on answers scored by hand; perfect answers, empty ones, and what the two rules owe to each other."""

from __future__ import annotations

import pytest

from medvr_jax.datasets.example import Example
from medvr_jax.evaluation.scoring import RULES, extract_answer, score
from medvr_jax.rewards import answers
from tests.evaluation.scoring_cases import CASES, SKIN, WORDS, ZH_SKIN, question

CASE_NAMES = [f"{example.dataset}-{example.answer}-{response[:24]!r}" for example, response, *_ in CASES]


@pytest.mark.parametrize(("example", "response", "medevalkit", "strict"), CASES, ids=CASE_NAMES)
def test_by_hand(example: Example, response: str, medevalkit: int, strict: int) -> None:
    scores = score(response, example)
    assert {rule: scores[rule]["correct"] for rule in RULES} == {"medevalkit": medevalkit, "strict": strict}


def test_there_are_enough_cases() -> None:
    assert len({(example, response) for example, response, *_ in CASES}) == len(CASES) >= 120


@pytest.mark.parametrize(("example", "response", "medevalkit", "strict"), WORDS)
def test_words_by_hand(example: Example, response: str, medevalkit: tuple, strict: tuple) -> None:
    scores = score(response, example)
    assert (scores["medevalkit"]["recall"], scores["medevalkit"]["f1"]) == pytest.approx(medevalkit)
    assert (scores["strict"]["recall"], scores["strict"]["f1"]) == pytest.approx(strict)
    assert all(scores[rule]["exact"] == scores[rule]["correct"] for rule in RULES)


def test_only_open_questions_have_measures() -> None:
    for example, response, *_ in CASES:
        for scores in score(response, example).values():
            assert set(scores) == {"correct"} | ({"exact", "recall", "f1"} if example.answer_kind == "open" else set())


EVERY_KIND = [
    question(dataset, kind, answer, options)
    for kind, answer, options in [
        *(("choice", letter, SKIN) for letter in "ABCD"),
        ("choice", "C", ZH_SKIN),
        ("choice", "A", ("Yes", "yes", "No")),
        *(("yes_no", answer, ()) for answer in ("yes", "No", "是", "不是", "有", "没有", "否")),
        *(("closed", answer, ()) for answer in ("Left", "1.5 cm", "T2.", "左肺", "Lung, Heart", "A")),
        *(
            ("open", answer, ())
            for answer in ("in the canals of Hering", "4/5, e.g. here.", "右肺下叶", "No. 3", "none")
        ),
    ]
    for dataset in (
        "omnimedvqa",
        "pmc_vqa",
        "medxpertqa_mm",
        "vqa_rad",
        "slake",
        "slake/zh",
        "path_vqa",
        "medvlm_r1",
        "",
    )
]


@pytest.mark.parametrize(
    "dress", ["{}", "<answer>{}</answer>", "<think>Look: a, no b.</think>\n<answer>{}</answer><|im_end|>"]
)
def test_perfect_answers_score_everything(dress: str) -> None:
    for example in EVERY_KIND:
        for rule, scores in score(dress.format(example.answer), example).items():
            assert set(scores.values()) == {1.0}, (rule, example, scores)


@pytest.mark.parametrize(
    "response", ["", " \n", "...", "<answer></answer>", "<answer>...</answer>", "\\boxed{}", "<think>"]
)
def test_empty_answers_score_nothing_strictly(response: str) -> None:
    for example in EVERY_KIND:
        assert set(score(response, example)["strict"].values()) == {0.0}, example


def test_what_earns_a_reward_is_right() -> None:
    """The rule `strict` accepts all that the reward accepts, so accuracies in training are never the higher ones."""
    rewarded = 0
    for example, response, *_ in CASES:
        said = answers.extract_answer(response)
        if answers.is_correct(said, answer=example.answer, answer_kind=example.answer_kind, options=example.options):
            assert score(response, example)["strict"]["correct"] == 1
            rewarded += 1
    assert rewarded >= 10


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("<think>x</think><answer> B </answer><|im_end|>", "B"),
        ("<think>x</think> Left lung. ", "Left lung."),
        ("The answer is: left lung\nsince it is", "left lung"),
        ("\\boxed{\\text{\\textbf{B}}}", "B"),
        ("\\boxed{a {b} c}", "a {b} c"),
        ("\\boxed{B", None),
        ("<answer>A</answer><answer>B</answer>", None),
        ("<think>B", None),
        ("", None),
    ],
)
def test_extract_answer(response: str, said: str | None) -> None:
    assert extract_answer(response) == said
