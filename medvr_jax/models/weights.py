"""Parameters from and to Hugging Face folders (safetensors), or freshly made.

The names written are those of the hub's Qwen2.5-VL folders; the newer `model.language_model.…` names are read too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from medvr_jax.models.backbone import Backbone
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.weights_in import abstract_backbone, load_backbone
from medvr_jax.models.weights_out import save_backbone

__all__ = ["load_backbone", "random_backbone", "save_backbone"]


def random_backbone(
    config: BackboneConfig, seed: int, dtype: jnp.dtype = jnp.float32, compute_dtype: jnp.dtype | None = None
) -> tuple[nnx.GraphDef, nnx.State]:
    """A freshly initialised backbone; `compute_dtype` defaults to the parameters' dtype."""
    fixed = {"dtype": dtype, "compute_dtype": compute_dtype or dtype}

    def initialise(key: jax.Array) -> nnx.State:
        return nnx.state(Backbone(config, key=key, **fixed))

    return abstract_backbone(config, **fixed)[0], jax.jit(initialise)(jax.random.key(seed))
