"""Weights & Biases: the same figures, pictures and texts, sent to its service or kept in `WORKDIR/wandb/`.

A resumed run goes on with the same W&B run, whose steps cannot be taken back: those that were sent before are not sent
again. They are the same, as a resumed run repeats what it does; only seconds differ.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("WANDB_SILENT", "true")  # it would write between the lines of the run's own progress
import wandb  # noqa: E402

from medvr_jax.reports.metrics import json_line, replace_file  # noqa: E402
from medvr_jax.reports.shown import ShownGroup  # noqa: E402
from medvr_jax.reports.sinks import scalars  # noqa: E402

_PATIENCE = 30  # seconds for the service to answer at the start, and to take the rest at the end


class WeightsAndBiases:
    """One W&B run."""

    def __init__(self, config: Any, workdir: Path, resume_step: int, before: Sequence[Mapping[str, Any]]) -> None:
        """
        Args:
            resume_step: the next step to be done; with 0 a new W&B run begins.
            before: the rows before it; those that were not sent yet are.
        """
        self._note = workdir / "wandb" / "medvr_jax.json"
        self._id, self._sent = secrets.token_hex(4), -1
        if resume_step and self._note.is_file():
            noted = json.loads(self._note.read_text(encoding="utf-8"))
            self._id, self._sent = noted["id"], noted["sent"]
        self._note.parent.mkdir(parents=True, exist_ok=True)
        report, offline = config.report, config.report.wandb == "offline"
        self._run = wandb.init(
            project=report.wandb_project,
            entity=report.wandb_entity or None,
            name=report.wandb_name or workdir.resolve().name,
            id=self._id,
            resume=None if offline else "allow",
            mode=report.wandb,
            dir=str(workdir),
            config=config.to_dict(),
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                init_timeout=_PATIENCE,
                login_timeout=_PATIENCE,
                finish_timeout=_PATIENCE,
            ),
        )
        if self._run.url:
            print(f"Weights & Biases: {self._run.url}", flush=True)
        for row in before:
            self.write(row)

    def show(self, step: int, groups: Sequence[ShownGroup]) -> None:
        if step <= self._sent:
            return
        pictures = {f"rollouts/{g.name}": wandb.Image(g.picture, caption=g.caption) for g in groups}
        rows = [[g.name, g.caption, text] for g in groups for text in g.texts]
        table = wandb.Table(columns=["group", "question", "trajectory"], data=rows)
        self._run.log(pictures | {"rollouts/texts": table}, step=step, commit=False)

    def write(self, row: Mapping[str, Any]) -> None:
        if row["step"] <= self._sent:
            return
        self._run.log(scalars(row), step=row["step"], commit=True)
        self._sent = row["step"]
        replace_file(self._note, json_line({"id": self._id, "sent": self._sent}))

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
