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
        longest = [0, 0, 0]
        for m in range(3):
            for t in range(shared[b, m], length[b, m]):
                if t < length[b, m] - 1:  # the last token is not fed
                    fed, pairs = fed + 1, pairs + p + t + 1
                if sampled[b, m, t]:
                    own, keys, longest[m] = own + 1, keys + t, longest[m] + 1
        expected = {
            "prompt_tokens": p, "response_slots": int((length - shared)[b].sum()), "response_tokens": fed,
            "pairs": pairs, "sampled_tokens": own, "sampled_keys": keys, "prompt_keys": p * max(longest),
            "images": sum(images[b]), "crops": sum(crops[b]),
        }  # fmt: skip
        for name, value in expected.items():
            assert found[name][b] == value, name
    # One block of three sees everything, two see windows of at most 64 patches.
    assert found["image_pairs"].tolist() == [20 * 20 * 3, 64 * 64 * 3 + 8 * 8 * 3]
    assert found["crop_pairs"].tolist() == [0, 16 * 16 * 3]
    more = throughput.true_counts(prompts, length, sampled, shared, [[100], []], crops, config.vision)
    assert more["image_pairs"].tolist() == [100 * (100 + 2 * 64), 0]


def test_a_fork_counts_its_parents_tokens_once(model) -> None:
    """A group is cheaper than its trajectories one by one, by what the fork shares."""
    prompts, length, sampled, shared = step()
    arguments = ([[], []], [[], []], model[0].vision)
    once = throughput.true_counts(prompts, length, sampled, shared, *arguments)
    twice = throughput.true_counts(prompts, length, sampled, np.zeros_like(shared), *arguments)
    assert twice["response_tokens"][0] - once["response_tokens"][0] == 4
    assert twice["sampled_tokens"][0] - once["sampled_tokens"][0] == 2  # slots 1 and 2; slot 3 was observed
    assert twice["pairs"][0] - once["pairs"][0] == sum(6 + t + 1 for t in range(4))


B, P, T = 2, 96, 128


