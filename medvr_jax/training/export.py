"""A Hugging Face folder of the trained policy, and `--mode=export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from medvr_jax import assembly
from medvr_jax.configuration import model_folder
from medvr_jax.errors import UserError
from medvr_jax.models.model_files import stored_dtypes
from medvr_jax.models.weights import save_backbone
from medvr_jax.training.checkpoints import Checkpoints
from medvr_jax.training.state import TrainState
from medvr_jax.training.trainer import make_train_state

# What a folder holds beside configuration and weights: tokenizer, image processor, chat template.
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "generation_config.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def restore_latest(parts: assembly.Parts, workdir: str | Path) -> tuple[TrainState, int]:
    """The state of the newest checkpoint and its step; UserError when the run has none."""
    checkpoints = Checkpoints(workdir, parts.config.keep_checkpoints)
    try:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"--workdir: {workdir} holds no checkpoint yet; train there first")
        state, _ = checkpoints.restore(step, make_train_state(parts)[0])
    finally:  # its threads must not outlive the error
        checkpoints.close()
    return state, step


def export_policy(parts: assembly.Parts, params: nnx.State, folder: str | Path) -> Path:
    """Writes the policy's folder: weights and config.json from `params`, the rest from the model it started as.

    Everything appears in one rename, so that a folder that is there is whole. Call it on all processes.
    """
    folder, source = Path(folder), model_folder(parts.config.model.path)
    companions = [source / name for name in COMPANIONS if (source / name).is_file()]
    save_backbone(folder, parts.backbone, params, _export_dtypes(parts), companions)
    return folder


def _export_dtypes(parts: assembly.Parts) -> jnp.dtype | dict[str, np.dtype]:
    """One dtype for all tensors, or that which each has in the model's folder."""
    name = parts.config.model.export_dtype
    return stored_dtypes(model_folder(parts.config.model.path)) if name == "source" else jnp.dtype(name)


def export(config: Any, workdir: str | Path) -> None:
    """`--mode=export`: the newest checkpoint to WORKDIR/export."""
    parts = assembly.assemble(config, splits=())
    state, step = restore_latest(parts, workdir)
    folder = export_policy(parts, state.params, Path(workdir) / "export")
    print(f"exported step {step} to {folder}")
