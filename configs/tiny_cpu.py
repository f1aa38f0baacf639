"""The quick start: GRPO on the synthetic task with a 0.3 M-parameter Qwen2.5-VL, on two CPU cores.

Variants: `full` (EVR and CCA, the default), `evr`, `cca`, `zoom` (the tool with a conditional reward), `text` (no
tool); after a comma, or alone for `full`, `reward=none|unconditional|conditional|cca` and `gamma=NUMBER`. They share
everything else, the images too.

`window` is another task, with a policy and a tool of its own: lesions whose stripes are too faint for the overview, and
a window that may show them, if it is the right one of six.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, variants

WINDOW: dict[str, variants.Row] = {"window": (("image_window_tool",), False, "conditional")}
# The system prompts of the warm-up.
SYSTEMS = {"text": "Answer at once.", "window": "Change the contrast, then answer."}


def get_config(variant: str = "full") -> ConfigDict:
    """The recipe of one variant."""
    config = base.get_config()
    row = variants.apply_medvr(config, variant, WINDOW)
    config.steps = 60
    config.checkpoint_every = 20
    config.evaluate_every = 10

    config.model.path = "medvr_jax/assets/tiny"  # found from any folder: see configuration.model_folder
    config.model.freeze_vision_tower = True
    config.mesh.host_devices = 2

    config.data.prompts_per_step = 16
    config.data.test_examples = 512
    config.data.evaluation_batch = 64

    config.prompt.system = SYSTEMS.get(row, "Zoom in, then answer.")
    variants.tiny_prompts(config)

    config.rollout.trajectories = 16
    config.rollout.response_length = 112
    variants.tiny_looks(config)

    config.grpo.clip_low, config.grpo.clip_high = 0.2, 0.28
    config.grpo.kl_weight = 0.05
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "cosine"  # the last updates are small: the policy settles
    if row == "window":
        _window(config)
    return config


def _window(config: ConfigDict) -> None:
    """There are six windows where there are 36 boxes: fewer steps on fewer images teach them."""
    variants.faint_lesions(config)
    config.model.path = "medvr_jax/assets/tiny_window"
    config.steps = 20
    config.evaluate_every = 5
    config.data.prompts_per_step = 8
    config.data.test_examples = 256
