"""Nasty answers: none of them may earn a reward, and no honest one may lose it."""

from __future__ import annotations

import pytest

from medvr_jax.rewards.answers import chosen_letter, extract_answer, is_correct, yes_or_no

OPTIONS = ("Benign nevus", "Melanoma", "Basal cell carcinoma", "No lesion")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>x</think><answer>B</answer>", "B"),
        ("<answer>\n B \n</answer>", "B"),
        ("<answer>two\nlines</answer>", "two\nlines"),
        ("<answer></answer>", None),
        ("<answer>   </answer>", None),
        ("<answer>...</answer>", None),
        ("<answer>…</answer>", None),
        ("<answer>-</answer>", "-"),
        ("<answer>B", None),
        ("B", None),
        ("", None),
        ("<answer>A</answer><answer>B</answer>", None),
        ("<answer><answer>B</answer></answer>", "B"),
    ],
)
def test_extract_answer(text: str, expected: str | None) -> None:
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B)", "B"),
        (" B :", "B"),
        ("\uff22", "B"),  # full width
        ("Melanoma", "B"),
        ("melanoma.", "B"),
        ("B. Melanoma", "B"),
        ("(b) melanoma", "B"),
        ("B: Melanoma", "B"),
        ("Basal  cell\ncarcinoma", "C"),
        ("B. Benign nevus", None),  # letter and text disagree
        ("A or B", None),
        ("A, B", None),
        ("AB", None),
        ("A B C D", None),
        ("ABCD", None),
        ("E", None),
        ("B. Melanoma or benign nevus", None),
        ("Melanoma Benign nevus", None),
        ("not melanoma", None),
        ("A melanoma", None),  # an article, not a letter
        ("B " * 500, None),
        ("the answer could be B", None),
        ("", None),
        ("...", None),
        ("()", None),
        ("1", None),
    ],
)
def test_chosen_letter(prediction: str, letter: str | None) -> None:
    assert chosen_letter(prediction, OPTIONS) == letter


def test_equal_options_cannot_be_named_by_their_text() -> None:
    assert chosen_letter("Yes", ("Yes", "yes", "No")) is None
    assert chosen_letter("A", ("Yes", "yes", "No")) == "A"


def test_options_that_are_letters_or_empty() -> None:
    assert chosen_letter("A", ("B", "A")) == "A"  # the label goes before the text
    assert chosen_letter("", ("", "x")) is None
    assert chosen_letter("II", ("I", "II", "III")) == "B"
    assert chosen_letter("-3", ("3", "-3")) == "B"


@pytest.mark.parametrize(
    ("prediction", "said"),
    [
        ("yes", "yes"),
        ("No.", "no"),
        ("YES!", "yes"),
        ("Yes, on the left side", "yes"),
        ("yes and no", None),
        ("no, yes", None),
        ("normal", None),
        ("nothing", None),
        ("not seen", None),
        ("yesterday", None),
        ("it is normal, no doubt", None),
        ("", None),
        ("n", None),
    ],
)
def test_yes_or_no(prediction: str, said: str | None) -> None:
    assert yes_or_no(prediction) == said


@pytest.mark.parametrize("kind", ["choice", "yes_no", "open"])
@pytest.mark.parametrize("prediction", [None, "", "  ", "...", ".", "\n", "()", '""'])
def test_empty_matches_nothing(kind: str, prediction: str | None) -> None:
    for answer in ("B", "no", "", "..."):
        assert not is_correct(prediction, answer=answer, answer_kind=kind, options=OPTIONS)


def test_is_correct_by_kind() -> None:
    assert is_correct("melanoma", answer="B", answer_kind="choice", options=OPTIONS)
    assert not is_correct("A", answer="B", answer_kind="choice", options=OPTIONS)
    assert is_correct("No", answer="no", answer_kind="yes_no")
    assert not is_correct("yes and no", answer="no", answer_kind="yes_no")
    assert not is_correct("maybe", answer="unknown", answer_kind="yes_no")
    assert is_correct("Left  Lung.", answer="left lung", answer_kind="open")
    assert is_correct("Axial.", answer="axial", answer_kind="closed")
    assert not is_correct("left lung and right lung", answer="left lung", answer_kind="open")
    assert not is_correct("lung", answer="left lung", answer_kind="open")
    with pytest.raises(ValueError, match="answer_kind"):
        is_correct("x", answer="x", answer_kind="essay")


@pytest.mark.parametrize(
    ("prediction", "said"),
    [
        ("是", "yes"),
        ("是的。", "yes"),
        ("有肿瘤", "yes"),
        ("对", "yes"),
        ("不是", "no"),
        ("没有，这是正常的", "no"),
        ("否", "no"),
        ("无。", "no"),
        ("不存在", "no"),
        ("No，没有", "no"),
        ("Yes，有肿瘤", "yes"),
        ("Yes，没有", None),
        ("是不是", None),
        ("有没有", None),
        ("是否", None),
        ("是或否", None),
        ("没有或有", None),
        ("否，是的", None),
        ("不是没有", None),
        ("有可能", None),
        ("无法判断", None),
        ("不知道", None),
        ("对称", None),  # begins with a word for right
        ("正常", None),
        ("肺", None),
    ],
)
def test_yes_or_no_in_chinese(prediction: str, said: str | None) -> None:
    assert yes_or_no(prediction) == said
    if said:
        assert is_correct(prediction, answer={"yes": "有", "no": "不是"}[said], answer_kind="yes_no")
        assert not is_correct(prediction, answer={"yes": "不是", "no": "有"}[said], answer_kind="yes_no")


def test_chinese_texts() -> None:
    assert is_correct("左 肺。", answer="左肺", answer_kind="open")
    assert not is_correct("右肺", answer="左肺", answer_kind="open")
    assert chosen_letter("B、黑色素瘤。", ("痣", "黑色素瘤")) == "B"
    assert chosen_letter("B。", ("痣", "黑色素瘤")) == "B"
    assert chosen_letter("A、黑色素瘤", ("痣", "黑色素瘤")) is None
