"""Every number of the tables once more, from the predictions file and the list of known errors; NumPy alone.

python recompute.py PREDICTIONS ERRORS: reads who was asked what from the one, who was wrong from the other (rule ->
list of [set, id, sample]), never a score, and prints one JSON object.
"""

import json
import sys
from pathlib import Path

import numpy as np

CHOICE_SETS = ["omnimedvqa", "pmc_vqa", "medxpertqa_mm"]
TEXT_SETS = ["vqa_rad", "slake", "path_vqa"]
FIELDS = ["modality", "question_type", "language", "answer_kind"]


def mean_of_questions(ids, values):
    """Mean over questions of the mean over each question's samples."""
    names, places = np.unique(ids, return_inverse=True)
    return float((np.bincount(places, values) / np.bincount(places)).mean()), len(names)


def named(figures):
    return {"mean": figures[0], "questions": figures[1]}


def word_figures(response, answer, rule):
    said, true = response.lower().split(), answer.lower().split()
    if rule == "medevalkit":
        said, true = sorted(set(said)), sorted(set(true))
    left, common = list(true), 0
    for word in said:
        if word in left:
            left.remove(word)
            common += 1
    if common == 0:
        return 0.0, 0.0
    return common / len(true), 2 * common / (len(said) + len(true))


def resample(ids, values, generator, repeats=4000):
    """The means of as many draws of questions, one by one."""
    _, places = np.unique(ids, return_inverse=True)
    questions = np.bincount(places, values) / np.bincount(places)
    drawn = generator.integers(0, len(questions), (repeats, len(questions)))
    return questions[drawn].mean(1)


def main():
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    errors = json.loads(Path(sys.argv[2]).read_text())
    sets = np.array([row["dataset"].split("/")[0] for row in rows])
    ids = np.array([row["id"] for row in rows])
    is_open = np.array([row["answer_kind"] == "open" for row in rows])
    found = {}
    for rule, wrong in errors.items():
        wrong = {tuple(key) for key in wrong}
        right = np.array([(s, r["id"], r["sample"]) not in wrong for s, r in zip(sets, rows, strict=True)], np.float64)
        generator = np.random.default_rng(1)
        figures, draws = {}, {}
        for name in np.unique(sets).tolist():
            here = sets == name
            figure = named(mean_of_questions(ids[here], right[here]))
            draws[name] = resample(ids[here], right[here], generator)
            figure["interval"] = np.quantile(draws[name], [0.025, 0.975]).tolist()
            for part, chosen in (("closed", here & ~is_open), ("open", here & is_open)):
                if chosen.any():
                    figure[part] = named(mean_of_questions(ids[chosen], right[chosen]))
            if "open" in figure:
                places = np.flatnonzero(here & is_open)
                words = np.array([word_figures(rows[i]["response"], rows[i]["answer"], rule) for i in places])
                figure["open"]["exact"] = figure["open"]["mean"]
                figure["open"]["recall"] = mean_of_questions(ids[places], words[:, 0])[0]
                figure["open"]["f1"] = mean_of_questions(ids[places], words[:, 1])[0]
            figure["by"] = {}
            for field in FIELDS:
                values = np.array([row[field] for row in rows])
                figure["by"][field] = {
                    value: mean_of_questions(ids[here & (values == value)], right[here & (values == value)])
                    for value in np.unique(values[here]).tolist()
                }
            figures[name] = figure
        averages = []
        for group in (CHOICE_SETS, TEXT_SETS):
            interval = np.quantile(np.mean([draws[name] for name in group], axis=0), [0.025, 0.975]).tolist()
            averages.append({"mean": float(np.mean([figures[name]["mean"] for name in group])), "interval": interval})
        found[rule] = {"sets": figures, "averages": averages}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
