"""A run on one page: `report/summary.md`, and the facts that the report repeats."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medvr_jax.configuration import completed, leaves
from medvr_jax.evaluation.statistics import wilson_interval
from medvr_jax.reports.progress import duration
from medvr_jax.reports.signs import known, signs
from medvr_jax.reports.text import number, percent

Row = Mapping[str, Any]
Fields = Mapping[str, Any]  # of a configuration: dotted name -> value

_LINES = (
    ("held-out accuracy", "eval/accuracy"),
    ("zoom hits the true place", "eval/hit_rate"),
    ("mean IoU with the true box", "eval/mean_iou"),
    ("reward", "reward/total"),
    ("right answers of base trajectories", "base/right_rate"),
    ("right answers of forks", "fork/right_rate"),
    ("purity of right answers by the consensus", "reward/purity"),
    ("consensus elsewhere than the true box", "audit/consensus_elsewhere"),
    ("use of the tool", "rollout/tool_rate"),
    ("valid calls", "rollout/valid_call_rate"),
    ("cut off before an answer", "rollout/truncated_rate"),
    ("sampled tokens of a trajectory", "rollout/sampled_tokens"),
    ("groups that teach nothing", "train/zero_spread_groups"),
    ("entropy", "train/entropy"),
    ("KL to the reference", "train/kl"),
    ("gradient norm", "train/grad_norm"),
    ("sampler drift", "train/sampler_drift"),
)
_SHARES = ("eval/accuracy", "eval/hit_rate")  # shares of eval/examples questions
_WHOLE = ("time/step", "time/evaluate", "time/checkpoint", "time/compile")  # all other seconds are within a step's
_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 32


class Facts(NamedTuple):
    """What a whole run amounts to; None where the run did not record it."""

    steps: int
    seconds: float
    seconds_per_step: float | None
    forks_asked: float
    forks_granted: float
    compilations: int | None
    last_compilation: int | None
    resumed: tuple[int, ...]  # the steps with which a new process went on


def facts(rows: Sequence[Row]) -> Facts:
    """Totals and medians over all rows."""
    times = known(rows, "time/step")
    growth = _compilation_growth(rows)
    return Facts(
        steps=len(times) or len(rows),
        seconds=sum(times) + sum(known(rows, "time/evaluate")),
        seconds_per_step=statistics.median(times) if times else None,
        forks_asked=sum(known(rows, "rollout/forks_asked")),
        forks_granted=sum(known(rows, "rollout/forks_granted")),
        compilations=sum(growth.values()) if growth else None,
        last_compilation=max((step for step, more in growth.items() if more), default=None),
        resumed=tuple(row["step"] for row in rows if row.get("resumed")),
    )


def _compilation_growth(rows: Sequence[Row]) -> dict[int, int]:
    """Step -> compilations since the row before. Rows count those of their process, which begins at 0 on resume."""
    growth, before = {}, 0
    for row in rows:
        count = row.get("compilations")
        if isinstance(count, int):
            # A falling count is a resumed run's too, whose rows did not say so yet.
            growth[row["step"]] = count - (0 if row.get("resumed") or count < before else before)
            before = count
    return growth


def when_compiled(total: Facts) -> str:
    """When XLA compiled last, and which steps are no sign of a shape that is not static."""
    text = f"the last by step {number(total.last_compilation)}"
    if total.resumed:
        text += f"; resumed, and so compiled anew, with step {', '.join(map(number, total.resumed))}"
    return text


def sentence(rows: Sequence[Row]) -> str:
    """The run in one sentence."""
    total = facts(rows)
    text = f"{total.steps:,} update{'' if total.steps == 1 else 's'}"
    return text + (f" in {duration(total.seconds)}." if total.seconds else ".")


def read_fields(workdir: Path) -> dict[str, Any]:
    """The fields of a run's config.json, newer ones with their defaults; empty where there is none to be read."""
    try:
        saved = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(leaves(completed(saved)[0])) if isinstance(saved, dict) else {}


