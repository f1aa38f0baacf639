"""MedVR's recipe for Qwen2.5-VL-32B on 64 chips of v5p: 256 prompts x 16 trajectories per update, EVR and CCA.

As the 7B recipe; only the layout and how much is computed at a time are others, which changes no result. Give the model
and the data on the command line:

    --config.model.path=Qwen2.5-VL-32B-Instruct --config.data.train_file=train.jsonl \
    --config.data.test_file=test.jsonl --config.data.image_folder=images

Variants: `full` (the default), the rows of the paper's ablation `text`, `zoom`, `evr`, `cca`, and its other comparisons
after a comma or alone: `reward=none|unconditional|conditional|cca` and `gamma=NUMBER`; see configs/variants.py.

--mode=plan needs none of these: `model.architecture` has the shapes of Qwen2.5-VL-32B.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import medvr_qwen2_5_vl_7b


def get_config(variant: str = "full") -> ConfigDict:
    """The recipe of one variant; `model.path` and the files of `data` are the user's to give."""
    config = medvr_qwen2_5_vl_7b.get_config(variant)
    config.model.architecture = "qwen2.5-vl-32b"
    config.mesh.tensor = 8  # as many as there are key/value heads
    config.rollout.groups_at_once = 32
    return config
