"""The hub's own config.json files: parsed, and the model's tensors by name and shape against transformers' model.

Nothing is allocated: our shapes are abstract, theirs lie on torch's meta device.
"""

from __future__ import annotations

import math

import jax
import pytest
import torch
from flax import nnx
from transformers import AutoConfig, AutoModelForImageTextToText

from medvr_jax.errors import UserError
from medvr_jax.models.backbone import Backbone
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.weight_names import canonical, file_shape, names_of

COMMON = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
QWEN2_5_VISION = {
    "depth": 32,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_chans": 3,
    "out_hidden_size": 2048,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
    "temporal_patch_size": 2,
}
PUBLISHED = {
    "Qwen2-VL-2B": COMMON
    | {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "mlp_ratio": 4,
            "num_heads": 16,
            "in_chans": 3,
            "hidden_size": 1536,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    },
    "Qwen2-VL-7B": COMMON
    | {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "mlp_ratio": 4,
            "num_heads": 16,
            "in_chans": 3,
            "hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    },
    "Qwen2.5-VL-3B": COMMON
    | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
        "vision_config": QWEN2_5_VISION,
    },
    "Qwen2.5-VL-7B": COMMON
    | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 128000,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
        "vision_config": QWEN2_5_VISION | {"out_hidden_size": 3584},
    },
    "Qwen2.5-VL-32B": COMMON
    | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "max_position_embeddings": 128000,
        "max_window_layers": 64,
        "num_attention_heads": 40,
        "num_hidden_layers": 64,
        "num_key_value_heads": 8,
        "pad_token_id": 151643,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
        "vision_config": QWEN2_5_VISION
        | {"in_channels": 3, "intermediate_size": 3456, "model_type": "qwen2_5_vl", "out_hidden_size": 5120},
    },
    "Qwen2.5-VL-72B": COMMON
    | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "max_position_embeddings": 128000,
        "max_window_layers": 80,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
        "vision_config": QWEN2_5_VISION | {"intermediate_size": 3456, "out_hidden_size": 8192},
    },
}
PARAMETERS = {
    "Qwen2-VL-2B": 2_208_985_600,
    "Qwen2-VL-7B": 8_291_375_616,
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen2.5-VL-32B": 33_452_718_336,
    "Qwen2.5-VL-72B": 73_410_777_344,
}


