"""The hub's names and layouts of the backbone's tensors, beside ours."""

from __future__ import annotations

import re

import numpy as np

from medvr_jax.models.config import BackboneConfig

# (Hugging Face name, our path, how a tensor is turned); {} is the layer. "kernel": [out, in] → [in, out]; "qkv": the
# outputs split in three; "patch": [D, channels, time, row, column] → [patch_dim, D]; "same": as it is.
Row = tuple[str, str, str]
_HEAD: Row = ("lm_head.weight", "head", "kernel")
_SHARED: tuple[Row, ...] = (
    ("model.embed_tokens.weight", "embedding", "same"),
    ("model.norm.weight", "final_norm", "same"),
    ("model.layers.{}.input_layernorm.weight", "layers.attention_norm", "same"),
    ("model.layers.{}.self_attn.q_proj.weight", "layers.query_kernel", "kernel"),
    ("model.layers.{}.self_attn.q_proj.bias", "layers.query_bias", "same"),
    ("model.layers.{}.self_attn.k_proj.weight", "layers.key_kernel", "kernel"),
    ("model.layers.{}.self_attn.k_proj.bias", "layers.key_bias", "same"),
    ("model.layers.{}.self_attn.v_proj.weight", "layers.value_kernel", "kernel"),
    ("model.layers.{}.self_attn.v_proj.bias", "layers.value_bias", "same"),
    ("model.layers.{}.self_attn.o_proj.weight", "layers.output_kernel", "kernel"),
    ("model.layers.{}.post_attention_layernorm.weight", "layers.mlp_norm", "same"),
    ("model.layers.{}.mlp.gate_proj.weight", "layers.gate_kernel", "kernel"),
    ("model.layers.{}.mlp.up_proj.weight", "layers.up_kernel", "kernel"),
    ("model.layers.{}.mlp.down_proj.weight", "layers.down_kernel", "kernel"),
    ("visual.patch_embed.proj.weight", "vision.patch_kernel", "patch"),
    ("visual.blocks.{}.norm1.weight", "vision.blocks.attention_norm", "same"),
    ("visual.blocks.{}.attn.qkv.weight", "vision.blocks.qkv_kernel", "qkv kernel"),
    ("visual.blocks.{}.attn.qkv.bias", "vision.blocks.qkv_bias", "qkv"),
    ("visual.blocks.{}.attn.proj.weight", "vision.blocks.output_kernel", "kernel"),
    ("visual.blocks.{}.attn.proj.bias", "vision.blocks.output_bias", "same"),
    ("visual.blocks.{}.norm2.weight", "vision.blocks.mlp_norm", "same"),
    ("visual.merger.ln_q.weight", "vision.merger_norm", "same"),
    ("visual.merger.mlp.0.weight", "vision.merger_in_kernel", "kernel"),
    ("visual.merger.mlp.0.bias", "vision.merger_in_bias", "same"),
    ("visual.merger.mlp.2.weight", "vision.merger_out_kernel", "kernel"),
    ("visual.merger.mlp.2.bias", "vision.merger_out_bias", "same"),
)
_VISION_NORM: dict[str, tuple[Row, ...]] = {  # beside the scales, by VisionConfig.norm
    "rms": (),
    "layer": (
        ("visual.blocks.{}.norm1.bias", "vision.blocks.attention_norm_bias", "same"),
        ("visual.blocks.{}.norm2.bias", "vision.blocks.mlp_norm_bias", "same"),
        ("visual.merger.ln_q.bias", "vision.merger_norm_bias", "same"),
    ),
}
_VISION_MLP: dict[str, tuple[Row, ...]] = {  # by VisionConfig.mlp
    "gated_silu": (
        ("visual.blocks.{}.mlp.gate_proj.weight", "vision.blocks.gate_kernel", "kernel"),
        ("visual.blocks.{}.mlp.gate_proj.bias", "vision.blocks.gate_bias", "same"),
        ("visual.blocks.{}.mlp.up_proj.weight", "vision.blocks.up_kernel", "kernel"),
        ("visual.blocks.{}.mlp.up_proj.bias", "vision.blocks.up_bias", "same"),
        ("visual.blocks.{}.mlp.down_proj.weight", "vision.blocks.down_kernel", "kernel"),
        ("visual.blocks.{}.mlp.down_proj.bias", "vision.blocks.down_bias", "same"),
    ),
    "quick_gelu": (
        ("visual.blocks.{}.mlp.fc1.weight", "vision.blocks.up_kernel", "kernel"),
        ("visual.blocks.{}.mlp.fc1.bias", "vision.blocks.up_bias", "same"),
        ("visual.blocks.{}.mlp.fc2.weight", "vision.blocks.down_kernel", "kernel"),
        ("visual.blocks.{}.mlp.fc2.bias", "vision.blocks.down_bias", "same"),
    ),
}
# Newer transformers nest both parts under "model.".
NEWER_NAMES = ((re.compile(r"^model\.language_model\."), "model."), (re.compile(r"^model\.visual\."), "visual."))
STRIP = 64  # rows that a transpose copies at once


def names_of(config: BackboneConfig) -> tuple[Row, ...]:
    """One row for each of the model's parameters; a tied head is none."""
    head = () if config.text.tie_word_embeddings else (_HEAD,)
    return (*_SHARED, *head, *_VISION_NORM[config.vision.norm], *_VISION_MLP[config.vision.mlp])


def canonical(key: str) -> str:
    """The older of a tensor's published names."""
    for pattern, replacement in NEWER_NAMES:
        key = pattern.sub(replacement, key)
    return key


def file_shape(shape: tuple[int, ...], turn: str, config: BackboneConfig) -> tuple[int, ...]:
    """Shape in the file of one layer's parameter of this shape."""
    if turn == "patch":
        vision = config.vision
        return (shape[1], vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    if turn.startswith("qkv"):
        return (shape[-2] * shape[-1], *shape[:-2])
    return shape[::-1] if turn == "kernel" else shape


def width_in_file(shape: tuple[int, ...], turn: str) -> int:
    """Columns of the file's tensor, seen as a matrix, of one layer's parameter of this shape."""
    if transposed(turn):
        return shape[0]
    return shape[1] if turn == "same" and len(shape) == 2 else 1


def transposed(turn: str) -> bool:
    """Whether the file's columns are our first axis and its rows the others: [out, in] and [in, …out]."""
    return turn not in ("same", "qkv")


def from_file(block: np.ndarray, turn: str) -> np.ndarray:
    """File layout [rows, columns] → ours, up to a reshape; also of a part of both."""
    return transposed_copy(block) if transposed(turn) else block


def to_file(value: np.ndarray, turn: str, rows: int) -> np.ndarray:
    """The inverse of `from_file`."""
    return transposed_copy(value.reshape(-1, rows)) if transposed(turn) else value.reshape(rows, -1)


def transposed_copy(matrix: np.ndarray) -> np.ndarray:
    """The transpose, contiguous; made in strips, which is several times as fast as in one go where it is large."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    # NumPy copies bfloat16 element by element through a function call, whole numbers of the same size it does not
    bits = np.dtype(f"u{matrix.dtype.itemsize}")
    source, target = matrix.view(bits), result.view(bits)
    for start in range(0, len(source), STRIP):
        target[:, start : start + STRIP] = source[start : start + STRIP].T
    return result
