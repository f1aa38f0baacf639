"""Tables and figures from made-up runs, each number recomputed from their rows; what is written, read again."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from medvr_jax.errors import UserError
from medvr_jax.experiments.grid import Experiment, finished_runs
from medvr_jax.experiments.result_figures import entropy_line, field_line
from medvr_jax.experiments.run import missing_tasks, write_results
from medvr_jax.experiments.run_files import Run, kept, run_file, write_run
from medvr_jax.experiments.tables import result_lines, share, table
from tests.experiments.made_runs import made_experiment, made_run

ARMS = '("zoom=zoom", "calm=evr,gamma=0@3", "evr=evr", "other=window", "empty=cca")'
FIGURES = (
    '("curves:zoom,evr,empty", "eval/hit_rate:zoom", "base/right_rate:zoom,evr", "area:zoom,calm,evr,empty",'
    ' "Gamma=evr.gamma:calm,evr", "entropy:zoom,evr", "reward/purity:zoom")'
)
Runs = dict[str, dict[int, Run]]


@pytest.fixture
def experiment() -> Experiment:
    return made_experiment(arms=ARMS, seeds=4, pairs="evr-calm", figures=FIGURES)


@pytest.fixture
def runs(experiment: Experiment) -> Runs:
    """Random ones; evr is clearly better than zoom, and nothing else is clear."""
    rng, found = np.random.default_rng(0), {name: {} for name in experiment.arms}
    luck = rng.normal(0, 0.03, (4, 7))
    for name, gain in (("zoom", 0.0), ("evr", 0.1), ("calm", 0.1), ("other", 0.3)):
        for seed in experiment.arms[name].seeds:
            accuracy = np.linspace(0.5, 0.7, 7) + gain + luck[seed] + rng.normal(0, 0.1 if name == "calm" else 0.01, 7)
            entropy = rng.uniform(0, 2, 50)
            looks = [(float(h), float(np.exp(-h))) for h in entropy]
            right = rng.uniform(size=30).tolist()
            found[name][seed] = made_run(experiment, name, seed, accuracy.tolist(), looks, base__right_rate=right)
    return found


def cells(text: str, first: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def areas(runs: Runs, name: str) -> np.ndarray:
    """By numpy's own trapezoids."""
    curves = [
        np.array([row["eval/accuracy"] for row in run.rows if "eval/accuracy" in row]) for run in runs[name].values()
    ]
    return np.array([np.trapezoid(curve, dx=5) / 30 for curve in curves])


def test_rows_of_the_table(experiment: Experiment, runs: Runs) -> None:
    text = table(experiment, runs)
    assert cells(text, "arm") == ["seeds", *(f"accuracy at {step}" for step in (0, 10, 20, 30))] + [
        "hit rate", "right in training", "area",
    ]  # fmt: skip
    for name in ("zoom", "calm", "evr", "other"):
        found, of_arm = cells(text, name), list(runs[name].values())
        assert found[0] == str(len(of_arm))
        columns = [[run.rows[step]["eval/accuracy"] for run in of_arm] for step in (0, 10, 20, 30)]
        columns.append([run.rows[-1]["eval/hit_rate"] for run in of_arm])
        columns.append([np.mean([row["base/right_rate"] for row in run.rows[:-1]]) for run in of_arm])
        columns.append(areas(runs, name))
        for cell, values in zip(found[1:], columns, strict=True):
            mean, error = (float(part) for part in cell.split(" ± "))
            assert (mean, error) == pytest.approx((np.mean(values), stats.sem(values)), abs=5.1e-4)
    assert cells(text, "empty") == ["0"] + ["–"] * 7


