"""Logits of every kind of context on every kind of model, against transformers; bfloat16 against float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medvr_jax.models.config import BackboneConfig
from tests.models import cases
from tests.models.conftest import make_pair

TOLERANCE = 2e-4
INPUTS = ("text only", "one image", "three images, one of 1,040 patches", "four turns with crops")
# Other head widths than the reference's 16 need sections and towers of their own.
WIDTHS = {
    "seven queries per key": (
        {"hidden_size": 224, "num_attention_heads": 14, "num_key_value_heads": 2},
        {"out_hidden_size": 224},
    ),
    "heads of 128, in the tower of 80": (
        {
            "hidden_size": 256,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        {"out_hidden_size": 256, "hidden_size": 160, "num_heads": 2},
    ),
}
MODELS = {
    "tied": {"tied": True},
    "untied": {},
    **{name: {"text": text, "vision": vision} for name, (text, vision) in WIDTHS.items()},
    "four whole-image blocks among windows": {"vision": {"depth": 8, "fullatt_block_indexes": [1, 3, 5, 7]}},
    "Qwen2-VL, tied": {"model_type": "qwen2_vl", "tied": True},
    "Qwen2-VL, untied": {"model_type": "qwen2_vl", "vision": {"embed_dim": 160, "mlp_ratio": 4}},
}


def mixed_group(rng: np.random.Generator, config: BackboneConfig) -> cases.Group:
    """The four INPUTS, one prompt each, with two responses of different lengths."""

    def make(*parts):
        return cases.segment(rng, config, *parts)

    prompts = [
        make(9),
        make(4, (1, 12, 8), 5),
        make(3, (1, 26, 40), 2, (1, 6, 12), 4, (1, 20, 14), 5),
        make(5, (1, 14, 18), 7),
    ]
    responses = [
        [make(7), make(12)],
        [make(9), make(1)],
        [make(6), make(14)],
        [make(9, (1, 8, 12), 11, (1, 14, 4), 8, (1, 10, 16), 6), make(12, (1, 16, 16), 3)],
    ]
    return cases.group(config, prompts, responses, P=380, T=128, S=1040, images=3, crops=3, crop_S=256)


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(tmp_path, name):
    pair = make_pair(tmp_path, **MODELS[name])
    group = mixed_group(np.random.default_rng(5), pair.config)
    logits = cases.score_logits(pair.graphdef, pair.params, group)
    assert logits.dtype == jnp.float32
    differences = dict(zip(INPUTS, cases.largest_differences(logits, pair.reference, group), strict=True))
    print(name, differences)
    assert max(differences.values()) <= TOLERANCE, differences
    assert (np.asarray(logits).std(axis=-1)[:, :, 0] > 0.3).all()  # far from the uniform distribution


def test_bfloat16_policies_stay_near_float32(sibling):
    """The weights' spread of 0.15 at width 64 gives logits the spread that 0.02 gives at a width of 3,600."""
    group = mixed_group(np.random.default_rng(6), sibling.config)
    model = sibling.model
    model.compute_dtype = model.vision.dtype = jnp.dtype(jnp.bfloat16)
    graphdef, params = nnx.split(model)
    wide, narrow = (
        jax.nn.log_softmax(cases.score_logits(*model, group))
        for model in ((sibling.graphdef, sibling.params), (graphdef, params))
    )
    divergence = np.asarray(jnp.sum(jnp.exp(wide) * (wide - narrow), axis=-1))
    lengths = np.array([[len(one.tokens) for one in row] for row in group.responses])
    real = np.arange(divergence.shape[-1]) < lengths[..., None]
    print(divergence[real].mean(), divergence[real].max())
    assert 0 < divergence[real].max() <= 1e-3