@pytest.mark.parametrize("gradient", [False, True])
def test_operations_of_a_full_step(model, gradient: bool) -> None:
    """Full prompts and full responses: XLA counts the forward pass and the gradient of the unrolled model."""
    config, graphdef, params = model

    def array(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    prompt = PromptInputs(
        array(B, P), array(B, P, 3), array(B, P, dtype=bool), array(B, P), array(B, 0, 512, dtype=jnp.float32)
    )
    response = ResponseInputs(array(B, 1, T), array(B, 1, T, 3), array(B, 1, T), array(B, 0, 512, dtype=jnp.float32))

    def score(params, prompt, response):
        backbone = nnx.merge(graphdef, params)
        return jnp.sum(backbone.logits(backbone.score(prompt, response, pack_all(B, 1, T))) ** 2)

    function = jax.jit(jax.grad(score) if gradient else score)
    counted = function.lower(params, prompt, response).cost_analysis()["flops"]
    true = throughput.total(
        throughput.true_counts(
            np.full(B, P), np.full((B, 1), T + 1), np.ones((B, 1, T + 1), bool), np.zeros((B, 1), int),
            [[]] * B, [[]] * B, config.vision,
        )
    )  # fmt: skip
    assert true["response_tokens"] == B * T
    true["sampled_tokens"] = B * T
    passed = Passed(B, P, Calls(), (0, 4), rows=B, response=T, packed=B * T, update_crops=(0, 4))
    priced = policy(model)
    update = priced.passed_operations(passed, true)[1]
    # In the last layer the prompt makes keys and values only.
    head = config.text.num_heads * config.text.head_width
    skipped = B * (2.0 * P * 512 * (2 * head + 3 * 1536) + 4.0 * head * P * P)
    forward = update / 3 - skipped
    assert forward * (3 if gradient else 1) == pytest.approx(counted, rel=0.06)
    # True pairs are those below the diagonal; everything else is the same.
    masked = B * (P * P - P * (P + 1) / 2 + T * (P + T) - T * P - T * (T + 1) / 2)
    true_update = priced.true_operations(true)[1]
    assert update - true_update == pytest.approx(3 * 4.0 * config.text.num_layers * head * masked, rel=1e-9)


def test_what_an_update_is_worth(model) -> None:
    """Passes over the text, over the images and over the head, by hand."""
    text, images = operations.Work(tokens=10, pairs=100, logits=7), operations.Work(patches=40, patch_pairs=500)
    config = model[0]
    sizes = operations.matrices(model[2], config)
    words = 2.0 * (sizes.decoder * 10 + sizes.head * 7) + 4.0 * 2 * 4 * config.text.head_width * 100
    pictures = 2.0 * (sizes.vision * 40 + sizes.merger * 10) + 4.0 * 64 * 500
    head = 2.0 * sizes.head * 7
    cases = {
        (): 3 * words,
        (("reference", True),): 4 * words,
        (("vision_trained", True),): 3 * (words + pictures),
        (("head_trained", False),): 3 * words - head,
        (("updates", 2), ("reference", True)): words + 2 * 4 * words,
    }
    for changes, expected in cases.items():
        rollout, update = policy(model, **dict(changes)).operations(text, images)
        assert update == pytest.approx(expected, rel=1e-12), changes
        assert rollout == pytest.approx(words + pictures, rel=1e-12)


def test_speeds_by_hand(model) -> None:
    """Tokens per second, utilisation, and the share of the bandwidth that decoding needs."""
    config = model[0]
    prompts, length, sampled, shared = step()
    counts = throughput.true_counts(prompts, length, sampled, shared, [[64], [64]], [[16], []], config.vision)
    true = throughput.total(counts)
    calls = Calls(decode=((4, 6, 4), (3, 6, 8)), extend=((18, 8),), crops=((4, 32),))
    passed = Passed(2, 8, calls, (2, 64), rows=6, response=8, packed=32, update_crops=(0, 32))
    seconds = {"vision": 0.1, "prefill": 0.2, "decode": 0.5, "extend": 0.2, "update": 4.0, "reward": 9.0, "tool": 0.0}
    found = throughput.speeds(true, passed, policy(model), seconds, Limits(peak=1e12, bandwidth=1e9), copies=2)

    own = sum(int(sampled[b, m, shared[b, m] :].sum()) for b, m in np.ndindex(2, 3))
    fed = sum(max(int(length[b, m]) - 1 - int(shared[b, m]), 0) for b, m in np.ndindex(2, 3))
    assert found["sampled_tokens_per_second"] == pytest.approx(own / 1.0)
    assert found["trained_tokens_per_second"] == pytest.approx((10 + fed) / 4.0)
    assert found["utilisation_rollout"] == pytest.approx(found["model_flops_rollout"] / 1.0 / 1e12)
    assert found["utilisation_update"] == pytest.approx(found["model_flops_update"] / 4.0 / 1e12)

    sizes, text = operations.matrices(model[2], config), config.text
    assert found["processed_flops_rollout"] == pytest.approx(
        2 * operations.vision_forward(sizes, config, 64) + 4 * operations.vision_forward(sizes, config, 32)
        + 2 * operations.prompt_forward(sizes, config, 8) + operations.response_forward(sizes, config, 18, 8 + 8)
        + 6 * 4 * operations.response_forward(sizes, config, 1, 8 + 4) + operations.head_forward(sizes, 6 * 7)
        + 6 * 3 * operations.response_forward(sizes, config, 1, 8 + 8),
        rel=1e-12,
    )  # fmt: skip
    slot = 2 * 2 * text.num_layers * text.num_kv_heads * text.head_width  # keys and values of two bytes a number
    keys = sum(t for b, m in np.ndindex(2, 3) for t in range(shared[b, m], 8) if sampled[b, m, t])
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
