"""MedVR's recipe for Qwen2.5-VL-3B on 16 small chips: 32 prompts x 16 trajectories per update, EVR and CCA.

As the 7B recipe, with its variants; that one sees as many questions in fewer and larger updates, with larger images and
longer trajectories. Model (`--config.model.path=Qwen2.5-VL-3B-Instruct`) and data are given as there.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import medvr_qwen2_5_vl_7b


def get_config(variant: str = "full") -> ConfigDict:
    """The 7B recipe's variant for this model."""
    config = medvr_qwen2_5_vl_7b.get_config(variant)
    config.steps = 512
    config.checkpoint_every = 32
    config.evaluate_every = 64

    config.model.architecture = "qwen2.5-vl-3b"
    config.mesh.fsdp = 8
    config.mesh.tensor = 2  # the model has two key/value heads

    config.data.prompts_per_step = 32
    config.data.evaluation_batch = 128

    config.grpo.micro_batch_groups = 8

    config.prompt.bucket = 1536
    config.prompt.patches = 2048
    config.prompt.max_pixels = 2048 * 14 * 14  # 512 visual tokens

    config.rollout.response_length = 2048
    config.rollout.observation_length = 384
    config.rollout.crop_patches = 1024
    config.rollout.crop_max_pixels = 1024 * 14 * 14  # 256 visual tokens
    return config
