"""Prompts of a wished length, with images or without."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from medvr_jax.datasets.example import Example
from medvr_jax.inputs.chat import Encoder, Prompt, encode_prompt


def make_image(side: int, seed: int) -> bytes:
    """A square PNG of coarse noise."""
    cells = np.random.default_rng(seed).integers(0, 256, (side // 16, side // 16, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def make_prompt(encoder: Encoder, tokens: int, *, images: int = 1, image_side: int = 1456, seed: int = 0) -> Prompt:
    """A prompt of exactly `tokens` tokens, the generation prompt included; the question is as long as that needs.

    AssertionError where the images alone are longer.
    """
    pictures = tuple(make_image(image_side, seed + i) for i in range(images))

    def encode(words: int) -> Prompt:
        question = "Where is the lesion?" + " the" * words
        return encode_prompt(Example(f"prompt {seed}", pictures, question, (), "A", "choice"), encoder)

    first = len(encode(0).token_ids)
    assert first <= tokens, f"{images} images need {first} tokens"
    found = encode(tokens - first)
    assert len(found.token_ids) == tokens, "one word of the filler is one token"
    return found


def make_crops(count: int, side: int) -> list[Image.Image]:
    """Different square pictures of about this side."""
    return [Image.open(io.BytesIO(make_image(side + 76, 1000 + i))).convert("RGB") for i in range(count)]
