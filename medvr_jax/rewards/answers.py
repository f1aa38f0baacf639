"""From text to answer, and is it the right one? One rule per answer kind, strict on purpose.

  choice   the letter ("B", "(b)", "B."), the option's own text, or the letter followed by that text;
  yes_no   an answer that begins with yes or no, in English or Chinese, and does not say the other;
  closed, open   the same text after normalisation (case, width, white space, outer punctuation).

An empty answer, and the placeholder "...", match nothing. A reward that guesses what was meant teaches to be vague;
the lenient rules that published tables were scored with belong to evaluation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from medvr_jax.rewards import chinese

ANSWER_KINDS = ("choice", "yes_no", "closed", "open")

_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_LETTER = re.compile(r"\(?\s*([a-z])\s*\)?[\s.:,;\u3001\u3002]*", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(
    r"(?:\(\s*([a-z])\s*\)[.:,]?\s*|([a-z])\s*[).:,\u3001]\s*)(\S.*)", re.IGNORECASE | re.DOTALL
)
# At the end of the list the curly quotes, and the Chinese marks that NFKC leaves as they are.
_OUTER = " \t\n\r.,;:!?\"'`()[]{}*_\u201c\u201d\u2018\u2019\u3001\u3002\u300a\u300b\u300c\u300d\u300e\u300f\u3010\u3011"
_BETWEEN_CHARACTERS = re.compile(rf"(?<={chinese.CHARACTER.pattern}) (?={chinese.CHARACTER.pattern})")


def normalise(text: str) -> str:
    """Text as answers are compared: NFKC, case-folded, single spaces (none in Chinese), no outer punctuation."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return _BETWEEN_CHARACTERS.sub("", " ".join(text.split())).strip(_OUTER)


def extract_answer(text: str) -> str | None:
    """What stands in the only <answer>…</answer> of a turn's text; None if there is none, several, or nothing in it."""
    found = _ANSWER.findall(text)
    if len(found) != 1:
        return None
    answer = found[0].strip()
    return answer if normalise(answer) else None


def chosen_letter(prediction: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a prediction names without doubt, else None."""
    letters = [chr(ord("A") + index) for index in range(len(options))]
    prediction = unicodedata.normalize("NFKC", prediction).strip()
    if found := _LETTER.fullmatch(prediction):
        letter = found[1].upper()
        return letter if letter in letters else None
    texts = [normalise(option) for option in options]
    wanted = normalise(prediction)
    same = [letter for letter, text in zip(letters, texts, strict=True) if text and text == wanted]
    if same:
        return same[0] if len(same) == 1 else None
    if found := _LETTER_AND_TEXT.fullmatch(prediction):
        letter = (found[1] or found[2]).upper()
        if letter in letters and texts[letters.index(letter)] == normalise(found[3]):
            return letter
    return None


def yes_or_no(prediction: str) -> str | None:
    """The word yes or no if the prediction begins with that word and never says the other, else None."""
    prediction = normalise(prediction)
    if chinese.CHARACTER.search(prediction):
        return chinese.yes_or_no(prediction)
    words = re.findall(r"\w+", prediction)
    if not words or words[0] not in ("yes", "no") or {"yes", "no"} <= set(words):
        return None
    return words[0]


def is_correct(prediction: str | None, *, answer: str, answer_kind: str, options: Sequence[str] = ()) -> bool:
    """Whether a prediction (None: there is none) is the answer: a letter for choices, else a text."""
    if answer_kind not in ANSWER_KINDS:
        raise ValueError(f"answer_kind is {answer_kind!r}, allowed are {', '.join(ANSWER_KINDS)}")
    if prediction is None or not normalise(prediction):
        return False
    if answer_kind == "choice":
        return chosen_letter(prediction, options) == answer.strip().upper()
    if answer_kind == "yes_no":
        said = yes_or_no(prediction)
        return said is not None and said == yes_or_no(answer)
    return normalise(prediction) == normalise(answer)
