"""Published architectures by name, for planning where no model folder is at hand: the hub's config.json, shortened."""

from __future__ import annotations

import dataclasses
from typing import Any

from medvr_jax.configuration import model_folder
from medvr_jax.errors import UserError
from medvr_jax.models.config import BackboneConfig

_TOKENS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}


def _decoder(width: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "hidden_act": "silu",
    }


def _qwen2_5(decoder: dict[str, Any], vision_mlp: int) -> dict[str, Any]:
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": vision_mlp,
        "num_heads": 16,
        "out_hidden_size": decoder["hidden_size"],
        "fullatt_block_indexes": [7, 15, 23, 31],
        "patch_size": 14,
        "window_size": 112,
        "tokens_per_second": 2,
        "hidden_act": "silu",
    }
    return {"model_type": "qwen2_5_vl", "vision_config": vision} | _TOKENS | decoder


def _qwen2(decoder: dict[str, Any]) -> dict[str, Any]:
    vision = {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "hidden_size": decoder["hidden_size"],
        "patch_size": 14,
        "hidden_act": "quick_gelu",
    }
    return {"model_type": "qwen2_vl", "vision_config": vision} | _TOKENS | decoder


_NO_SHAPE = ("max_position_embeddings", "tokens_per_second")

# Width, MLP width, layers, heads, key/value heads, vocabulary, tied.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-3b": _qwen2_5(_decoder(2048, 11008, 36, 16, 2, 151936, True), 3420),
    "qwen2.5-vl-7b": _qwen2_5(_decoder(3584, 18944, 28, 28, 4, 152064, False), 3420),
    "qwen2.5-vl-32b": _qwen2_5(_decoder(5120, 27648, 64, 40, 8, 152064, False), 3456),
    "qwen2.5-vl-72b": _qwen2_5(_decoder(8192, 29568, 80, 64, 8, 152064, False), 3456),
    "qwen2-vl-2b": _qwen2(_decoder(1536, 8960, 28, 12, 2, 151936, True)),
    "qwen2-vl-7b": _qwen2(_decoder(3584, 18944, 28, 28, 4, 152064, False)),
}


def published(name: str) -> BackboneConfig:
    """The architecture of that name; UserError with the known ones."""
    if name not in ARCHITECTURES:
        raise UserError(f"model.architecture: found {name!r}, allowed are {', '.join(ARCHITECTURES)}")
    return BackboneConfig.from_json_dict(ARCHITECTURES[name], f"architecture {name}")


def backbone_of(model: Any) -> BackboneConfig:
    """The backbone of a configuration's section `model`: by `path` where it is a folder with a config.json, else by
    `architecture`. Where both are known they must agree."""
    named = published(model.architecture) if model.architecture else None
    if not (model_folder(model.path) / "config.json").is_file():
        if named is None:
            raise UserError(
                f"model.path: {model.path!r} holds no config.json, and model.architecture is empty; one of them is"
                f" needed to plan, allowed architectures are {', '.join(ARCHITECTURES)}"
            )
        return named
    found = BackboneConfig.from_folder(model_folder(model.path))
    if named is None:
        return found
    for part in ("text", "vision"):
        for field in dataclasses.fields(getattr(found, part)):
            if field.type not in ("int", "tuple[int, ...]", "bool"):
                continue  # shapes alone matter here
            here, there = (getattr(getattr(config, part), field.name) for config in (found, named))
            if here != there and field.name not in _NO_SHAPE:
                raise UserError(
                    f"model.architecture: found {model.architecture!r} with {part} {field.name} = {there}, but"
                    f" {model.path}/config.json has {here}; set it to '' to plan for that folder"
                )
    return found
