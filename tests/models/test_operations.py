"""Operations by arithmetic against XLA's count, on models whose layers are unrolled (XLA counts loops once)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest
from flax import nnx

from medvr_jax.models import backbone as backbone_module
from medvr_jax.models import operations
from medvr_jax.models.backbone import Backbone, PromptInputs, ResponseInputs
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.packing import pack_all
from medvr_jax.planning.architectures import ARCHITECTURES, published
from medvr_jax.training import abstract

B, P, T, S = 2, 96, 128, 256


@pytest.fixture(scope="module")
def model() -> tuple[BackboneConfig, nnx.GraphDef, nnx.State]:
    """Two layers of real proportions: norms, rope and softmax are small beside the products."""
    config = published("qwen2.5-vl-7b")
    text = dataclasses.replace(
        config.text, hidden_size=512, intermediate_size=1536, num_heads=4, num_kv_heads=2, num_layers=2, vocab_size=4096
    )
    vision = dataclasses.replace(
        config.vision, hidden_size=512, intermediate_size=1024, num_heads=8, depth=2, full_attention_blocks=(1,),
        out_hidden_size=512,
    )  # fmt: skip
    config = dataclasses.replace(config, text=text, vision=vision)
    return config, *nnx.split(nnx.eval_shape(lambda: Backbone(config, key=jax.random.key(0))))


def counted(function, *arguments) -> float:
    """XLA's own number of operations, before any optimisation could drop or split work."""
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def array(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_vision(model):
    config, graphdef, params = model
    images = abstract.images((B,), S, config.vision)
    found = counted(lambda params, images: nnx.merge(graphdef, params).encode_images(images), params, images)
    sizes = operations.matrices(params, config)
    assert B * operations.vision_forward(sizes, config, S) == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_group(model, gradient):
    """Scoring and its gradient: the backward pass is worth two forward ones."""
    config, graphdef, params = model
    prompt = PromptInputs(
        array(B, P), array(B, P, 3), array(B, P, dtype=bool), array(B, P), array(B, 0, 512, dtype=jnp.float32)
    )
    response = ResponseInputs(array(B, 1, T), array(B, 1, T, 3), array(B, 1, T), array(B, 0, 512, dtype=jnp.float32))

    def total(params, prompt, response):
        backbone = nnx.merge(graphdef, params)
        return jnp.sum(backbone.logits(backbone.score(prompt, response, pack_all(*response.tokens.shape))) ** 2)

    found = counted(jax.grad(total) if gradient else total, params, prompt, response)
    sizes = operations.matrices(params, config)
    # The last layer of the prompt makes keys and values only.
    head = config.text.num_heads * config.text.head_width
    skipped = 2.0 * P * config.text.hidden_size * (2 * head + 3 * config.text.intermediate_size) + 4.0 * head * P * P
    group = (
        operations.prompt_forward(sizes, config, P)
        - skipped
        + operations.response_forward(sizes, config, T, P + T)
        + operations.head_forward(sizes, T)
    )
    assert B * group * (3 if gradient else 1) == pytest.approx(found, rel=0.06)


def products(jaxpr) -> float:
    """Operations of all matrix products in a program: those in a loop's body as often as it runs."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * math.prod(shape[axis] for axis in left) * equation.outvars[0].aval.size
        inner = [products(part) for part in jax.extend.core.jaxprs_in_params(equation.params)]
        total += sum(inner) * equation.params.get("length", 1)
    return total


def test_what_remat_repeats(model, monkeypatch):
    """Products in the program of a gradient, with all layers in one loop: two trajectories and their prompt."""
    monkeypatch.setattr(backbone_module, "SCORE_SCAN_FROM", 1)
    config, graphdef, params = model
    M = 2
    prompt = PromptInputs(
        array(B, P), array(B, P, 3), array(B, P, dtype=bool), array(B, P), array(B, 0, 512, dtype=jnp.float32)
    )
    response = ResponseInputs(array(B, M, T), array(B, M, T, 3), array(B, M, T), array(B, 0, 512, dtype=jnp.float32))

    def total(params, prompt, response, remat):
        backbone = nnx.merge(graphdef, params)
        return jnp.sum(backbone.score(prompt, response, pack_all(B, M, T), remat) ** 2)

    found = {
        remat: products(jax.make_jaxpr(jax.grad(total), static_argnums=3)(params, prompt, response, remat).jaxpr)
        for remat in ("none", "dots", "block")
    }
    work = operations.Work(tokens=P + M * T, pairs=P * P + M * T * (P + T)).times(B)
    sizes = operations.matrices(params, config)
    counted = {remat: operations.training(sizes, config, work, remat) for remat in found}
    assert found["dots"] - found["none"] == pytest.approx(counted["dots"] - counted["none"], rel=0.01)
    once = operations.forward(sizes, config, work)
    assert 0.6 * once < found["block"] - found["none"] <= counted["block"] - counted["none"] == once
    # Attention's backward pass makes the scores again: five products for its two.
    assert found["none"] == pytest.approx(counted["none"] + operations.attention(config, work) / 2, rel=0.01)


def test_published_sizes():
    """Parameters of the hub's model cards, in billions."""
    for name, billions in (("qwen2.5-vl-3b", 3.75), ("qwen2.5-vl-7b", 8.29), ("qwen2.5-vl-72b", 73.4)):
        config = published(name)
        params = nnx.state(nnx.eval_shape(lambda config=config: Backbone(config, key=jax.random.key(0))))
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert count / 1e9 == pytest.approx(billions, abs=0.02), name
    assert set(ARCHITECTURES) >= {"qwen2-vl-2b", "qwen2-vl-7b", "qwen2.5-vl-32b"}
