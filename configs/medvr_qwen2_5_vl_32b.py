"""MedVR's recipe for Qwen2.5-VL-32B on 64 chips of v5p: 256 prompts x 16 trajectories per update, EVR and CCA.

As the 7B recipe, with its variants; only the layout and how much is computed at a time are others, which changes no
result. Model (`--config.model.path=Qwen2.5-VL-32B-Instruct`) and data are given as there.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import medvr_qwen2_5_vl_7b


def get_config(variant: str = "full") -> ConfigDict:
    """The 7B recipe's variant for this model."""
    config = medvr_qwen2_5_vl_7b.get_config(variant)
    config.model.architecture = "qwen2.5-vl-32b"
    config.mesh.tensor = 8  # as many as there are key/value heads
    config.rollout.groups_at_once = 32
    return config
