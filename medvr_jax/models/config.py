"""What a Qwen2.5-VL folder's config.json says, as frozen dataclasses, and back again.

Not the configuration of a run (see configs/): only the shape of the backbone.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from medvr_jax.errors import UserError

MODEL_TYPE = "qwen2_5_vl"


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. `full_attention_blocks` are the blocks that see the whole image; the others see windows."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    full_attention_blocks: tuple[int, ...]
    patch_size: int = 14
    temporal_patch_size: int = 2
    in_channels: int = 3
    spatial_merge_size: int = 2
    window_size: int = 112
    rope_theta: float = 10000.0
    tokens_per_second: int = 2
    initializer_range: float = 0.02

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch as the image processor makes it."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that become one image token."""
        return self.spatial_merge_size**2

    @property
    def window_side(self) -> int:
        """Side of an attention window in merged cells."""
        return self.window_size // self.spatial_merge_size // self.patch_size

    @property
    def window_patches(self) -> int:
        """Patches in a full window (C)."""
        return self.window_side**2 * self.merge_unit


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder. `mrope_section` shares the H/2 rotary frequencies among time, row and column."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mrope_section: tuple[int, int, int]
    rope_theta: float = 1000000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_heads


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Vision tower, decoder and the token ids that tie them together."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    model_type: str = MODEL_TYPE

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_folder(cls, path: str | Path) -> BackboneConfig:
        """Reads `path`/config.json, with the decoder's fields at the top level or under text_config."""
        file = Path(path) / "config.json"
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"{file}: cannot be read ({error.strerror}); a Hugging Face model folder is needed"
            ) from error
        except ValueError as error:
            raise UserError(f"{file}: not valid JSON ({error})") from error
        if not isinstance(fields, dict):
            raise UserError(f"{file}: found a JSON {type(fields).__name__}, an object is needed")
        return cls.from_json_dict(fields, where=str(file))

    @classmethod
    def from_json_dict(cls, fields: dict[str, Any], where: str = "config.json") -> BackboneConfig:
        """As `from_folder`, from parsed JSON; `where` names the source in error messages."""
        model_type = fields.get("model_type")
        if model_type != MODEL_TYPE:
            raise UserError(f"{where}: model_type is {model_type!r}, allowed is {MODEL_TYPE!r}")
        nested = fields.get("text_config")
        text = _Reader(nested if isinstance(nested, dict) else fields, where, "text_config." if nested else "")
        top = _Reader(fields, where, "")
        vision = _Reader(top.get("vision_config", dict), where, "vision_config.")
        tied = bool(fields.get("tie_word_embeddings", False) or text.fields.get("tie_word_embeddings", False))
        parts = {"text": _read_text(text, tied), "vision": _read_vision(vision)}
        ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        parts |= {name: top.get(name, int) for name in ids}
        try:
            return cls(**parts)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def to_json_dict(self) -> dict[str, Any]:
        """config.json in the layout of the hub's Qwen2.5-VL folders (decoder fields at the top level)."""
        text, vision = self.text, self.vision
        return {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": self.model_type,
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
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
            "vision_config": {
                "model_type": MODEL_TYPE,
                "depth": vision.depth,
                "hidden_act": "silu",
                "hidden_size": vision.hidden_size,
                "intermediate_size": vision.intermediate_size,
                "num_heads": vision.num_heads,
                "out_hidden_size": vision.out_hidden_size,
                "fullatt_block_indexes": list(vision.full_attention_blocks),
                "patch_size": vision.patch_size,
                "spatial_patch_size": vision.patch_size,
                "temporal_patch_size": vision.temporal_patch_size,
                "in_channels": vision.in_channels,
                "in_chans": vision.in_channels,
                "spatial_merge_size": vision.spatial_merge_size,
                "window_size": vision.window_size,
                "tokens_per_second": vision.tokens_per_second,
                "initializer_range": vision.initializer_range,
                "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
            },
        }


class _Reader:
    """Typed look-ups in one JSON object, with the field's full name in the error."""

    def __init__(self, fields: dict[str, Any], where: str, prefix: str) -> None:
        self.fields, self.where, self.prefix = fields, where, prefix

    def get(self, name: str, kind: type, default: Any = ...) -> Any:
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

    def refuse(self, name: str, value: Any, allowed: str) -> None:
        raise UserError(f"{self.where}: field {self.prefix}{name} is {value!r}, allowed is {allowed}")


