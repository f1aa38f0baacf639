"""Predictions for the six sets with known errors: who is wrong under which rule is planned, not computed."""

from __future__ import annotations

import numpy as np

from medvr_jax.datasets.example import LETTERS, Example

QUESTIONS = {
    "omnimedvqa": 120,
    "pmc_vqa/v2": 90,
    "medxpertqa_mm": 70,
    "vqa_rad": 80,
    "slake/en": 60,
    "slake/zh": 30,
    "path_vqa": 100,
}
OPTIONS = ("atlas", "bladder", "cortex", "duodenum", "ear")

# What an answer of each kind may look like, what it is worth under (medevalkit, strict), and how often it is given.
_STYLES = {
    "choice": [("{right}", 1, 1, 0.5), ("{wrong}", 0, 0, 0.3), ("{right}\n\nSo it seems.", 1, 0, 0.2)],
    "yes": [("yes", 1, 1, 0.5), ("no", 0, 0, 0.2), ("Yes, as is normal.", 0, 1, 0.3)],
    "no": [("No.", 1, 1, 0.4), ("yes", 0, 0, 0.3), ("normal", 1, 0, 0.3)],
    "Yes": [("yes.", 1, 1, 0.6), ("No", 0, 0, 0.2), ("Yes, on the left", 0, 1, 0.2)],
    "没有": [("没有", 1, 1, 0.5), ("有", 0, 0, 0.3), ("没有。", 0, 1, 0.2)],
    "closed": [("Left", 1, 1, 0.6), ("right", 0, 0, 0.3), ("", 0, 0, 0.1)],
    "open": [
        ("left lower lobe", 1, 1, 0.4),
        ("lower left lung lung", 0, 0, 0.3),
        ("kidney", 0, 0, 0.2),
        ("", 0, 0, 0.1),
    ],
}


def plan(samples: int = 1, seed: int = 0) -> list[tuple[Example, int, str, dict[str, int]]]:
    """(question, sample, response, rule -> 0 or 1), set by set."""
    generator = np.random.default_rng(seed)
    return [
        (example, sample, *_response(example, generator))
        for dataset, number in QUESTIONS.items()
        for example in (_example(dataset, index, generator) for index in range(number))
        for sample in range(samples)
    ]


def _example(dataset: str, index: int, generator: np.random.Generator) -> Example:
    name = dataset.partition("/")[0]
    chinese = dataset == "slake/zh"
    options: tuple[str, ...] = ()
    if name in ("omnimedvqa", "pmc_vqa", "medxpertqa_mm"):
        options = OPTIONS if name == "medxpertqa_mm" else OPTIONS[:4]
        kind, answer = "choice", LETTERS[generator.integers(len(options))]
    elif chinese:
        kind, answer = "yes_no", "没有"
    elif name == "slake":
        kind, answer = [("yes_no", "Yes"), ("closed", "Left"), ("open", "left lower lobe")][index % 3]
    else:
        kind, answer = [("yes_no", "yes"), ("yes_no", "no"), ("open", "left lower lobe")][index % 3]
    return Example(
        id=f"{index}zh" if chinese else str(index),  # the same ids in several sets
        images=(),
        question="?",
        options=options,
        answer=answer,
        answer_kind=kind,
        modality=("MRI", "CT", "X-Ray", "")[generator.integers(4)],
        dataset=dataset,
        question_type=("organ", "plane | side")[generator.integers(2)],
        language="zh" if chinese else "en",
    )


def _response(example: Example, generator: np.random.Generator) -> tuple[str, dict[str, int]]:
    styles = _STYLES[example.answer if example.answer_kind == "yes_no" else example.answer_kind]
    text, medevalkit, strict, _ = styles[generator.choice(len(styles), p=[style[-1] for style in styles])]
    right = LETTERS.find(example.answer) if example.answer_kind == "choice" else 0
    wrong = (right + 1 + generator.integers(3)) % 4 if right < 4 else 0
    text = text.format(right=LETTERS[right], wrong=LETTERS[wrong])
    return text, {"medevalkit": medevalkit, "strict": strict}