def our_tensors(config: BackboneConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape in the file of every tensor of the abstract model."""
    abstract = nnx.eval_shape(lambda: Backbone(config, key=jax.random.key(0)))
    flat = dict(nnx.to_flat_state(nnx.state(abstract)))
    found = {}
    for pattern, dotted, turn in names_of(config):
        shape = tuple(flat.pop(tuple(dotted.split("."))).shape)
        if "{}" not in pattern:
            found[pattern] = file_shape(shape, turn, config)
            continue
        found |= {pattern.format(layer): file_shape(shape[1:], turn, config) for layer in range(shape[0])}
    assert not flat, "parameters without a name"
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_of_published_models_are_those_of_transformers(name):
    config = BackboneConfig.from_json_dict(PUBLISHED[name])
    ours = our_tensors(config)
    with torch.device("meta"):
        reference = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**PUBLISHED[name]))
    assert ours == {canonical(key): tuple(value.shape) for key, value in reference.named_parameters()}
    assert sum(math.prod(shape) for shape in ours.values()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_means_the_same_to_us_and_to_transformers(name):
    config = BackboneConfig.from_json_dict(PUBLISHED[name])
    written = config.to_json_dict()
    assert BackboneConfig.from_json_dict(written) == config
    again, published = (AutoConfig.for_model(**fields).to_dict() for fields in (written, PUBLISHED[name]))
    extras = {"spatial_patch_size", "in_chans", "model_type", "dtype", "sliding_window", "max_window_layers"}

    def same(a, b, where):
        for key in (a.keys() | b.keys()) - extras - {"attention_dropout", "transformers_version", "vision_token_id"}:
            if isinstance(a.get(key), dict):
                same(a[key], b[key], f"{where}{key}.")
            else:
                assert a.get(key) == b.get(key), f"{where}{key}"

    same(again, published, "")


def test_newer_exports_repeat_or_nest_the_decoder():
    """Fine-tunes of the 7B (Lingshu-7B is one) come as the hub's file or as a later transformers wrote it."""
    flat = PUBLISHED["Qwen2.5-VL-7B"]
    expected = BackboneConfig.from_json_dict(flat)
    text = {key: value for key, value in flat.items() if not key.endswith("_token_id") and key != "vision_config"}
    text |= {key: flat[key] for key in ("bos_token_id", "eos_token_id")}
    text |= {
        "model_type": "qwen2_5_vl_text",
        "layer_types": ["full_attention"] * 28,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
        "sliding_window": None,
    }
    vision = flat["vision_config"] | {"in_channels": 3, "initializer_range": 0.02, "model_type": "qwen2_5_vl"}
    twice = flat | {"text_config": text, "vision_config": vision, "rope_scaling": text["rope_scaling"]}
    assert BackboneConfig.from_json_dict(twice) == expected
    ids = {key: value for key, value in flat.items() if key.endswith("_token_id")}
    nested = ids | {"model_type": "qwen2_5_vl", "text_config": text, "vision_config": vision}
    assert BackboneConfig.from_json_dict(nested) == expected


def test_the_towers_as_published():
    towers = {name: BackboneConfig.from_json_dict(fields).vision for name, fields in PUBLISHED.items()}
    old, new = towers["Qwen2-VL-2B"], towers["Qwen2.5-VL-7B"]
    assert (old.hidden_size, old.intermediate_size, old.out_hidden_size, old.head_width) == (1280, 5120, 1536, 80)
    assert (old.norm, old.mlp, old.has_windows) == ("layer", "quick_gelu", False)
    assert (new.hidden_size, new.intermediate_size, new.out_hidden_size, new.head_width) == (1280, 3420, 3584, 80)
    assert (new.norm, new.mlp, new.has_windows) == ("rms", "gated_silu", True)
    assert new.full_attention_blocks == (7, 15, 23, 31) and new.window_patches == 64


WRONG = {
    "another model": ({"model_type": "llava"}, "model_type is 'llava', allowed are qwen2_5_vl, qwen2_vl"),
    "a list": ({"model_type": ["qwen2_vl"]}, r"model_type is \['qwen2_vl'\], allowed are"),
    "no type": ({"model_type": None}, "model_type is None, allowed are"),
    "the sibling's tower": ({"model_type": "qwen2_5_vl"}, "field vision_config.intermediate_size is missing"),
    "activation": ({"vision_config": {"hidden_act": "gelu"}}, "hidden_act is 'gelu', allowed is 'quick_gelu'"),
    "no width": ({"vision_config": {"embed_dim": None}}, "field vision_config.embed_dim is missing"),
    "ratio": ({"vision_config": {"mlp_ratio": "4"}}, "vision_config.mlp_ratio is '4', allowed is int"),
    "output": ({"vision_config": {"hidden_size": 8}}, "config.json: vision out_hidden_size must equal hidden_size"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_fields_are_refused_in_one_line(name):
    change, message = WRONG[name]
    fields = PUBLISHED["Qwen2-VL-2B"]
    vision = fields["vision_config"] | change.get("vision_config", {})
    with pytest.raises(UserError, match=message) as caught:
        BackboneConfig.from_json_dict(fields | change | {"vision_config": vision})
    assert "\n" not in str(caught.value)


def test_a_tower_that_the_model_type_cannot_have_is_refused():
    config = BackboneConfig.from_json_dict(PUBLISHED["Qwen2.5-VL-3B"])
    with pytest.raises(UserError, match="vision intermediate_size is 3420, a qwen2_vl of this shape has"):
        BackboneConfig(**{**vars(config), "model_type": "qwen2_vl"})