def test_differences_of_the_table(experiment: Experiment, runs: Runs) -> None:
    text = table(experiment, runs)
    pattern = r"\*{0,2}([+−][.\d]+) \[([+−][.\d]+), ([+−][.\d]+)\]\*{0,2}"
    for first, second, clear in (("evr", "zoom", True), ("calm", "zoom", False), ("evr", "calm", False)):
        pairs, area, final, detectable = cells(text, f"{first} − {second}")
        seeds = [seed for seed in runs[first] if seed in runs[second]]
        assert int(pairs) == len(seeds)
        one, other = (areas(runs, name)[: len(seeds)] for name in (first, second))
        interval = stats.ttest_rel(one, other).confidence_interval(0.95)
        numbers = [float(x.replace("−", "-")) for x in re.fullmatch(pattern, area).groups()]
        assert numbers == pytest.approx([np.mean(one - other), interval.low, interval.high], abs=5.1e-4)
        assert area.startswith("**") == clear == (interval.low > 0)
        one, other = ([runs[name][seed].rows[-1]["eval/accuracy"] for seed in seeds] for name in (first, second))
        interval = stats.ttest_rel(one, other).confidence_interval(0.95)
        numbers = [float(x.replace("−", "-")) for x in re.fullmatch(pattern, final).groups()]
        assert numbers[1:] == pytest.approx([interval.low, interval.high], abs=5.1e-4)
        assert 0 < float(detectable) < 1.5
    assert "other − zoom" not in text and "empty − zoom" not in text


def test_shares_are_short() -> None:
    numbers = [0.6123, 1.0, 0.99961, -0.0264, 0.0, -0.0001, None]
    assert [share(x) for x in numbers] == [".612", "1.000", "1.000", "−.026", ".000", ".000", "–"]
    assert [share(x, "+") for x in (0.09, -1.5)] == ["+.090", "−1.500"]


def test_lines_for_other_programs(runs: Runs) -> None:
    lines = [json.loads(line) for line in result_lines(runs).splitlines()]
    assert len(lines) == 4 + 3 + 4 + 4
    for line in lines:
        run = runs[line["arm"]][line["seed"]]
        assert line["steps"] == list(range(0, 31, 5)) and line["seconds"] == 1.5
        assert line["curve"] == [run.rows[step]["eval/accuracy"] for step in line["steps"]]
        assert line["final"] == line["curve"][-1] and line["hit_rate"] == run.rows[-1]["eval/hit_rate"]
        assert line["area"] == pytest.approx(np.trapezoid(line["curve"], line["steps"]) / 30)


def test_a_figure_against_a_field(experiment: Experiment, runs: Runs) -> None:
    line = field_line(("evr", "calm"), "evr.gamma", experiment, runs)
    assert [x for x, _ in line.points] == [0.0, 0.5] and line.name == "evr, calm (3)" and line.marks
    calm, evr = areas(runs, "calm"), areas(runs, "evr")[:3]  # the seeds that both have
    assert [y for _, y in line.points] == pytest.approx([calm.mean(), evr.mean()])
    assert line.errors == pytest.approx([stats.sem(calm), stats.sem(evr)])
    assert field_line(("evr_4", "evr_8"), "evr.gamma", experiment, {"evr_4": {}, "evr_8": {}}).points == []


def test_entropy_in_bins(experiment: Experiment) -> None:
    """Two seeds: the IoU falls with the entropy, by a constant between them; eight bins of equally many zooms."""
    entropy = np.random.default_rng(0).permutation(160) / 100
    looks = [[(float(h), 0.5 - h / 10 + shift) for h in entropy] for shift in (0.0, 0.02)]
    runs = [made_run(experiment, "zoom", seed, [0.5, 0.6], looks[seed]) for seed in (0, 1)]
    line = entropy_line("zoom", runs)
    xs, ys = np.array(line.points).T
    np.testing.assert_allclose(xs, np.sort(entropy).reshape(8, 20).mean(1), atol=0.01)
    np.testing.assert_allclose(ys, 0.51 - xs / 10)
    np.testing.assert_allclose(line.errors, 0.01, atol=1e-9)
    expected = stats.spearmanr(np.tile(entropy, 2), [iou for of_seed in looks for _, iou in of_seed]).statistic
    assert line.name == f"zoom (320 zooms, rank correlation −{abs(expected):.2f})"
    assert not entropy_line("zoom", [made_run(experiment, "zoom", 0, [0.5, 0.6])]).points
    alike = entropy_line("zoom", [made_run(experiment, "zoom", 0, [0.5, 0.6], [(0.0, 0.5)] * 3)])
    assert alike.points == [(0.0, 0.5)] and alike.name == "zoom (3 zooms)"


