"""A step's figures: counts by brute force, operations against XLA's count of an unrolled model, shares by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medvr_jax.devices import Limits
from medvr_jax.models import operations
from medvr_jax.models.backbone import Backbone, PromptInputs, ResponseInputs
from medvr_jax.models.packing import pack_all
from medvr_jax.planning.architectures import published
from medvr_jax.rollout.trajectories import Calls
from medvr_jax.training import throughput
from medvr_jax.training.throughput import Passed, Policy


@pytest.fixture(scope="module")
def model():
    """Two layers of real proportions, as in tests/models/test_operations.py, and a small tower."""
    config = published("qwen2.5-vl-7b")
    text = dataclasses.replace(
        config.text, hidden_size=512, intermediate_size=1536, num_heads=4, num_kv_heads=2, num_layers=2, vocab_size=4096
    )
    vision = dataclasses.replace(config.vision, depth=3, hidden_size=64, full_attention_blocks=(1,), num_heads=4)
    config = dataclasses.replace(config, text=text, vision=dataclasses.replace(vision, out_hidden_size=512))
    return config, *nnx.split(nnx.eval_shape(lambda: Backbone(config, key=jax.random.key(0))))


def policy(model, **changes) -> Policy:
    config, _, params = model
    plain = Policy(
        operations.matrices(params, config), config, width=2, vision_trained=False, head_trained=True, updates=1,
        reference=False,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def step():
    """Two groups of three trajectories of at most eight slots; in the first, the last is a fork from slot 4 on."""
    length = np.array([[8, 5, 7], [1, 3, 2]])
    shared = np.array([[0, 0, 4], [0, 0, 0]])
    sampled = np.zeros((2, 3, 8), bool)
    for b, m in np.ndindex(2, 3):
        sampled[b, m, 1 : length[b, m]] = True
    sampled[0, :, 3] = False  # observed
    return np.array([6, 4]), length, sampled, shared


def test_true_counts_by_brute_force(model) -> None:
    config = model[0]
    prompts, length, sampled, shared = step()
    images, crops = [[20], [64, 8]], [[], [16]]
    found = throughput.true_counts(prompts, length, sampled, shared, images, crops, config.vision)
    assert all(array.dtype == np.float64 and array.shape == (2,) for array in found.values())
    for b in range(2):
        p = int(prompts[b])
        fed, pairs, own, keys = 0, sum(i + 1 for i in range(p)), 0, 0
        longest = [max(int(sampled[b, m, shared[b, m] :].sum()) for m in range(3)) for b in range(2)]
    reading = 2 * 7 * 2 * (sizes.decoder + sizes.head) + slot * (6 * longest[0] + 4 * longest[1] + keys)
    assert found["decode_bandwidth_share"] == pytest.approx(reading / 1e9 / 0.5, rel=1e-12)

    unknown = throughput.speeds(true, passed, policy(model), seconds, None)
    assert unknown.keys() == {name for name in found if "utilisation" not in name and "share" not in name}

    waste = throughput.padding(true, passed)
    assert waste == pytest.approx({
        "prompt": 1 - 10 / 16, "response": 1 - 22 / 32, "images": 0.0, "crops": 1 - 16 / 128, "decode": 1 - own / 42,
    })  # fmt: skip
    assert "crops" not in throughput.padding(true, dataclasses.replace(passed, rollout=Calls()))
