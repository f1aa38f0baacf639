"""The tables of planned predictions, every number against an independent script; small figures by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medvr_jax.errors import UserError
from medvr_jax.evaluation import figures
from medvr_jax.evaluation.rows import rules_of
from medvr_jax.evaluation.scoring import RULES, extract_answer, score
from medvr_jax.evaluation.statistics import Bootstrap
from medvr_jax.evaluation.tables import MAIN_TABLE, make_tables, write_tables
from tests.evaluation.planned_predictions import plan

BOOTSTRAP = Bootstrap(repeats=4000, seed=7)


def make_row(example, sample, response) -> dict:
    fields = ("id", "dataset", "answer_kind", "modality", "question_type", "language", "answer")
    row = {name: getattr(example, name) for name in fields} | {"options": list(example.options), "sample": sample}
    return row | {"response": response, "prediction": extract_answer(response), "scores": score(response, example)}


@pytest.fixture(scope="module", params=[1, 3], ids=["one sample", "three samples"])
def evaluated(request, tmp_path_factory):
    """(folder with the written tables, what the independent script found)."""
    folder = tmp_path_factory.mktemp("tables")
    planned = plan(request.param)
    lines = [json.dumps(make_row(*one[:3]), ensure_ascii=False) for one in planned]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    errors = {
        rule: [[e.dataset.partition("/")[0], e.id, sample] for e, sample, _, right in planned if not right[rule]]
        for rule in RULES
    }
    (folder / "errors.json").write_text(json.dumps(errors))
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    write_tables(folder, rows, model="ours", bootstrap=BOOTSTRAP)
    script = [
        sys.executable,
        Path(__file__).parent / "recompute.py",
        folder / "predictions.jsonl",
        folder / "errors.json",
    ]
    found = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    return folder, json.loads(found)


def test_main_table(evaluated) -> None:
    folder, found = evaluated
    tables = json.loads((folder / "tables.json").read_text(encoding="utf-8"))
    assert tables["answers"] == len((folder / "predictions.jsonl").read_text().splitlines())
    for rule in RULES:
        line = tables["rules"][rule]["main"]["ours"]
        assert set(line["sets"]) == {column.name for group in MAIN_TABLE for column in group}
        for name, figure in line["sets"].items():
            expected = found[rule]["sets"][name]
            assert figure["mean"] == pytest.approx(expected["mean"], abs=1e-12)
            assert figure["questions"] == expected["questions"]
            assert (figure["low"], figure["high"]) == pytest.approx(expected["interval"], abs=0.015)
        for figure, expected in zip(line["averages"], found[rule]["averages"], strict=True):
            assert figure["mean"] == pytest.approx(expected["mean"], abs=1e-12)
            assert (figure["low"], figure["high"]) == pytest.approx(expected["interval"], abs=0.01)


def test_main_table_as_it_is_read(evaluated) -> None:
    folder, found = evaluated
    text = (folder / "tables.md").read_text(encoding="utf-8")
    head = "| model | OmniMedVQA | PMC-VQA◇ | MedXpertQA◇ | avg | VQA-RAD | SLAKE | PathVQA◇ | avg |"
    assert text.count(head) == 2
    for rule in RULES:
        part = text.split(f"## Rule `{rule}`")[1]
        line = next(line for line in part.splitlines() if line.startswith("| ours |"))
        cells = [cell.split("[")[0].strip() for cell in line.strip("| ").split("|")][1:]
        expected = []
        for group, average in zip(MAIN_TABLE, found[rule]["averages"], strict=True):
            expected += [found[rule]["sets"][column.name]["mean"] for column in group] + [average["mean"]]
        assert cells == [f"{100 * value:.1f}" for value in expected]


def test_closed_and_open_apart(evaluated) -> None:
    folder, found = evaluated
    tables = json.loads((folder / "tables.json").read_text(encoding="utf-8"))
    for rule in RULES:
        for name, figure in tables["rules"][rule]["sets"].items():
            expected = found[rule]["sets"][name]
            for part in ("closed", "open"):
                assert (part in figure) == (part in expected)
                for key, value in expected.get(part, {}).items():
                    assert figure[part][key] == pytest.approx(value, abs=1e-12), (rule, name, part, key)
        assert "open" in tables["rules"][rule]["sets"]["path_vqa"]


def test_breakdowns(evaluated) -> None:
    folder, found = evaluated
    tables = json.loads((folder / "tables.json").read_text(encoding="utf-8"))
    for rule in RULES:
        for name, by in tables["rules"][rule]["breakdowns"].items():
            got = {key: {v: (f["mean"], f["questions"]) for v, f in values.items()} for key, values in by.items()}
            expected = found[rule]["sets"][name]["by"]
            assert got.keys() == expected.keys()
            for key in got:
                assert got[key].keys() == expected[key].keys()
                for value in got[key]:
                    assert got[key][value] == pytest.approx(tuple(expected[key][value]), abs=1e-12)
    assert set(tables["rules"]["strict"]["breakdowns"]["slake"]["language"]) == {"en", "zh"}
    assert "plane \\| side" in (folder / "tables.md").read_text(encoding="utf-8")


def test_the_same_rows_give_the_same_files(evaluated, tmp_path) -> None:
    folder, _ = evaluated
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    write_tables(tmp_path, rows, model="ours", bootstrap=BOOTSTRAP)
    for name in ("tables.json", "tables.md"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def small(id_, correct, *, sample=0, kind="choice", dataset="vqa_rad", **more) -> dict:
    """A row of a question whose answer is right (1) or wrong (0) under both rules."""
    scores = {rule: {"correct": correct} for rule in RULES}
    if kind == "open":
        scores = {rule: {"correct": correct, "exact": correct, "recall": correct, "f1": correct} for rule in RULES}
    row = {"id": id_, "dataset": dataset, "sample": sample, "answer_kind": kind, "scores": scores}
    return row | {"options": ["x", "y", "z"], "prediction": "A"} | more


def test_averages_need_all_three_sets() -> None:
    tables = make_tables([small("1", 1), small("2", 0, dataset="slake/en")])
    line = tables["rules"]["strict"]["main"]["policy"]
    assert line["averages"] == [None, None]
    assert {name: figure["mean"] for name, figure in line["sets"].items()} == {"vqa_rad": 1.0, "slake": 0.0}


def test_own_data_has_tables_but_no_main_table(tmp_path) -> None:
    write_tables(tmp_path, [small("1", 1, dataset=""), small("2", 0, dataset="")])
    text = (tmp_path / "tables.md").read_text()
    assert "own data | 2 | 50.0" in text and "OmniMedVQA |" not in text


def test_several_samples_by_hand() -> None:
    rows = [
        *(small("1", c, sample=s, prediction=p) for s, (c, p) in enumerate([(1, "A"), (1, "a."), (0, "B"), (0, None)])),
        *(small("2", c, sample=s, prediction=p) for s, (c, p) in enumerate([(0, "B"), (0, "(B)"), (1, "A"), (0, "C")])),
        *(small("3", c, sample=s, prediction=p) for s, (c, p) in enumerate([(1, "A"), (0, "B"), (0, None), (0, None)])),
        *(small("4", 0, sample=s, prediction=None) for s in range(4)),
    ]
    figure = figures.samples(rows, "strict")
    assert (figure["questions"], figure["samples"]) == (4, 4)
    assert figure["accuracy"] == pytest.approx((2 + 1 + 1 + 0) / 16)
    assert figure["majority"] == pytest.approx((1 + 0 + 0.5 + 0) / 4)  # question 3: one vote each
    assert figure["pass_at"] == pytest.approx({"1": 4 / 16, "2": (5 / 6 + 3 / 6 + 3 / 6) / 4, "4": 3 / 4})


def test_majority_counts_meanings_not_words() -> None:
    said = ["yes", "Yes, it is", "no"]
    rows = [
        small("1", c, sample=s, kind="yes_no", prediction=p)
        for s, (c, p) in enumerate(zip([1, 1, 0], said, strict=True))
    ]
    assert figures.majority(rows, "strict") == 1
    said = ["是", "yes", "没有"]
    rows = [
        small("1", c, sample=s, kind="yes_no", prediction=p)
        for s, (c, p) in enumerate(zip([1, 1, 0], said, strict=True))
    ]
    assert figures.majority(rows, "strict") == 1


def test_wordings_of_the_leading_answer_count_with_their_share() -> None:
    said = [("yes", 1), ("Yes, as is normal", 0), ("no", 0)]  # a rule may take one wording and not the other
    rows = [small("1", c, sample=s, kind="yes_no", prediction=p) for s, (p, c) in enumerate(said)]
    assert figures.majority(rows, "medevalkit") == figures.majority(rows[::-1], "medevalkit") == 0.5


def test_two_runs_in_pairs() -> None:
    first = [small(str(i), c) for i, c in enumerate([1, 1, 1, 1, 1, 0, 0, 1])]
    second = [small(str(i), c) for i, c in enumerate([1, 0, 0, 0, 0, 1, 0])] + [small("9", 1)]
    tables = make_tables(first, model="a", others={"b": second}, bootstrap=BOOTSTRAP)
    figure = tables["rules"]["strict"]["against"]["b"]["vqa_rad"]
    assert (figure["questions"], figure["only_first"], figure["only_second"]) == (7, 1, 1)
    assert (figure["wins"], figure["losses"]) == (4, 1)
    assert figure["p_value"] == pytest.approx(2 * (1 + 5) / 32)  # exact McNemar: 4 against 1
    assert figure["difference"] == pytest.approx(figure["first"] - figure["second"]) == pytest.approx(3 / 7)
    differences = np.array([0, 1, 1, 1, 1, -1, 0])
    drawn = np.random.default_rng(0).choice(differences, (20000, 7)).mean(1)
    assert (figure["low"], figure["high"]) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=1 / 7)
    assert set(tables["rules"]["strict"]["main"]) == {"a", "b"}


def test_runs_that_share_nothing_are_not_compared() -> None:
    tables = make_tables([small("1", 1)], others={"b": [small("2", 1)], "c": [small("1", 1, dataset="slake")]})
    assert tables["rules"]["strict"]["against"] == {"b": {}, "c": {}}


def test_with_and_without_the_tool(tmp_path) -> None:
    with_tool = [small(str(i), c) for i, c in enumerate([1, 1, 0])]
    without = [small(str(i), c) for i, c in enumerate([1, 0, 0])]
    tables = write_tables(tmp_path, with_tool, without_tool=without)
    figure = tables["rules"]["medevalkit"]["without_tool"]["vqa_rad"]
    assert (figure["first"], figure["second"]) == pytest.approx((2 / 3, 1 / 3))
    assert "With the tool, and with the tool forbidden" in (tmp_path / "tables.md").read_text()


def test_the_judge_decides_open_questions_only() -> None:
    rows = [small("1", 0, kind="open"), small("2", 1, kind="open"), small("3", 0), small("4", 1)]
    assert rules_of(rows) == RULES
    for row, verdict in zip(rows[:3], [1, 1, 1], strict=True):
        row["scores"]["judge"] = {"correct": verdict}
    tables = make_tables(rows)
    assert list(tables["rules"]) == ["medevalkit", "strict", "medevalkit + judge", "strict + judge"]
    assert tables["rules"]["strict"]["sets"]["vqa_rad"]["mean"] == 0.5
    judged = tables["rules"]["strict + judge"]["sets"]["vqa_rad"]
    assert (judged["mean"], judged["open"]["mean"], judged["closed"]["mean"]) == (0.75, 1.0, 0.5)  # not by 3's verdict
    del rows[0]["scores"]["judge"]
    assert rules_of(rows) == RULES  # an open question without a verdict: no figure


def zooming(id_, correct, boxes, true_boxes, observations, texts=None, entropy=None, ended="answer") -> dict:
    texts = texts or ["<tool_call>…</tool_call>" if seen else "<answer>A</answer>" for seen in observations]
    return small(
        id_,
        correct,
        called=any("<tool_call>" in text for text in texts),
        texts=texts,
        observations=observations,
        boxes=boxes,
        true_boxes=true_boxes,
        well_formed=ended == "answer",
        sampled_tokens=10 * len(texts),
        ended=ended,
        box_entropy=entropy,
    )


LEFT, RIGHT, ALL = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]


def test_use_of_the_tool_by_hand() -> None:
    call = "<tool_call>…</tool_call>"
    rows = [
        zooming("1", 1, [LEFT, ALL], [LEFT], ["crop", "crop", None]),
        zooming("2", 0, [], [LEFT], ["error: no such tool", None]),
        zooming("3", 0, [], [LEFT], [None]),
        zooming("4", 0, [LEFT], [LEFT], ["crop", None], texts=[call, call], ended="turn_limit"),
    ]
    windowed = figures.tool_use([zooming("5", 1, [], [], ["image", None]), rows[2]])  # an image that is no region
    assert windowed["valid_call_rate"] == 1.0 and windowed["images_per_answer"] == 1 / 2
    figure = figures.tool_use(rows)
    assert figure["answers"] == 4 and figure["calls"] == 5
    assert figure["tool_rate"] == 3 / 4
    assert figure["valid_call_rate"] == 3 / 5
    assert figure["images_per_answer"] == 3 / 4
    assert figure["turns_per_answer"] == 8 / 4
    assert figure["well_formed_rate"] == 3 / 4
    assert figure["sampled_tokens"] == 20
    assert figure["ended"] == {"answer": 3 / 4, "turn_limit": 1 / 4}
    assert figures.tool_use([small("1", 1)]) is None  # another model's predictions
    assert figures.tool_use([rows[2]])["valid_call_rate"] is None


def test_grounding_by_hand(tmp_path) -> None:
    rows = [
        zooming("1", 1, [LEFT, ALL], [LEFT], ["crop", "crop", None], entropy=[0.5, 2.0]),
        zooming("2", 0, [RIGHT], [LEFT], ["crop", None], entropy=[3.0]),
        zooming("3", 0, [], [LEFT], [None], entropy=[]),
        zooming("4", 0, [ALL], [LEFT, RIGHT], ["crop", None]),
        zooming("5", 0, [ALL], [], ["crop", None], entropy=[9.0]),  # no truth
    ]
    figure = figures.grounding(rows, BOOTSTRAP)
    assert figure["mean_iou"]["mean"] == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert figure["last_iou"]["mean"] == pytest.approx((0.5 + 0 + 0 + 0.5) / 4)
    assert figure["hit_rate"]["mean"] == pytest.approx(2 / 4)
    assert figure["zoomed"] == 3 / 4
    entropies, ious = [0.5, 2.0, 3.0], [1.0, 0.5, 0.0]
    assert figure["entropy"]["zooms"] == 3
    assert figure["entropy"]["pearson"] == pytest.approx(np.corrcoef(entropies, ious)[0, 1])
    assert figure["entropy"]["spearman"] == pytest.approx(-1)
    assert figures.grounding([small("1", 1)], BOOTSTRAP) is None
    write_tables(tmp_path, rows)
    assert "| vqa\\_rad |" not in (tmp_path / "tables.md").read_text()
    assert "## Grounding" in (tmp_path / "tables.md").read_text()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "policy has no rows"),
        ([{"id": "1", "answer_kind": "open"}], "row 1: has no scores"),
        ([{"id": "1", "answer_kind": "open", "scores": {"strict": {"correct": 1}}}], "scores has no medevalkit"),
        ([small("1", 1), small("1", 0)], "row 2: id '1' is there twice"),
    ],
)
def test_rows_that_cannot_be_counted(rows, message) -> None:
    with pytest.raises(UserError, match=message):
        make_tables(rows)


def test_names_of_runs_differ() -> None:
    with pytest.raises(UserError, match="two runs are called 'a'"):
        make_tables([small("1", 1)], model="a", others={"a": [small("1", 1)]})


def test_perfect_answers_make_a_table_of_hundreds(tmp_path) -> None:
    rows = [make_row(example, sample, f"<answer>{example.answer}</answer>") for example, sample, *_ in plan()]
    tables = write_tables(tmp_path, rows)
    for rule in RULES:
        line = tables["rules"][rule]["main"]["policy"]
        found = [*line["sets"].values(), *line["averages"]]
        assert {(figure["mean"], figure["low"], figure["high"]) for figure in found} == {(1.0, 1.0, 1.0)}
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert text.count("| policy |" + " 100.0 [100.0, 100.0] |" * 8) == 2


def test_empty_answers_make_a_table_of_noughts() -> None:
    rows = [make_row(example, sample, "") for example, sample, *_ in plan()]
    line = make_tables(rows)["rules"]["strict"]["main"]["policy"]
    assert {figure["mean"] for figure in [*line["sets"].values(), *line["averages"]]} == {0.0}
