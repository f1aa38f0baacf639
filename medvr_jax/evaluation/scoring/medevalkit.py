"""The rule `medevalkit`: the published numbers' way to score, rebuilt from how MedEvalKit behaves.

It guesses. What the published numbers contain is reproduced, whether sensible or not:

  - a multiple choice that names no letter is the option most similar by characters (difflib), the first of equals: so
    an empty response chooses A;
  - yes and no are found inside other words: "normal" says no;
  - the word "boxed" without a box makes the answer "none"; several <answer> tags are read one behind the other;
  - SLAKE's "Yes" and "No" are capitalised, so they are compared as whole texts, as are the Chinese ones;
  - closed questions of VQA-RAD and PathVQA that are not yes or no count as open ones: their full stops matter.

Not reproduced, since no accuracy of a whole set contains it, or no score could come of it:

  - the accuracy of open questions alone is divided by their number once, not twice;
  - recall and F1 stand under their own names (there: precision under "recall", recall under "f1");
  - an empty response to an open question scores 0 (there: an exception);
  - a judge's verdict replaces the score of open questions once (there: closed ones of SLAKE are counted twice, those of
    PathVQA dropped); see tables.py;
  - an answer given verbatim is right even when it holds a full stop (there: never, for closed questions).
"""

from __future__ import annotations

import difflib

from medvr_jax.datasets.example import LETTERS, Example
from medvr_jax.evaluation.scoring.words import recall_and_f1

# In this order the text behind the last of each is taken.
_MARKERS = (
    *("**answer**:", "**answer**", "*answer*:", "**answer:**"),
    *("answer is", "answer:", "答案:", "final answer", "final answer is"),
)
_TEXT_SETS = ("vqa_rad", "path_vqa")  # only yes/no and open questions


def score(response: str, example: Example) -> dict[str, float]:
    """correct, and for open questions exact, recall and f1."""
    name = example.dataset.partition("/")[0]
    if example.answer_kind == "choice":
        return {"correct": float(_choice(response, example, whole=name == "pmc_vqa"))}
    said, answer = _boxed(response), example.answer
    if said is None:
        said = _tagged(response)
    if name != "slake":
        said, answer = said.strip().lower(), answer.strip().lower()
    correct = _text(said, answer, closed=example.answer_kind != "open", only_yes_no=name in _TEXT_SETS)
    if example.answer_kind != "open":
        return {"correct": correct}
    exact = _text(said, answer, closed=False, only_yes_no=False)
    said, answer = (answer if exact else _behind_markers(said)).lower(), answer.lower()
    recall, f1 = recall_and_f1(set(said.split()), set(answer.split()))
    return {"correct": correct, "exact": exact, "recall": recall, "f1": f1}


def _text(said: str, answer: str, *, closed: bool, only_yes_no: bool) -> float:
    """only_yes_no: the sets that take yes and no for closed whatever they are called, and nothing else."""
    if said.lower() == answer.lower():
        return 1.0
    said = _behind_markers(said)
    bare = said.replace("\n", "").replace(".", "")
    if answer in ("yes", "no") and (closed or only_yes_no):
        return float(("yes" in bare) != ("no" in bare) and answer in bare)
    return float((bare if closed and not only_yes_no else said) == answer.lower())


def _choice(response: str, example: Example, *, whole: bool) -> bool:
    """whole: the set whose tags are read late, and whose options carry no letters."""
    letters = [letter.lower() for letter in LETTERS[: len(example.options)]]
    labels = [text if whole else f"{letter}. {text}" for letter, text in zip(letters, example.options, strict=True)]
    options = [label.lower() for label in labels]
    text = (response if whole else _tagged(response)).lower()
    blocks = text.split("\n\n")
    if blocks[0] in letters:
        text = blocks[0]
    elif (last := blocks[-1].partition(".")[0]) in letters:
        text = last
    text = _behind_markers(text).strip().replace("\n", "")
    said = text.partition(".")[0].rpartition(":")[2]
    answer = example.answer.strip().lower()
    if said in letters:
        return said == answer
    if said in options:
        return answer in letters and said == options[letters.index(answer)]
    similar = [difflib.SequenceMatcher(None, option, text).ratio() for option in options]
    return letters[similar.index(max(similar))] == answer


def _behind_markers(text: str) -> str:
    """Lower case; what a box or tags hold, then what stands behind the words that announce an answer."""
    text = text.lower()
    if "boxed" in text:
        box = _boxed(text)
        text = "None" if box is None else box  # with a capital: it does not say no
    elif "<answer>" in text:
        text = _tagged(text)
    for marker in _MARKERS:
        text = text.rpartition(marker)[2]
    return text


def _boxed(text: str) -> str | None:
    """What the last \\boxed{…} holds, None when there is none or it is not closed."""
    inside = text.rpartition("\\boxed{")
    depth = 1 if inside[1] else 0
    for place, character in enumerate(inside[2]):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if inside[1] and not depth:
            return inside[2][:place].strip()
    return None


def _tagged(text: str) -> str:
    """What the <answer>…</answer> hold, joined by spaces; the whole text when they hold nothing."""
    found, rest = [], text
    while (start := rest.find("<answer>")) >= 0 and (end := rest.find("</answer>", start)) >= 0:
        found.append(rest[start + len("<answer>") : end])
        rest = rest[end + len("</answer>") :]
    return " ".join(found).strip() or text
