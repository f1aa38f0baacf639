"""MedVR's 7B recipe on its selection: 36,000 questions of OmniMedVQA that the starting policy gets right at times.

A question that it always or never gets right teaches nothing: all trajectories of its group earn the same. Which ones
these are comes from a scoring pass, eight samples of each training question answered by the policy before training:

    python -m medvr_jax.main --config=configs/medvr_qwen2_5_vl_7b.py --mode=evaluate --workdir=runs/scoring \
    --config.model.path=Qwen2.5-VL-7B-Instruct --config.data.manual_dir=downloads --config.evaluate.sets=omnimedvqa \
    --config.evaluate.split=train --config.evaluate.samples=8 --config.evaluate.temperature=1

This recipe then needs the same model and the same folder; `data.filter_file` is the file that the command above leaves.
The paper says that it filtered to 36 thousand questions, not how; thresholds and number are fields. Other questions
of your own are selected likewise: `data.filter_file`, `data.filter_minimum`, `data.filter_maximum` and
`data.train_examples` mean the same with any data.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import medvr_qwen2_5_vl_7b

SCORING_PASS = "runs/scoring/evaluation/8_samples_at_1_split_train/predictions.jsonl"


def get_config(variant: str = "full") -> ConfigDict:
    """The 7B recipe's variant; `model.path` and `data.manual_dir` are the user's to give."""
    config = medvr_qwen2_5_vl_7b.get_config(variant)
    config.data.name = "sets"
    config.data.sets = ("omnimedvqa",)
    config.data.filter_file = SCORING_PASS
    config.data.filter_rule = "strict"  # as the reward judges
    config.data.filter_minimum = 0.0  # never right: out
    config.data.filter_maximum = 1.0  # always right: out
    config.data.train_examples = 36_000
    return config
