"""The rule `strict`: an answer must be stated, once, and be the right one. Nothing is guessed.

Where the answer stands, the first that is there: in <answer>…</answer>, once; in \\boxed{…}; behind "answer is" or
"answer:"; else the whole text behind the thoughts is the answer. Several that differ are none. It is compared as the
reward compares it (rewards/answers.py): all that the reward accepts is right here, and besides

  choice         "Option B", "选B", and Markdown or quotes around a letter;
  yes_no         the very words of an answer that is neither yes nor no;
  closed, open   white space around commas, dashes and quotes of any shape.
"""

from __future__ import annotations

import re

from medvr_jax.datasets.example import Example
from medvr_jax.evaluation.scoring.words import recall_and_f1, words
from medvr_jax.rewards import answers

_BOXED = re.compile(r"\\boxed\s*\{")
_WRAPPER = re.compile(r"\s*\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|bf|rm)\s*\{(.*)\}\s*", re.DOTALL)
_DECLARED = re.compile(
    r"\banswer\b[*_]*\s*(?:is\b\s*[*_]*\s*:?|:)|答案\s*(?:应该是|应为|是|为|:|：)\s*[:：]?", re.IGNORECASE
)
_OPTION = re.compile(r"(?:option\b|choice\b|选项|选择|选)\s*", re.IGNORECASE)
_WRAPPING = " \t\r\n*_`\"'$\u201c\u201d\u2018\u2019"
_COMMA = re.compile(r"\s*[,;\u3001]\s*")
_SHAPES = str.maketrans(
    {"\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-"}
    | {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}
)


def score(response: str, example: Example) -> dict[str, float]:
    """correct, and for open questions exact, recall and f1."""
    said = stated_answer(response)
    correct = float(is_correct(said, example))
    if example.answer_kind != "open":
        return {"correct": correct}
    recall, f1 = recall_and_f1(words(said or ""), words(example.answer))
    return {"correct": correct, "exact": correct, "recall": recall, "f1": f1}


def is_correct(said: str | None, example: Example) -> bool:
    """Whether an answer, None for no answer, is the example's."""
    if said is None or not answers.normalise(said):
        return False
    kind = example.answer_kind
    if answers.is_correct(said, answer=example.answer, answer_kind=kind, options=example.options):
        return True
    if kind == "choice":
        return answers.chosen_letter(_bare_choice(said), example.options) == example.answer.strip().upper()
    if kind == "yes_no" and answers.yes_or_no(example.answer):
        return False
    return comparable(said) == comparable(example.answer)


def comparable(text: str) -> str:
    """A text in the form in which closed and open answers are compared; empty when it says nothing."""
    return _COMMA.sub(", ", answers.normalise(text.translate(_SHAPES)))


def stated_answer(response: str) -> str | None:
    """The one answer that a response states, None when it states none or several."""
    if "<answer>" in response or "</answer>" in response:
        return answers.extract_answer(response)
    text = response.rpartition("</think>")[2]
    if "<think>" in text or "<tool_call>" in text:  # cut off in a thought, or stopped at a call
        return None
    if _BOXED.search(text):
        return _the_only([_unwrapped(box) for box in _boxes(text)])
    if len(parts := _DECLARED.split(text)) > 1:
        return _the_only([part.strip().partition("\n")[0] for part in parts[1:]])
    return _the_only([text])


def _the_only(found: list[str]) -> str | None:
    """The answer that all which say something agree on."""
    found = [text.strip() for text in found if answers.normalise(text)]
    return found[0] if len({answers.normalise(text) for text in found}) == 1 else None


def _boxes(text: str) -> list[str]:
    """What stands in each \\boxed{…}; nothing for one that is not closed."""
    found = []
    for opening in _BOXED.finditer(text):
        depth = 1
        for place in range(opening.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                found.append(text[opening.end() : place])
                break
    return found


def _unwrapped(text: str) -> str:
    while inner := _WRAPPER.fullmatch(text):
        text = inner[1]
    return text


def _bare_choice(said: str) -> str:
    """A choice without the marks around it and the word "option" before its letter."""
    said = said.strip(_WRAPPING)
    return _OPTION.sub("", said, count=1).strip(_WRAPPING) if _OPTION.match(said) else said
