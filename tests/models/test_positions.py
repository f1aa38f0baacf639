"""M-RoPE positions against transformers' get_rope_index, whole and segment by segment."""

from __future__ import annotations

import numpy as np
import pytest

from medvr_jax.models.rope import multimodal_positions
from tests.models import cases
from tests.torch_reference import IMAGE

CASES = {
    "text": [(7,)],
    "one image": [(3, (1, 8, 6), 4)],
    "image first and last": [((1, 4, 10), 5, (1, 2, 2))],
    "two images in a row": [(2, (1, 20, 26), (1, 6, 4), 3)],
    "three turns with crops": [(5, (1, 22, 18), 6), (9, (1, 8, 8), 4), (11, (1, 4, 14), 3), (8,)],
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_transformers_whole_and_by_segments(sibling, name):
    pair = sibling
    rng = np.random.default_rng(0)
    segments = [cases.segment(rng, pair.config, *parts) for parts in CASES[name]]
    tokens = [token for one in segments for token in one.tokens]
    grids = [grid for one in segments for grid in one.grids]
    fixed = {"image_token_id": IMAGE, "merge_size": pair.config.vision.spatial_merge_size}
    whole, following = multimodal_positions(tokens, grids, **fixed)

    inputs = cases.reference_inputs(*segments)
    if grids:
        expected, deltas = pair.reference.model.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
        )
        np.testing.assert_array_equal(whole, expected[:, 0].numpy().T)
        if tokens[-1] < 490:  # their delta counts from the largest position, which is ours after text
            assert following == len(tokens) + int(deltas[0, 0])
    else:
        np.testing.assert_array_equal(whole, np.arange(len(tokens))[:, None].repeat(3, 1))

    start, parts = 0, []
    for one in segments:
        part, start = multimodal_positions(one.tokens, one.grids, start, **fixed)
        parts.append(part)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert start == following and whole.dtype == np.int32


def test_refuses_tokens_that_do_not_match_the_grids():
    fixed = {"image_token_id": IMAGE, "merge_size": 2}
    with pytest.raises(ValueError, match="needs 4 image tokens"):
        multimodal_positions([1, IMAGE, IMAGE, 2, 3], [(1, 4, 4)], **fixed)
    with pytest.raises(ValueError, match="needs 4 image tokens"):
        multimodal_positions([1, IMAGE, IMAGE], [(1, 4, 4)], **fixed)
    with pytest.raises(ValueError, match="only 0 image grids"):
        multimodal_positions([1, IMAGE], [], **fixed)
    with pytest.raises(ValueError, match="more image grids"):
        multimodal_positions([1, 2], [(1, 4, 4)], **fixed)
