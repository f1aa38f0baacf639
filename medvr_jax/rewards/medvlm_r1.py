"""The rewards of MedVLM-R1: R = R_acc + R_format, both earned, neither a penalty, and neither gates the other.

  R_acc     1 for the right letter and nothing else, 0.5 for the right letter with more text, else 0;
  R_format  1 for a thought and then an answer with nothing else around them, else 0.

A letter is one that stands by itself: "B", "(B)", "b)", "B. lung", "It is B". The published code counts the letters A
to J inside of words too, so that text earns the half almost never there; the paper's words are what is followed here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from medvr_jax.rewards.answers import is_correct

RIGHT, RIGHT_WITH_TEXT = 1.0, 0.5

_MOST_LETTERS = 10  # A to J, as in the paper's code
# A capital by itself, or a small letter that is marked as a choice: "a lung" names no option.
_INSIDE = r"[0-9A-Za-z\u00c0-\u024f]"  # what a word or number goes on with; Chinese signs do not
_LETTER = re.compile(rf"(?<!{_INSIDE})(?:([A-Z])(?!{_INSIDE})|([a-z])(?=[).:]))")
_ONLY_LETTER = re.compile(r"\s*([A-Za-z])\s*")


def named_letters(answer: str, options: int) -> list[str]:
    """The letters that an answer names, each as often as it does, in capitals.

    Letters beyond the `options` of the question count, too: who also names one of them has not chosen. The word "I" is
    a letter only where there are so many options.
    """
    answer = unicodedata.normalize("NFKC", answer)
    if only := _ONLY_LETTER.fullmatch(answer):
        return [only[1].upper()]
    found = [(capital or small).upper() for capital, small in _LETTER.findall(answer)]
    known = {chr(ord("A") + index) for index in range(max(options, _MOST_LETTERS))}
    if options < _MOST_LETTERS - 1:
        known.discard("I")
    return [letter for letter in found if letter in known]


def accuracy_reward(prediction: str | None, *, answer: str, answer_kind: str, options: Sequence[str] = ()) -> float:
    """R_acc of what stands in <answer>…</answer>, None for nothing.

    The recipe knows multiple choice alone; answers of other kinds earn 1 where `answers.is_correct`, else 0.
    """
    if prediction is None:
        return 0.0
    if answer_kind != "choice":
        return RIGHT * is_correct(prediction, answer=answer, answer_kind=answer_kind, options=options)
    if named_letters(prediction, len(options)) != [answer.strip().upper()]:
        return 0.0
    return RIGHT if _ONLY_LETTER.fullmatch(unicodedata.normalize("NFKC", prediction)) else RIGHT_WITH_TEXT


def format_reward(well_formed: jax.Array) -> jax.Array:
    """R_format of trajectories: 1 where they are well formed (see `format.py`), bool of any shape, else 0; float32."""
    return jnp.where(well_formed, 1.0, 0.0).astype(jnp.float32)