def test_a_folder_holds_tables_and_figures(experiment: Experiment, runs: Runs, tmp_path: Path) -> None:
    page = write_results(tmp_path, experiment, runs).read_text(encoding="utf-8")
    assert (tmp_path / "table.md").read_text(encoding="utf-8").rstrip("\n") in page
    shown = re.findall(r"!\[([^]]+)\]\(figures/(\w+)\.svg\)", page)
    assert len(shown) == 6 == len(list((tmp_path / "figures").iterdir()))  # nothing has a purity
    for title, stem in shown:
        root = ElementTree.fromstring((tmp_path / "figures" / f"{stem}.svg").read_text(encoding="utf-8"))
        assert root.get("aria-label") == title
    assert re.search(r"\d+ of \d+ runs are done\. `zoom`: \d+ updates of \d+ questions x \d+ trajectories, ", page)
    curves = (tmp_path / "figures" / "held_out_accuracy.svg").read_text(encoding="utf-8")
    assert "zoom (4)" in curves and "evr (4)" in curves and "empty" not in curves
    assert (tmp_path / "results.jsonl").read_text(encoding="utf-8") == result_lines(runs)


def test_nothing_done_yet(experiment: Experiment, tmp_path: Path) -> None:
    page = write_results(tmp_path, experiment, {name: {} for name in experiment.arms}).read_text(encoding="utf-8")
    assert "No seed has two arms to compare yet." in page and "![" not in page


# ------------------------------------------------------------------------------------------------------------- files


def test_runs_are_read_as_they_were_written(experiment: Experiment, runs: Runs, tmp_path: Path) -> None:
    for of_arm in runs.values():
        for run in of_arm.values():
            write_run(run_file(tmp_path, run.arm, run.seed), run)
    found = finished_runs(tmp_path, experiment)
    assert table(experiment, found) == table(experiment, runs)
    assert found["zoom"][0].looks == runs["zoom"][0].looks and list(found["zoom"][0].rows) == runs["zoom"][0].rows
    tasks = missing_tasks(tmp_path, experiment, {**found, "zoom": {1: found["zoom"][1]}})
    expected = [("zoom", 0), ("zoom", 2), ("zoom", 3), *(("empty", seed) for seed in range(4))]
    assert [(task.arm, task.seed) for task in tasks] == expected
    assert tasks[0].config == experiment.arms["zoom"].config.to_dict()


def test_runs_of_another_configuration_are_refused(experiment: Experiment, runs: Runs, tmp_path: Path) -> None:
    run, file = runs["calm"][0], run_file(tmp_path, "calm", 0)
    changed = json.loads(json.dumps(run.config))
    changed["seed"] = 5
    changed["experiment"]["seeds"], changed["programs"]["cache"], changed["report"]["groups"] = 1, "", 1
    del changed["evr"]["max_passes"]  # as if the field were newer than the run
    write_run(file, dataclasses.replace(run, config=changed))
    assert finished_runs(tmp_path, experiment)["calm"].keys() == {0}
    before = file.read_bytes()
    changed["evr"]["gamma"] = 0.25
    write_run(file, dataclasses.replace(run, config=changed))
    with pytest.raises(UserError, match=r"seed_0.jsonl was .* of arm calm: evr.gamma was 0.25, now 0.0; give another"):
        finished_runs(tmp_path, experiment)
    write_run(file, dataclasses.replace(run, model="0123456789abcdef"))
    with pytest.raises(UserError, match="was made with other files in model.path = 'medvr_jax/assets/tiny'"):
        finished_runs(tmp_path, experiment)
    for damage in (b"", before.splitlines(keepends=True)[0], before[: len(before) // 2], b'{"arm": "calm"}\n{}\n{}\n'):
        file.write_bytes(damage)
        with pytest.raises(UserError, match="is not a finished run"):
            finished_runs(tmp_path, experiment)


def test_what_of_a_row_is_kept() -> None:
    row = {"step": 1, "eval/accuracy": 0.5, "base/right_rate": 0.5, "fork/right_rate": 0.5, "audit/purity": 0.5}
    row |= {"reward/total": 1.0, "rollout/entropy": 0.1, "train/kl": 0.1, "time/step": 1.0}
    assert kept(row | {"speed/x": 1.0, "padding/x": 1.0, "time/decode": 1.0, "time/evaluate": 1.0}) == row
