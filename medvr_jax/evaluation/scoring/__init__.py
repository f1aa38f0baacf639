"""Is a response right? Two rules, side by side and never mixed.

  medevalkit   what the published numbers were scored with, guesses included, so that ours can stand beside them;
  strict       ours: only what an answer says without doubt.

Both read the text alone; who wrote it makes no difference.
"""

from __future__ import annotations

from medvr_jax.datasets.example import Example
from medvr_jax.evaluation.scoring import medevalkit, strict
from medvr_jax.rewards.format import strip_end_of_turn

Scores = dict[str, float]
"""`correct` (0 or 1), and for open questions `exact` (0 or 1), `recall` and `f1` of the words (0 to 1)."""

RULES = ("medevalkit", "strict")


def score(response: str, example: Example) -> dict[str, Scores]:
    """A response's scores under each rule.

    response: all that the model wrote in its last turn, reasoning and tags included; empty when it wrote nothing.
    """
    response = strip_end_of_turn(response)
    return {"medevalkit": medevalkit.score(response, example), "strict": strict.score(response, example)}


def extract_answer(response: str) -> str | None:
    """What a response gives as its answer, read strictly; None where it gives none."""
    return strict.stated_answer(strip_end_of_turn(response))
