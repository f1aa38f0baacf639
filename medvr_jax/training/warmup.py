"""The supervised warm-up that makes a tiny checkpoint; see configs/tiny_warmup.py.

It stands in for pre-training, and is no part of the method: where a lesion is, or which window shows it, is never a
target.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medvr_jax.models.weights import save_backbone
from medvr_jax.training.tiny_folder import HABIT_SPEECH, WINDOW_SPEECH, ZOOM_SPEECH, write_tiny_folder
from medvr_jax.training.warmup_habit import HabitTrainer
from medvr_jax.training.warmup_window import WindowTrainer
from medvr_jax.training.warmup_zoom import ZoomTrainer

TRAINERS = {
    "zoom": (ZOOM_SPEECH, ZoomTrainer),
    "window": (WINDOW_SPEECH, WindowTrainer),
    "habit": (HABIT_SPEECH, HabitTrainer),
}


def run_warmup(config: Any, workdir: str | Path) -> None:
    """Trains the policy that warmup.policy names, from random parameters, and writes WORKDIR/export, a whole Hugging
    Face folder."""
    settings, folder = config.warmup, Path(workdir) / "export"
    speech, trainer = TRAINERS[settings.policy]
    backbone_config = write_tiny_folder(
        folder,
        speech,
        vocabulary=settings.vocabulary,
        initializer_range=settings.initializer_range,
        text=dict(settings.text),
        vision=dict(settings.vision),
    )
    params = trainer(config, folder, backbone_config).run()
    save_backbone(folder, backbone_config, params, settings.dtype)
    print(f"warm-up done: {folder}", flush=True)
