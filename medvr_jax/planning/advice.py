"""Which fields to change when a configuration does not fit: tried one after the other by arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from medvr_jax import assembly, configuration
from medvr_jax.errors import UserError

MOST_CHANGES = 4


@dataclasses.dataclass(frozen=True)
class Advice:
    """Fields and values that fit together with the rest, and the bytes of the largest program then; `fits` is false
    when nothing that was tried does, and the changes are then those that help most."""

    changes: dict[str, Any]
    bytes: float
    fits: bool

    def text(self) -> str:
        """The changes as flags."""
        return " ".join(f"--config.{name}={_flag(value)}" for name, value in self.changes.items())


def _flag(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def advise(config: FrozenConfigDict, devices: int, needed: Callable[[FrozenConfigDict], float], limit: float) -> Advice:
    """Changes that bring `needed` (bytes of a device for a configuration) below `limit`.

    Fields that change no result come first; only where they do not help enough, those that change the training do.
    """
    best, changes = needed(config), {}
    current = config
    for candidates in (_same_results, _other_results):
        while len(changes) < MOST_CHANGES and best > limit:
            tried = []
            for name, value in candidates(current, devices):
                try:
                    other = configuration.validate(_changed(current, name, value), files=False)
                    tried.append((needed(other), name, value, other))
                except UserError:  # the mesh or the batches do not divide
                    continue
            better = [found for found in tried if found[0] < 0.98 * best]
            if not better:
                break
            # The first that fits, in the order of the list, else the one that helps most.
            fitting = [found for found in better if found[0] <= limit]
            best, name, value, current = fitting[0] if fitting else min(better, key=lambda found: found[0])
            changes[name] = value
    return Advice(changes, best, best <= limit)


def _changed(config: FrozenConfigDict, name: str, value: Any) -> ConfigDict:
    copy = ConfigDict(config.to_dict(), type_safe=False)
    section, _, field = name.partition(".")
    copy[section][field] = value
    return copy


def _same_results(config: FrozenConfigDict, devices: int) -> Iterator[tuple[str, Any]]:
    """Fields that change memory and speed alone."""
    if config.model.remat == "none":
        yield "model.remat", "block"
    for images in (8, 4, 2, 1):
        if images < (config.model.images_at_once or config.rollout.trajectories):
            yield "model.images_at_once", images
    micro = config.grpo.micro_batch_groups or config.data.prompts_per_step
    for size in range(micro - 1, 0, -1):
        if config.data.prompts_per_step % size == 0:
            yield "grpo.micro_batch_groups", size
    for size in range(assembly.groups_at_once(config) - 1, 0, -1):
        if config.data.prompts_per_step % size == 0:
            yield "rollout.groups_at_once", size
    for axis in ("fsdp", "tensor"):
        size = 2 * config.mesh[axis]
        while 0 < size <= devices:
            yield f"mesh.{axis}", size
            size *= 2


def _other_results(config: FrozenConfigDict, devices: int) -> Iterator[tuple[str, Any]]:
    """Fields that change what is trained, the mildest first."""
    if not config.model.freeze_vision_tower:
        yield "model.freeze_vision_tower", True
    if config.grpo.kl_weight:
        yield "grpo.kl_weight", 0.0
    if config.data.prompts_per_step % 2 == 0:
        yield "data.prompts_per_step", config.data.prompts_per_step // 2
    length = config.rollout.response_length // 2
    if length > config.rollout.observation_length:
        yield "rollout.response_length", length
    if config.rollout.trajectories % 4 == 0:
        yield "rollout.trajectories", config.rollout.trajectories // 2