def render(name: str, rows: Sequence[Row], fields: Fields | None = None, folder: str = "") -> str:
    """The summary as Markdown.

    Args:
        fields: of the run's configuration, where it is known.
        folder: of the run, as commands name it.
    """
    fields, worries = fields or {}, signs(rows, fields or {})
    parts = [f"# {name}\n\n{sentence(rows)}", _what_ran(rows, fields), _result(rows)]
    parts.append("## Warnings\n\n" + ("\n".join(f"- {text}" for text in worries) or "None.") if fields else "")
    parts += [_curves(rows), _time(rows), _going_on(rows, fields, folder)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what_ran(rows: Sequence[Row], fields: Fields) -> str:
    lines = []
    if fields.get("trainer") == "grpo":
        f = fields
        tools = ", ".join(f["rollout.tools"]) or "none, text only"
        forks = f"EVR, gamma {number(f['evr.gamma'])}" if f["evr.enabled"] else "no forks"
        data = ", ".join(f["data.sets"]) if f["data.name"] == "sets" else f["data.train_file"] or f["data.name"]
        lines = [
            f"- Model: `{f['model.path']}`, products in {f['model.compute_dtype']}"
            + (", vision tower frozen." if f["model.freeze_vision_tower"] else "."),
            f"- Data: {data}; {f['data.prompts_per_step']} prompts a step, {f['rollout.trajectories']} trajectories "
            f"each of at most {f['rollout.response_length']} tokens and {f['rollout.max_turns']} turns; seed "
            f"{f['seed']}.",
            f"- Method: tools: {tools}; {forks}; tool reward: {f['rewards.tool']}; KL weight "
            f"{number(f['grpo.kl_weight'])}; learning rate {number(f['optimizer.learning_rate'])}, "
            f"{f['optimizer.schedule']}.",
        ]
    devices = dict.fromkeys(row["process/devices"] for row in rows if "process/devices" in row)
    if devices:
        lines.append(f"- Devices: {'; then '.join(devices)}.")
    total = facts(rows)
    if total.forks_asked:
        lines.append(f"- Forks: {number(total.forks_granted)} granted of {number(total.forks_asked)} asked.")
    if total.compilations is not None:
        lines.append(f"- Compilations: {total.compilations}, {when_compiled(total)}.")
    return "## What ran\n\n" + "\n".join(lines) if lines else ""


def _result(rows: Sequence[Row]) -> str:
    questions = next(iter(known(rows, "eval/examples")[::-1]), None)
    lines = ["| figure | first | best | last |", "|---|---:|---:|---:|"]
    for label, key in _LINES:
        values = known(rows, key)
        if values:
            best = number(max(values)) if key.startswith(("eval/", "reward/")) else ""
            first, last = number(values[0]), number(values[-1])
            if questions and key in _SHARES:
                first, last = (
                    f"{text}{_interval(v, questions)}" for text, v in ((first, values[0]), (last, values[-1]))
                )
            lines.append(f"| {label} (`{key}`) | {first} | {best} | {last} |")
    if len(lines) == 2:
        return ""
    note = ""
    if questions:
        note = f"\n\nOf {number(questions)} held-out questions, one greedy answer each; in brackets 95 % (Wilson)."
    return "## Result\n\n" + "\n".join(lines) + note


def _interval(share: float, questions: float) -> str:
    low, high = wilson_interval(round(share * questions), int(questions))
    return f" [{low:.3f}, {high:.3f}]"


def sparkline(values: Sequence[float]) -> str:
    """The values as a row of blocks, the smallest lowest; of long rows the means of neighbours."""
    size = -(-len(values) // _WIDTH)
    line = [statistics.fmean(values[start : start + size]) for start in range(0, len(values), size)]
    low, span = min(line), (max(line) - min(line)) or 1.0
    return "".join(_BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1))] for value in line)


def _curves(rows: Sequence[Row]) -> str:
    lines = [(key, values) for _, key in _LINES if len(values := known(rows, key)) > 1]
    width = max((len(key) for key, _ in lines), default=0)
    drawn = [f"{key:<{width}}  {number(v[0]):>8}  {sparkline(v):<{_WIDTH}}  {number(v[-1])}" for key, v in lines]
    return "## Curves\n\nFrom the lowest to the highest of each.\n\n```\n" + "\n".join(drawn) + "\n```" if drawn else ""


def _time(rows: Sequence[Row]) -> str:
    """Seconds by phase, the largest first; those of a step as they were measured, the rest of it by itself."""
    keys = {key for row in rows for key in row if key.startswith("time/")}
    spent = {key.removeprefix("time/"): sum(known(rows, key)) for key in keys}
    steps = spent.pop("step", None)
    if steps is None:
        return ""
    within = sum(seconds for name, seconds in spent.items() if f"time/{name}" not in _WHOLE)
    spent["the rest of a step"] = max(steps - within, 0.0)
    spent["compiling, or reading what is compiled"] = spent.pop("compile", 0.0)
    whole = sum(spent.values()) or 1.0
    lines = [
        f"| {name.replace('_', ' ')} | {number(seconds)} | {percent(seconds / whole)} |"
        for name, seconds in sorted(spent.items(), key=lambda item: -item[1])
        if seconds / whole >= 0.005
    ]
    median = number(facts(rows).seconds_per_step)
    head = f"## Where the time went\n\n- Median time of a step: {median} s.\n\n"
    return head + "\n".join(["| phase | seconds | share |", "|---|---:|---:|", *lines])


def _going_on(rows: Sequence[Row], fields: Fields, folder: str) -> str:
    if not fields or not folder:
        return ""
    lines = [f"python -m medvr_jax.main --workdir={folder} --mode={mode}" for mode in ("evaluate", "export", "report")]
    if rows[-1]["step"] < fields["steps"]:
        more = "The run is not finished: the command that began it goes on from the newest checkpoint."
    elif fields["optimizer.schedule"] == "constant":
        more = f"The command that began it goes on with more steps, e.g. `--config.steps={2 * fields['steps']}`."
    else:
        more = f"More steps need another folder: `optimizer.schedule` is {fields['optimizer.schedule']}, and has ended."
    return "## How to go on\n\n```bash\n" + "\n".join(lines) + f"\n```\n\n{more}"
