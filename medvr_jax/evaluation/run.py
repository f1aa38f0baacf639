"""`--mode=evaluate`: the newest checkpoint on the held-out questions, into WORKDIR/evaluation/."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from medvr_jax import assembly, distributed
from medvr_jax.evaluation.greedy import Prediction, predict, summarise
from medvr_jax.reports.progress import Progress
from medvr_jax.training.export import restore_latest
from medvr_jax.training.state import make_cast

_ROWS = {
    "examples": "questions",
    "accuracy": "accuracy",
    "hit_rate": "zoom hits the true box",
    "mean_iou": "mean IoU with the true box",
    "tool_rate": "answers that used the tool",
    "format_rate": "well-formed trajectories",
    "sampled_tokens": "sampled tokens per answer",
}


def evaluate(config: Any, workdir: str | Path) -> None:
    """Writes results.json, predictions.jsonl and table.md."""
    parts = assembly.assemble(config, splits=("test",), report_folder=Path(workdir) / "faults")
    state, step = restore_latest(parts, workdir)
    params = make_cast(parts.params, parts.sampling_layout, config.model.compute_dtype)(state.params)
    examples = parts.source.test(config.data.test_examples)
    sizes = assembly.survey_prompts(parts, training=False)
    engine = parts.engine(assembly.greedy_rollout(config, parts.backbone, sizes))
    with Progress(len(examples), 0, "evaluate") as progress:
        rows = parts.rows(config.data.evaluation_batch)
        predictions = predict(engine, params, parts.encoder, examples, rows, lambda done, _: progress.update(done))
    if not distributed.is_main():
        return
    folder = Path(workdir) / "evaluation"
    write_evaluation(folder, predictions, {"step": step, "data": config.data.name, "decoding": "greedy"})
    print(f"evaluated step {step}: {folder / 'table.md'}")


def write_evaluation(folder: Path, predictions: list[Prediction], provenance: dict[str, Any]) -> None:
    """One JSON line per question, the means as JSON, and the same as a Markdown table."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(predictions)
    lines = [json.dumps(dataclasses.asdict(p), ensure_ascii=False) for p in predictions]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(provenance | summary, indent=2) + "\n", encoding="utf-8")
    rows = [f"| {title} | {_number(summary[name])} |" for name, title in _ROWS.items() if name in summary]
    head = f"Step {provenance['step']}, {provenance['data']} data, {provenance['decoding']} decoding.\n"
    table = "\n".join([head, "| figure | value |", "|---|---|", *rows])
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"
