"""Small runs of the real recipe with the tiny checkpoint, for tests of whole rollouts and of training."""

from __future__ import annotations

from typing import Any

import pytest

from medvr_jax.configuration import load_config
from medvr_jax.rollout import settings as rollout_settings
from medvr_jax.training import update

SMALL = {
    "mesh.host_devices": "1",
    "data.prompts_per_step": "4",
    "rollout.trajectories": "8",
    "data.test_examples": "8",
    "data.evaluation_batch": "8",
}


def small_config(variant: str = "full", **overrides: object) -> Any:
    """The quick start's recipe with few prompts; overrides as `section__field=value`."""
    changed = {name.replace("__", "."): str(value) for name, value in overrides.items()}
    return load_config(f"configs/tiny_cpu.py:{variant}", list((SMALL | changed).items()))


def largest_sizes_alone(patch: pytest.MonkeyPatch) -> None:
    """Updates and crops of runs in this process come in one size: few programs are compiled that no step meets."""
    patch.setattr(update, "FILLS", (1.0,))
    patch.setattr(rollout_settings, "CROP_COUNTS", 1)
