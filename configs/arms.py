"""The paper's arms on a task made for them: does EVR help, does CCA, and when?

    python -m medvr_jax.main --config=configs/arms.py --workdir=runs/arms --mode=experiment

runs the whole grid, arm by arm and seed by seed; `--config=configs/arms.py:evr` trains one arm as a run of its own.

The policy brings a habit, put in on purpose (configs/tiny_warmup.py:habit): before it zooms it names a place, and three
of four times that is one of three places with a box of their own. Lesions of this task lie in none of these boxes. Only
a trajectory that names the spot searches, and it is unsure where. Who sees no lesion says that nothing is visible,
which is never right, or guesses.

Variants are those of configs/tiny_cpu.py (`text`, `zoom`, `evr`, `cca`, `full`, `reward=…`, `gamma=…`), and any field
may be set behind them: `evr,evr.spending=one_pass`, `cca,rewards.eta=0.4`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, variants
from medvr_jax.configuration import override

# Label=variant, and after an @ its number of seeds where that is not experiment.seeds.
PAPER = (
    "text=text",
    "zoom=zoom",
    "EVR, one pass=evr,evr.spending=one_pass",
    "EVR, repeated=evr",
    "CCA=cca",
    "both=full",
)
FORKS = (
    "random forks, one pass=evr,evr.spending=one_pass,evr.gate=random@5",
    "random forks, repeated=evr,evr.gate=random@5",
    *(f"γ = {gamma}=evr,gamma={gamma}@5" for gamma in ("0", "0.25", "1", "2")),
)


def get_config(variant: str = "full") -> ConfigDict:
    """One arm; its section experiment is the whole grid."""
    config = base.get_config()
    words, fields = variants.split_fields(variant)
    row = variants.apply_medvr(config, words or "full")
    config.steps = 30
    config.checkpoint_every = 30
    config.evaluate_every = 5

    config.model.path = "medvr_jax/assets/tiny_habit"
    config.model.freeze_vision_tower = True

    config.data.prompts_per_step = 8
    config.data.test_examples = 256
    config.data.evaluation_batch = 64
    config.data.synthetic.classes = 3
    config.data.synthetic.nothing_visible = True
    config.data.synthetic.lesions = "outside_habits"

    config.prompt.system = "Answer at once." if row == "text" else "Zoom in, then answer."
    config.prompt.bucket = 96
    config.prompt.patches = 64  # 112 x 112 pixels, as in configs/tiny_cpu.py
    config.prompt.min_pixels = config.prompt.max_pixels = 112 * 112

    config.rollout.max_turns = 2
    config.rollout.response_length = 128
    config.rollout.observation_length = 48
    config.rollout.crop_patches = 64
    config.rollout.crop_min_pixels = config.rollout.crop_max_pixels = 112 * 112

    config.grpo.clip_low, config.grpo.clip_high = 0.2, 0.28
    config.grpo.kl_weight = 0.05
    config.optimizer.learning_rate = 1e-3
    return override(config, fields)
