"""The page of a run: what ran, the result with its uncertainty, where the time went, and what to worry about."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from medvr_jax.configuration import leaves, load_config
from medvr_jax.evaluation.statistics import wilson_interval
from medvr_jax.reports import summary
from medvr_jax.reports.page import write_report
from medvr_jax.reports.signs import signs
from tests.reports.made_run import make_run

FIELDS = dict(leaves(load_config("configs/tiny_cpu.py", [], files=False)))


def rows(**curves: tuple[float | None, float | None]) -> list[dict[str, Any]]:
    """Eight rows of a sound run; each curve given goes from its first value to its second in the middle."""
    sound = {
        "rollout/tool_rate": (1.0, 1.0),
        "train/zero_spread_groups": (2, 4),
        "rollout/truncated_rate": (0.0, 0.05),
        "rollout/format_rate": (0.99, 0.99),
        "reward/total": (0.8, 1.8),
        "eval/accuracy": (0.5, 0.9),
        "train/sampler_drift": (1e-6, 2e-6),
        "train/entropy": (0.08, 0.03),
    }
    given = sound | {name.replace("__", "/"): pair for name, pair in curves.items()}
    return [{"step": step} | {name: pair[step >= 4] for name, pair in given.items()} for step in range(8)]


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        ({}, None),
        ({"rollout__tool_rate": (0.9, 0.05)}, "The use of the tool collapsed: 90\u00a0% of the first trajectories, 5"),
        ({"rollout__tool_rate": (0.0, 0.0)}, "The use of the tool never began"),
        ({"train__zero_spread_groups": (2, 12)}, "Of the last groups 75\u00a0% taught nothing"),
        ({"rollout__truncated_rate": (0.0, 0.4)}, "Of the last trajectories 40\u00a0% were cut off before an answer"),
        ({"rollout__format_rate": (0.99, 0.7)}, "Of the last trajectories 70\u00a0% were well formed"),
        ({"eval__accuracy": (0.5, 0.4)}, "The reward rose from 0.8 to 1.8 while the accuracy fell from 0.5 to 0.4"),
        ({"train__sampler_drift": (1e-6, 0.01)}, "Sampler and scorer differ by up to 0.01 in a log-probability"),
        ({"train__entropy": (0.5, 0.01)}, "The entropy fell from 0.5 to 0.01 nats"),
        ({"train__grad_norm": (0.5, None)}, "Not finite at some step: `train/grad_norm`."),
    ],
)
def test_signs(curves: dict[str, tuple[float, float]], said: str | None) -> None:
    found = signs(rows(**curves), FIELDS)
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)
    assert ("## Warnings\n\nNone." in summary.render("run", rows(**curves), FIELDS)) == (said is None)


def test_signs_know_what_the_run_could_do() -> None:
    """No tool, nothing to use; bfloat16 drifts further; without a configuration nothing is compared with it."""
    unused = rows(rollout__tool_rate=(0.0, 0.0))
    assert signs(unused, FIELDS) and not signs(unused, FIELDS | {"rollout.tools": ()}) and not signs(unused, {})
    drifting = rows(train__sampler_drift=(0.02, 0.02))
    assert signs(drifting, FIELDS) and not signs(drifting, FIELDS | {"model.compute_dtype": "bfloat16"})


@pytest.mark.parametrize(("share", "number"), [(0.5, 512), (0.92, 512), (0.0, 10), (1.0, 10), (0.25, 4)])
def test_wilson_solves_its_equation(share: float, number: int) -> None:
    """The ends are the shares from which this one is z standard errors away."""
    for end in wilson_interval(share * number, number):
        assert math.isclose((share - end) ** 2, 1.959964**2 * end * (1 - end) / number, rel_tol=1e-6, abs_tol=1e-12)
    low, high = wilson_interval(share * number, number)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1


def test_sparkline() -> None:
    assert summary.sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert summary.sparkline([2.5, 2.5]) == "▁▁"
    assert (
        summary.sparkline([float(i) for i in range(3200)])[::31] == "▁█" and len(summary.sparkline(range(3200))) == 32
    )


def test_the_page_of_a_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "made", steps=12, groups=2, size=4)
    write_report(folder)
    assert "## Warnings" not in (folder / "report/summary.md").read_text("utf-8")  # limits depend on the configuration
    config = load_config("configs/tiny_cpu.py", [("steps", "12")], files=False).to_dict()
    del config["report"]["wandb"]  # of a run that is older than this field
    (folder / "config.json").write_text(json.dumps(config))
    write_report(folder)
    text = (folder / "report/summary.md").read_text("utf-8")
    sections = [line for line in text.splitlines() if line.startswith("#")]
    assert sections == ["# made", *(f"## {name}" for name in NAMES)]
    assert "16 prompts a step, 16 trajectories each" in text and "tools: image_zoom_in_tool; EVR, gamma 0.5" in text
    accuracy = 0.25 + 0.75 * last_skill(folder)
    low, high = wilson_interval(round(512 * accuracy), 512)
    assert f"| {accuracy:.3g} [{low:.3f}, {high:.3f}] |" in text
    assert f"--workdir={folder} --mode=evaluate" in text and "`optimizer.schedule` is cosine, and has ended" in text
    shares = [line.rsplit("|", 2)[1] for line in text.split("| phase |")[1].splitlines()[2:] if line.startswith("|")]
    assert 97 <= sum(int(share.strip().removesuffix("\u00a0%")) for share in shares) <= 103


NAMES = ("What ran", "Result", "Warnings", "Curves", "Where the time went", "How to go on")


def last_skill(folder: Path) -> float:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["eval/hit_rate"]
