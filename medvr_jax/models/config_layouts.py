"""The published layouts of config.json: JSON fields → the fields of our dataclasses, and back, by model type.

The decoder's fields are the same for all model types; the vision tower's are not: Qwen2-VL calls the tower's width
`embed_dim` and the decoder's `hidden_size`, Qwen2.5-VL calls them `hidden_size` and `out_hidden_size`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medvr_jax.errors import UserError

if TYPE_CHECKING:
    from medvr_jax.models.config import TextConfig, VisionConfig

Fields = dict[str, Any]


class Reader:
    """Typed look-ups in one JSON object, with the field's full name in the error."""

    def __init__(self, fields: Fields, where: str, prefix: str) -> None:
        self.fields, self.where, self.prefix = fields, where, prefix

    def get(self, name: str, kind: type, default: Any = ...) -> Any:
        """The field's value, or the default where it is absent or null."""
        value = self.fields.get(name)
        if value is None:
            if default is ...:
                raise UserError(f"{self.where}: field {self.prefix}{name} is missing")
            return default
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise UserError(f"{self.where}: field {self.prefix}{name} is {value!r}, allowed is {kind.__name__}")
        return value

    def require(self, name: str, allowed: str) -> None:
        """Refuses any value but `allowed`, which is also the default."""
        if (found := self.get(name, str, allowed)) != allowed:
            self.refuse(name, found, repr(allowed))

    def refuse(self, name: str, value: Any, allowed: str) -> None:
        raise UserError(f"{self.where}: field {self.prefix}{name} is {value!r}, allowed is {allowed}")


def read_text(reader: Reader) -> Fields:
    """The fields of TextConfig but for the tied head, which is the whole model's."""
    rope = reader.get("rope_parameters", dict, None) or reader.get("rope_scaling", dict, None) or {}
    rope_reader = Reader(rope, reader.where, reader.prefix + "rope_scaling.")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        reader.refuse("rope_scaling.type", kind, "'mrope' or 'default'")
    section = rope.get("mrope_section", [16, 24, 24])
    if not isinstance(section, list) or len(section) != 3 or not all(isinstance(n, int) for n in section):
        reader.refuse("rope_scaling.mrope_section", section, "three integers")
    if reader.get("use_sliding_window", bool, False):
        reader.refuse("use_sliding_window", True, "false")
    reader.require("hidden_act", "silu")
    heads = reader.get("num_attention_heads", int)
    end = reader.fields.get("eos_token_id")
    return {
        "vocab_size": reader.get("vocab_size", int),
        "hidden_size": reader.get("hidden_size", int),
        "intermediate_size": reader.get("intermediate_size", int),
        "num_layers": reader.get("num_hidden_layers", int),
        "num_heads": heads,
        "num_kv_heads": reader.get("num_key_value_heads", int, heads),
        "mrope_section": tuple(section),
        "rope_theta": rope_reader.get("rope_theta", float, reader.get("rope_theta", float, 1e6)),
        "rms_norm_eps": reader.get("rms_norm_eps", float, 1e-5),
        "max_position_embeddings": reader.get("max_position_embeddings", int, 32768),
        "initializer_range": reader.get("initializer_range", float, 0.02),
        "bos_token_id": reader.get("bos_token_id", int, None),
        "eos_token_id": end[0] if isinstance(end, list) and end else reader.get("eos_token_id", int, None),
        "pad_token_id": reader.get("pad_token_id", int, None),
    }


def write_text(text: TextConfig) -> Fields:
    """The decoder's fields with the tied head, as the hub's folders have them."""
    return {
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "pad_token_id": text.pad_token_id,
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": text.max_position_embeddings,
        "initializer_range": text.initializer_range,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "tie_word_embeddings": text.tie_word_embeddings,
        "use_sliding_window": False,
    }


def _read_tower(reader: Reader) -> Fields:
    """What the model types call the same."""
    rope = Reader(reader.get("rope_parameters", dict, {}), reader.where, reader.prefix + "rope_parameters.")
    return {
        "depth": reader.get("depth", int),
        "num_heads": reader.get("num_heads", int),
        "patch_size": reader.get("patch_size", int, 14),
        "temporal_patch_size": reader.get("temporal_patch_size", int, 2),
        "in_channels": reader.get("in_channels", int, reader.get("in_chans", int, 3)),
        "spatial_merge_size": reader.get("spatial_merge_size", int, 2),
        "rope_theta": rope.get("rope_theta", float, 10000.0),
        "initializer_range": reader.get("initializer_range", float, 0.02),
    }


def _write_tower(vision: VisionConfig) -> Fields:
    return {
        "depth": vision.depth,
        "num_heads": vision.num_heads,
        "patch_size": vision.patch_size,
        "spatial_patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "in_channels": vision.in_channels,
        "in_chans": vision.in_channels,
        "spatial_merge_size": vision.spatial_merge_size,
        "initializer_range": vision.initializer_range,
        "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
    }


def _read_qwen2_5_vision(reader: Reader) -> Fields:
    reader.require("hidden_act", "silu")
    full = reader.get("fullatt_block_indexes", list, [7, 15, 23, 31])
    if not all(isinstance(block, int) for block in full):
        reader.refuse("fullatt_block_indexes", full, "a list of integers")
    return _read_tower(reader) | {
        "hidden_size": reader.get("hidden_size", int),
        "intermediate_size": reader.get("intermediate_size", int),
        "out_hidden_size": reader.get("out_hidden_size", int),
        "full_attention_blocks": tuple(full),
        "window_size": reader.get("window_size", int, 112),
        "tokens_per_second": reader.get("tokens_per_second", int, 4),
        "norm": "rms",
        "mlp": "gated_silu",
    }


def _write_qwen2_5_vision(vision: VisionConfig) -> Fields:
    return _write_tower(vision) | {
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "out_hidden_size": vision.out_hidden_size,
        "fullatt_block_indexes": list(vision.full_attention_blocks),
        "window_size": vision.window_size,
        "tokens_per_second": vision.tokens_per_second,
    }


def _read_qwen2_vision(reader: Reader) -> Fields:
    reader.require("hidden_act", "quick_gelu")
    tower = _read_tower(reader)
    width = reader.get("embed_dim", int)
    return tower | {
        "hidden_size": width,
        "intermediate_size": width * reader.get("mlp_ratio", int, 4),
        "out_hidden_size": reader.get("hidden_size", int),
        "full_attention_blocks": tuple(range(tower["depth"])),
        "norm": "layer",
        "mlp": "quick_gelu",
    }


def _write_qwen2_vision(vision: VisionConfig) -> Fields:
    return _write_tower(vision) | {
        "model_type": "qwen2_vl",
        "hidden_act": "quick_gelu",
        "embed_dim": vision.hidden_size,
        "mlp_ratio": vision.intermediate_size // vision.hidden_size,
        "hidden_size": vision.out_hidden_size,
    }


@dataclasses.dataclass(frozen=True)
class ModelType:
    """One family of checkpoints: transformers' class, and the layout of its vision_config."""

    architecture: str
    read_vision: Callable[[Reader], Fields]
    write_vision: Callable[[VisionConfig], Fields]


MODEL_TYPES = {
    "qwen2_5_vl": ModelType("Qwen2_5_VLForConditionalGeneration", _read_qwen2_5_vision, _write_qwen2_5_vision),
    "qwen2_vl": ModelType("Qwen2VLForConditionalGeneration", _read_qwen2_vision, _write_qwen2_vision),
}
