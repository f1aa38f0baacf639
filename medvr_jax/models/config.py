"""What the config.json of a Qwen2.5-VL or Qwen2-VL folder says, as frozen dataclasses, and back again.

Not the configuration of a run (see configs/): only the shape of the backbone. The published layouts themselves are in
config_layouts.py.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from medvr_jax.errors import UserError
from medvr_jax.models.config_layouts import MODEL_TYPES, Reader, read_text, write_text


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. `full_attention_blocks` are the blocks that see the whole image; the others see windows.

    norm: "rms" or "layer" (with biases); mlp: "gated_silu" (gate, up, down) or "quick_gelu" (up, down).
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    full_attention_blocks: tuple[int, ...]
    norm: str = "rms"
    mlp: str = "gated_silu"
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
    def has_windows(self) -> bool:
        """Whether any block sees windows."""
        return len(set(self.full_attention_blocks)) < self.depth

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
    model_type: str = "qwen2_5_vl"

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
        if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
            raise UserError(f"{where}: model_type is {model_type!r}, allowed are {', '.join(MODEL_TYPES)}")
        nested = fields.get("text_config")
        text = Reader(nested if isinstance(nested, dict) else fields, where, "text_config." if nested else "")
        top = Reader(fields, where, "")
        vision = Reader(top.get("vision_config", dict), where, "vision_config.")
        tied = bool(fields.get("tie_word_embeddings", False) or text.fields.get("tie_word_embeddings", False))
        parts: dict[str, Any] = {
            "text": TextConfig(tie_word_embeddings=tied, **read_text(text)),
            "vision": VisionConfig(**MODEL_TYPES[model_type].read_vision(vision)),
            "model_type": model_type,
        }
        ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        parts |= {name: top.get(name, int) for name in ids}
        try:
            return cls(**parts)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def to_json_dict(self) -> dict[str, Any]:
        """config.json in the layout of the hub's folders of this model type (decoder fields at the top level)."""
        layout = MODEL_TYPES[self.model_type]
        return {
            "architectures": [layout.architecture],
            "model_type": self.model_type,
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            **write_text(self.text),
            "vision_config": layout.write_vision(self.vision),
        }


def _check(config: BackboneConfig) -> None:
    """Divisibility that the arrays' shapes rely on, and a tower that the model type can have."""
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
            not vision.has_windows or vision.window_size % (vision.patch_size * vision.spatial_merge_size) == 0,
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
    layout = MODEL_TYPES[config.model_type]
    writable = VisionConfig(**layout.read_vision(Reader(layout.write_vision(vision), "vision_config", "")))
    for field in dataclasses.fields(VisionConfig):
        found, needed = getattr(vision, field.name), getattr(writable, field.name)
        if found != needed:
            raise UserError(f"vision {field.name} is {found!r}, a {config.model_type} of this shape has {needed!r}")
