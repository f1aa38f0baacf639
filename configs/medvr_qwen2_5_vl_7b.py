"""MedVR's recipe for Qwen2.5-VL-7B: 256 prompts x 16 trajectories per update, EVR and CCA, 64 updates.

What the paper does not state follows DeepEyes, whose reward MedVR repeats, or is our choice: the README lists the open
points with their defaults. Give the model and the data on the command line:

    --config.model.path=Qwen2.5-VL-7B-Instruct --config.data.train_file=train.jsonl \
    --config.data.test_file=test.jsonl --config.data.image_folder=images

Variants: `full` (the default), the rows of the paper's ablation `text`, `zoom`, `evr`, `cca`, and its other comparisons
after a comma or alone: `reward=none|unconditional|conditional|cca` and `gamma=NUMBER`; see configs/variants.py.

--mode=plan needs none of these: `model.architecture` has the shapes of Qwen2.5-VL-7B.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, variants


def get_config(variant: str = "full") -> ConfigDict:
    """The recipe of one variant; `model.path` and the files of `data` are the user's to give."""
    config = base.get_config()
    variants.apply_medvr(config, variant)
    config.steps = 64
    config.checkpoint_every = 8
    config.evaluate_every = 16

    config.model.architecture = "qwen2.5-vl-7b"
    config.model.compute_dtype = "bfloat16"
    config.model.remat = "block"
    config.model.freeze_vision_tower = True  # the paper does not say; the update then needs no pixels
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.mesh.tensor = 4  # as many as there are key/value heads

    config.data.name = "jsonl"
    config.data.prompts_per_step = 256
    config.data.test_examples = 1024
    config.data.evaluation_batch = 256

    config.prompt.bucket = 2048
    config.prompt.patches = 4096
    config.prompt.max_pixels = 4096 * 14 * 14  # 1,024 visual tokens

    config.rollout.groups_at_once = 16
    config.rollout.trajectories = 16  # 8 base, 8 for forks
    config.rollout.max_turns = 5
    config.rollout.response_length = 4096
    config.rollout.observation_length = 640
    config.rollout.crop_patches = 2048
    config.rollout.crop_max_pixels = 2048 * 14 * 14  # 512 visual tokens

    config.grpo.kl_weight = 1e-3  # the paper has a KL term and does not give its weight
    config.grpo.micro_batch_groups = 16
    config.optimizer.learning_rate = 1e-6
    return config