def _read_text(reader: _Reader, tied: bool) -> TextConfig:
    rope = reader.get("rope_parameters", dict, None) or reader.get("rope_scaling", dict, None) or {}
    rope_reader = _Reader(rope, reader.where, reader.prefix + "rope_scaling.")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        reader.refuse("rope_scaling.type", kind, "'mrope' or 'default'")
    section = rope.get("mrope_section", [16, 24, 24])
    if not isinstance(section, list) or len(section) != 3 or not all(isinstance(n, int) for n in section):
        reader.refuse("rope_scaling.mrope_section", section, "three integers")
    if reader.get("use_sliding_window", bool, False):
        reader.refuse("use_sliding_window", True, "false")
    if (activation := reader.get("hidden_act", str, "silu")) != "silu":
        reader.refuse("hidden_act", activation, "'silu'")
    heads = reader.get("num_attention_heads", int)
    end = reader.fields.get("eos_token_id")
    return TextConfig(
        vocab_size=reader.get("vocab_size", int),
        hidden_size=reader.get("hidden_size", int),
        intermediate_size=reader.get("intermediate_size", int),
        num_layers=reader.get("num_hidden_layers", int),
        num_heads=heads,
        num_kv_heads=reader.get("num_key_value_heads", int, heads),
        mrope_section=tuple(section),
        rope_theta=rope_reader.get("rope_theta", float, reader.get("rope_theta", float, 1e6)),
        rms_norm_eps=reader.get("rms_norm_eps", float, 1e-5),
        tie_word_embeddings=tied,
        max_position_embeddings=reader.get("max_position_embeddings", int, 32768),
        initializer_range=reader.get("initializer_range", float, 0.02),
        bos_token_id=reader.get("bos_token_id", int, None),
        eos_token_id=end[0] if isinstance(end, list) and end else reader.get("eos_token_id", int, None),
        pad_token_id=reader.get("pad_token_id", int, None),
    )


def _read_vision(reader: _Reader) -> VisionConfig:
    if (activation := reader.get("hidden_act", str, "silu")) != "silu":
        reader.refuse("hidden_act", activation, "'silu'")
    full = reader.get("fullatt_block_indexes", list, [7, 15, 23, 31])
    if not all(isinstance(block, int) for block in full):
        reader.refuse("fullatt_block_indexes", full, "a list of integers")
    rope = _Reader(reader.get("rope_parameters", dict, {}), reader.where, reader.prefix + "rope_parameters.")
    return VisionConfig(
        depth=reader.get("depth", int),
        hidden_size=reader.get("hidden_size", int),
        intermediate_size=reader.get("intermediate_size", int),
        num_heads=reader.get("num_heads", int),
        out_hidden_size=reader.get("out_hidden_size", int),
        full_attention_blocks=tuple(full),
        patch_size=reader.get("patch_size", int, 14),
        temporal_patch_size=reader.get("temporal_patch_size", int, 2),
        in_channels=reader.get("in_channels", int, reader.get("in_chans", int, 3)),
        spatial_merge_size=reader.get("spatial_merge_size", int, 2),
        window_size=reader.get("window_size", int, 112),
        rope_theta=rope.get("rope_theta", float, 10000.0),
        tokens_per_second=reader.get("tokens_per_second", int, 4),
        initializer_range=reader.get("initializer_range", float, 0.02),
    )


def _check(config: BackboneConfig) -> None:
    """Divisibility that the arrays' shapes rely on."""
    text, vision = config.text, config.vision
    for part in (text, vision):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if field.type in ("int", "float") and value <= 0:
                raise UserError(f"field {field.name} is {value}, allowed are positive numbers")
    rules = (
        (text.hidden_size % text.num_heads == 0, "hidden_size must be divisible by num_attention_heads"),
        (text.num_heads % text.num_kv_heads == 0, "num_attention_heads must be divisible by num_key_value_heads"),
        (
            2 * sum(text.mrope_section) == text.head_width,
            f"mrope_section {list(text.mrope_section)} must sum to half the head width ({text.head_width // 2})",
        ),
        (vision.hidden_size % (4 * vision.num_heads) == 0, "vision hidden_size must be divisible by 4 num_heads"),
        (vision.out_hidden_size == text.hidden_size, "vision out_hidden_size must equal hidden_size"),
        (
            vision.window_size % (vision.patch_size * vision.spatial_merge_size) == 0,
            "window_size must be a multiple of patch_size * spatial_merge_size",
        ),
        (
            all(0 <= block < vision.depth for block in vision.full_attention_blocks),
            f"fullatt_block_indexes must lie in 0 … {vision.depth - 1}",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise UserError(message)
