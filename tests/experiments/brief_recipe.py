"""A recipe whose arms take seconds: answers without a zoom, cut off after a few tokens, learnt at two rates."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import tiny_cpu, variants


def get_config(variant: str = "slow") -> ConfigDict:
    """`slow` or `fast`."""
    word = variants.parse(variant, ("slow", "fast"), {}).word
    config = tiny_cpu.get_config("text")
    config.optimizer.learning_rate = {"slow": 1e-4, "fast": 1e-2}[word]
    config.mesh.host_devices = 1
    config.steps, config.evaluate_every = 2, 1
    config.data.prompts_per_step = 2
    config.data.test_examples = config.data.evaluation_batch = 4
    config.rollout.trajectories = 2
    config.rollout.response_length = 32
    config.rollout.sizes = 1
    config.grpo.kl_weight = 0.0
    config.experiment.arms = ("slow=slow", "fast=fast@3")
    config.experiment.seeds = 2
    config.experiment.pairs = ("fast-slow",)
    config.experiment.figures = ("curves:slow,fast", "optimizer.learning_rate:slow,fast", "entropy:fast")
    return config
