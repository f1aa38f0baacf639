"""Small runs of the real recipe with the tiny checkpoint, for tests of whole rollouts and of training."""

from __future__ import annotations

from typing import Any

from medvr_jax.configuration import load_config

SMALL = {
    "mesh.host_devices": "1",
    "data.prompts_per_step": "4",
    "rollout.trajectories": "8",
    "rollout.sizes": "1",  # programs that no step meets need not be compiled
    "prompt.sizes": "1",
    "data.test_examples": "8",
    "data.evaluation_batch": "8",
}


def small_config(variant: str = "full", **overrides: object) -> Any:
    """The quick start's recipe with few prompts; overrides as `section__field=value`."""
    changed = {name.replace("__", "."): str(value) for name, value in overrides.items()}
    return load_config(f"configs/tiny_cpu.py:{variant}", list((SMALL | changed).items()))
