"""Which weights an evaluation runs: the newest checkpoint of a run or, where there is none, the model folder itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx

from medvr_jax import assembly
from medvr_jax.configuration import model_folder
from medvr_jax.models.fingerprint import folder_fingerprint
from medvr_jax.training.checkpoints import Checkpoints
from medvr_jax.training.export import restore_latest
from medvr_jax.training.state import make_cast


@dataclasses.dataclass(frozen=True)
class PolicyWeights:
    """Where the weights are.

    Attributes:
        step: of the checkpoint; None for the model folder.
        name: what to call them.
        fingerprint: another one for other weights, tokenizers or image processors.
    """

    step: int | None
    name: str
    fingerprint: str


def find_weights(config: Any, workdir: str | Path) -> PolicyWeights:
    """The weights that `load_weights` is going to read."""
    folder, step = model_folder(config.model.path), _latest_step(config, workdir)
    if step is None:
        return PolicyWeights(None, f"the model folder {config.model.path}", folder_fingerprint(folder))
    checkpoint = Path(workdir) / "checkpoints" / str(step)
    return PolicyWeights(step, f"step {step}", folder_fingerprint(checkpoint) + folder_fingerprint(folder))


def load_weights(parts: assembly.Parts, weights: PolicyWeights, workdir: str | Path) -> nnx.State:
    """The parameters in the sampling layout."""
    cast = make_cast(parts.params, parts.sampling_layout, parts.config.model.compute_dtype)
    return cast(parts.params if weights.step is None else restore_latest(parts, workdir)[0].params)


def _latest_step(config: Any, workdir: str | Path) -> int | None:
    if not any((Path(workdir) / "checkpoints").glob("[0-9]*")):
        return None
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    try:
        return checkpoints.latest()
    finally:
        checkpoints.close()
