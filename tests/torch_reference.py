"""The reference for the backbone's tests: small random Qwen2.5-VL and Qwen2-VL models of transformers, in folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

if not torch.cuda.is_available():
    # A CUDA build of torch without CUDA's libraries dies in this call, which transformers makes for every mask.
    torch.cuda.is_current_stream_capturing = lambda: False

# Token ids of the small vocabulary below.
IMAGE, VIDEO, VISION_START, VISION_END = 500, 501, 502, 503

TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    "bos_token_id": None,
    "eos_token_id": None,
}
VISION = {
    "depth": 4,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_heads": 2,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [1, 3],
    "window_size": 112,
}
QWEN2_VISION = {"depth": 3, "embed_dim": 64, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 64}

Config = Qwen2_5_VLConfig | Qwen2VLConfig


def small_config(
    text: dict | None = None, vision: dict | None = None, tied: bool = False, model_type: str = "qwen2_5_vl"
) -> Config:
    """A small configuration; `text` and `vision` override single fields."""
    make, tower = {"qwen2_5_vl": (Qwen2_5_VLConfig, VISION), "qwen2_vl": (Qwen2VLConfig, QWEN2_VISION)}[model_type]
    return make(
        text_config=TEXT | (text or {}),
        vision_config=tower | (vision or {}),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=tied,
    )


def random_model(config: Config, seed: int = 0) -> torch.nn.Module:
    """A float32 model whose every parameter, norms and biases too, is far from its initial value.

    The spread falls with the width, so that logits and attention scores have the same spread at any width.
    """
    torch.manual_seed(seed)
    spread = 0.15 * (64 / config.text_config.hidden_size) ** 0.5
    is_qwen2 = isinstance(config, Qwen2VLConfig)
    model = (Qwen2VLForConditionalGeneration if is_qwen2 else Qwen2_5_VLForConditionalGeneration)(config)
    model = model.eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            scale = name.endswith("weight") and ("norm" in name or "ln_q" in name)
            parameter.copy_(1 + 0.2 * noise if scale else spread * noise)
    return model


def save_random_model(folder: str | Path, config: Config | None = None, seed: int = 0) -> Path:
    """Saves a random model as transformers saves it; returns the folder."""
    random_model(config or small_config(), seed).save_pretrained(folder)
    return Path(folder)
