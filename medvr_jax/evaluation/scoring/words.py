"""How many of an answer's words are there: token recall and F1 of open answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

from medvr_jax.rewards.answers import normalise
from medvr_jax.rewards.chinese import CHARACTER

_WORD = re.compile(rf"{CHARACTER.pattern}|(?:(?!{CHARACTER.pattern})[^\W_])+")


def words(text: str) -> list[str]:
    """Letters and digits that stand together are a word, and so is every Chinese character."""
    return _WORD.findall(normalise(text))


def recall_and_f1(predicted: Collection[str], true: Collection[str]) -> tuple[float, float]:
    """Share of the true words that were predicted, and the harmonic mean with the share of predicted ones that are
    true. A word counts as often as both have it; no words give 0."""
    common = (Counter(predicted) & Counter(true)).total()
    if not common:
        return 0.0, 0.0
    precision, recall = common / len(predicted), common / len(true)
    return recall, 2 * precision * recall / (precision + recall)
