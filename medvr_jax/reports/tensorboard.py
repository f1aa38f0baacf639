"""`WORKDIR/tensorboard/`: curves, pictures and texts for `tensorboard --logdir=WORKDIR/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from medvr_jax.reports.shown import ShownGroup
from medvr_jax.reports.sinks import scalars


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: Path, resume_step: int, before: Sequence[Mapping[str, Any]]) -> None:
        """
        Args:
            resume_step: the next step to be done; readers hide what older files hold of this and later steps.
            before: the rows before it, written where there are no older files.
        """
        new = not any(folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(folder), purge_step=resume_step, filename_suffix=f".{resume_step:06d}")
        for row in before if new else ():
            self.write(row)

    def show(self, step: int, groups: Sequence[ShownGroup]) -> None:
        for group in groups:
            self._writer.add_image(f"rollouts/{group.name}", np.asarray(group.picture), step, dataformats="HWC")
            text = "\n\n---\n\n".join((group.caption, *group.texts))
            self._writer.add_text(f"rollouts/{group.name}", text, step)

    def write(self, row: Mapping[str, Any]) -> None:
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()
