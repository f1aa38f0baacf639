"""The paper's arms on a task made for them: does EVR help, does CCA, and when?

    python -m medvr_jax.main --config=configs/arms.py --workdir=runs/arms --mode=experiment

runs the whole grid, arm by arm and seed by seed; `--config=configs/arms.py:evr` trains one arm as a run of its own.

The policy brings a habit, put in on purpose (configs/tiny_warmup.py:habit): before it zooms it names a place, and nine
times in ten that is one of three places with a box of their own. Lesions of this task lie in none of these boxes. Only
a trajectory that names the spot searches, and it is unsure where. Who sees no lesion says that nothing is visible,
which is never right, or guesses.

Variants are those of the paper in configs/tiny_cpu.py (`text`, `zoom`, `evr`, `cca`, `full`, `reward=…`, `gamma=…`);
any field may be set behind them: `evr,evr.spending=one_pass`, `cca,rewards.eta=0.4`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, variants
from medvr_jax.configuration import override

# NAME=VARIANT, with @SEEDS where that is not experiment.seeds.
PAPER = ("text=text", "zoom=zoom@20", "evr_one_pass=evr,evr.spending=one_pass", "evr=evr@20", "cca=cca", "both=full")
FORKS = (
    "random_one_pass=evr,evr.spending=one_pass,evr.gate=random@5",
    "random=evr,evr.gate=random@5",
    "uncertain=evr,evr.position=uncertain@5",
    "gamma_0=evr,gamma=0@5",
    "gamma_0.25=evr,gamma=0.25@5",
    "gamma_1=evr,gamma=1@5",
    "gamma_2=evr,gamma=2@5",
)
REWARDS = ("unrewarded=zoom,reward=none", "unconditional=zoom,reward=unconditional")
SIZES = (
    "both_4=full,rollout.trajectories=4@5",
    "both_8=full,rollout.trajectories=8@5",
    "both_32=full,rollout.trajectories=32@5",
)
# What might make CCA safe: a vote without habits (who looks where the right ones of other questions look, too, has
# none), and a smaller eta, with which boxes one lattice step apart agree.
SAFER = (
    "cca_votes=cca,rewards.maximum_popularity=0.1@20",
    "both_votes=full,rewards.maximum_popularity=0.1",
    "cca_eta_.4=cca,rewards.eta=0.4@5",
)
# Lesions anywhere: the habit's boxes hit some of them, and consensus begins with more hits among right answers.
ANYWHERE = tuple(
    f"anywhere_{name}={variant},data.synthetic.lesions=anywhere@5"
    for name, variant in (("zoom", "zoom"), ("cca", "cca"))
)
# A strong prior: nearly three of four training questions have the same answer, held-out ones one of three. Luck pays.
PRIOR = tuple(
    f"prior_{name}={variant},data.synthetic.prior=0.6,steps=36"
    for name, variant in (("zoom", "zoom"), ("cca", "cca"), ("cca_votes", "cca,rewards.maximum_popularity=0.1"))
)


def get_config(variant: str = "full") -> ConfigDict:
    """One arm; its section experiment is the whole grid."""
    config = base.get_config()
    words, fields = variants.split_fields(variant)
    row = variants.apply_medvr(config, words or "full")
    config.steps = 24
    config.checkpoint_every = 24
    config.evaluate_every = 4

    config.model.path = "medvr_jax/assets/tiny_habit"
    config.model.freeze_vision_tower = True

    config.data.prompts_per_step = 8
    config.data.test_examples = 128
    config.data.evaluation_batch = 64
    config.data.synthetic.classes = 3
    config.data.synthetic.nothing_visible = True
    config.data.synthetic.lesions = "outside_habits"

    config.prompt.system = "Answer at once." if row == "text" else "Zoom in, then answer."
    variants.tiny_prompts(config)
    config.rollout.response_length = 128
    variants.tiny_looks(config)

    config.grpo.clip_low, config.grpo.clip_high = 0.2, 0.28
    config.optimizer.learning_rate = 5e-4
    _grid(config)
    return override(config, fields)


def _grid(config: ConfigDict) -> None:
    """All arms, what is compared and what is drawn."""
    experiment = config.experiment
    experiment.arms = PAPER + SAFER + FORKS + REWARDS + SIZES + PRIOR + ANYWHERE
    experiment.baseline = "zoom"
    experiment.pairs = (
        "evr-evr_one_pass", "evr-random", "evr_one_pass-random_one_pass", "evr-uncertain", "both-evr", "both-cca",
        "cca-unconditional", "unconditional-unrewarded", "zoom-unconditional",
        "cca_votes-cca", "both_votes-both", "both_votes-evr", "cca_eta_.4-cca",
        "anywhere_cca-anywhere_zoom", "prior_cca-prior_zoom", "prior_cca_votes-prior_zoom", "prior_cca_votes-prior_cca",
    )  # fmt: skip
    experiment.figures = (
        "The paper's arms=curves:text,zoom,evr,cca,both",
        "Spending the forks=curves:zoom,evr_one_pass,evr,random_one_pass,random",
        "Reward designs=curves:unrewarded,unconditional,zoom,cca",
        "Zooms that hit=eval/hit_rate:zoom,evr,cca,both",
        "A consensus without habits=curves:zoom,evr,cca,cca_votes,both,both_votes",
        "A strong prior=curves:prior_zoom,prior_cca,prior_cca_votes",
        "Purity in training, base trajectories=base/purity:zoom,evr,cca,both",
        "evr.gamma:gamma_0,gamma_0.25,evr,gamma_1,gamma_2",
        "rollout.trajectories:both_4,both_8,both,both_32",
        "Area by arm=area:text,zoom,evr_one_pass,evr,cca,both",
        "entropy:zoom,evr,cca,both",
    )
