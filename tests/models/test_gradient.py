"""The gradient of a group's loss against torch's over the M full sequences, parameter by parameter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medvr_jax.models.weight_names import canonical, file_shape, names_of, to_file
from tests.models import cases
from tests.models.test_backbone import three_turn_group


def tensors(config):
    """(name in the file, our path, turn, layer) of every tensor."""
    for pattern, dotted, turn in names_of(config):
        layers = config.vision.depth if pattern.startswith("visual.") else config.text.num_layers
        for layer in range(layers) if "{}" in pattern else (None,):
            yield pattern.format(layer), tuple(dotted.split(".")), turn, layer


@pytest.mark.parametrize(("which", "remat"), [("pair", "none"), ("pair", "block"), ("qwen2_pair", "none")])
def test_equals_the_gradient_of_the_full_sequences(request, which, remat):
    """Recomputed layers once: the decoder, which alone has them here, is the same in both."""
    pair = request.getfixturevalue(which)
    rng = np.random.default_rng(7)
    group = three_turn_group(rng, pair.config)
    B, M, T = group.response.tokens.shape
    # a different weight on every logit of every response token; none on the prompt
    directions = rng.normal(size=(B, M, T, pair.config.text.vocab_size)).astype(np.float32) / 100
    for b, m in np.ndindex(B, M):
        directions[b, m, len(group.responses[b][m].tokens) :] = 0

    def total(params):
        return jnp.sum(cases.score_logits(pair.graphdef, params, group, remat) * directions)

    gradient = dict(nnx.to_flat_state(jax.grad(total)(pair.params)))

    reference = pair.reference
    reference.zero_grad()
    for b, m in np.ndindex(B, M):
        prompt, response = group.prompts[b], group.responses[b][m]
        logits = reference(**cases.reference_inputs(prompt, response)).logits[0, len(prompt.tokens) :]
        (logits * logits.new_tensor(directions[b, m, : len(response.tokens)])).sum().backward()
    expected = {canonical(name): p.grad.numpy() for name, p in reference.named_parameters()}
    reference.zero_grad()

    compared = 0
    for name, where, turn, layer in tensors(pair.config):
        ours = np.asarray(gradient[where][...])
        ours = ours if layer is None else ours[layer]
        shape = file_shape(ours.shape, turn, pair.config)
        ours = to_file(ours, turn, shape[0]).reshape(shape)
        scale = np.abs(expected[name]).max()
        assert scale > 0, name
        if name.endswith("k_proj.bias"):
            scale = max(scale, 1.0)  # softmax hides a constant in the keys: only rope leaves a gradient
        np.testing.assert_allclose(ours, expected[name], atol=1e-4 * scale, err_msg=name)
        compared += 1
    assert compared == len(expected)
