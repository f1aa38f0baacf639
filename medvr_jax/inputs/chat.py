"""Chat turns -> token ids, positions and image placements, for the prompt and for what a tool returns.

The prompt is rendered with the folder's own chat template. What the policy sampled is never decoded and encoded again:
an observation holds only the tokens between one sampled turn and the next.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase, Qwen2VLImageProcessorPil

from medvr_jax.datasets.example import Example
from medvr_jax.errors import UserError
from medvr_jax.inputs.images import PreparedImage, load_image, load_processor, prepare_image
from medvr_jax.inputs.tokenizer import (
    END_OF_TURN_TOKEN,
    IMAGE_TOKEN,
    VISION_END_TOKEN,
    VISION_START_TOKEN,
    load_tokenizer,
    reserved_texts,
)
from medvr_jax.models.rope import multimodal_positions


@dataclasses.dataclass(frozen=True)
class Encoder:
    """All that turns text and images into model inputs: tokenizer, image processor and the prompt's texts.

    `template` is the user's text around the {question}, `option` a line of its options with {letter} and {text}. The
    pixel limits are the processor's own when they are None. `prompt_patches` and `crop_patches` are the patch
    buckets that images and crops must fit.
    """

    tokenizer: PreTrainedTokenizerBase
    processor: Qwen2VLImageProcessorPil
    system: str
    template: str = "{question}"
    option: str = "{letter}. {text}"
    prompt_patches: int | None = None
    prompt_min_pixels: int | None = None
    prompt_max_pixels: int | None = None
    crop_patches: int | None = None
    crop_min_pixels: int | None = None
    crop_max_pixels: int | None = None

    @functools.cached_property
    def image_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    @functools.cached_property
    def end_of_turn_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(END_OF_TURN_TOKEN)

    @functools.cached_property
    def reserved(self) -> frozenset[str]:
        return reserved_texts(self.tokenizer)

    @property
    def merge_size(self) -> int:
        return self.processor.merge_size

    def user_text(self, example: Example) -> str:
        """What the user says beside the images."""
        return self.template.replace("{question}", example.question_text(self.option))


def load_encoder(folder: str | Path, system: str, **settings: str | int | None) -> Encoder:
    """The encoder of a Hugging Face folder; `settings` are the further fields of Encoder."""
    try:
        encoder = Encoder(load_tokenizer(folder), load_processor(folder), system, **settings)
    except UserError:
        raise
    except Exception as error:  # transformers raises nearly anything on damaged files
        raise UserError(
            f"model.path: tokenizer or image processor of {folder} cannot be read ({type(error).__name__}: {error})"
        ) from error
    if not encoder.tokenizer.chat_template:
        raise UserError(f"model.path: {folder} holds no chat template; chat_template.jinja is needed")
    for name in ("system", "template", "option"):
        refuse_reserved(encoder, getattr(encoder, name), f"prompt.{name}")
    try:
        encoder.tokenizer.apply_chat_template([{"role": "user", "content": []}], tokenize=False)
    except Exception as error:  # Jinja's, or whatever the template raises
        raise UserError(
            f"model.path: the chat template of {folder} cannot be used ({type(error).__name__}: {error})"
        ) from error
    return encoder


def refuse_reserved(encoder: Encoder, text: str, where: str) -> None:
    """UserError if a text holds one that the tokenizer would take for an end of turn, an image or the like."""
    for token in sorted(encoder.reserved):
        if token in text:
            raise UserError(f"{where}: found the text {token}, which the model's chat format reserves")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A whole prompt of n tokens, the generation prompt included.

    token_ids [n] int32, positions [n, 3] int32, feature_index [n] int32: which visual token of all the images, counted
    through without padding, stands there (-1 = text). next_position: the position of the first sampled token.
    """

    example: Example
    token_ids: np.ndarray
    positions: np.ndarray
    next_position: int
    feature_index: np.ndarray
    images: tuple[PreparedImage, ...]


@dataclasses.dataclass(frozen=True)
class Observation:
    """The tokens between two sampled turns; arrays as in Prompt, feature_index counted within this one's image."""

    token_ids: np.ndarray
    positions: np.ndarray
    next_position: int
    feature_index: np.ndarray
    image: PreparedImage | None


def encode_prompt(example: Example, encoder: Encoder) -> Prompt:
    """System turn, then one user turn with the images, the question and its options, then the generation prompt."""
    images = tuple(
        prepare_image(
            encoder.processor,
            load_image(source, name=image_name(example, i)),
            max_pixels=encoder.prompt_max_pixels,
            min_pixels=encoder.prompt_min_pixels,
            max_patches=encoder.prompt_patches,
            name=image_name(example, i),
        )
        for i, source in enumerate(example.images)
    )
    ids = prompt_ids(example, encoder)
    counts = np.ones(len(ids), np.int64)
    counts[ids == encoder.image_id] = [image.features(encoder.merge_size) for image in images]
    token_ids, positions, next_position, feature_index = _place(np.repeat(ids, counts), images, 0, encoder)
    return Prompt(example, token_ids, positions, next_position, feature_index, images)


def prompt_ids(example: Example, encoder: Encoder) -> np.ndarray:
    """The prompt's token ids [n] int32 with one placeholder for each image."""
    refuse_reserved(encoder, example.question_text(), f"example {example.id}: question or options")
    content = [{"type": "image"} for _ in example.images] + [{"type": "text", "text": encoder.user_text(example)}]
    messages = [{"role": "user", "content": content}]
    if encoder.system:
        messages.insert(0, {"role": "system", "content": encoder.system})
    text = encoder.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return _tokens(encoder, text)


def encode_prompts(examples: Sequence[Example], encoder: Encoder) -> list[Prompt]:
    """`encode_prompt` of several examples, on threads: decoding and resizing images leave the interpreter's lock."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda example: encode_prompt(example, encoder), examples))


def encode_observation(
    encoder: Encoder, start: int, *, crop: Image.Image | None = None, error: str = ""
) -> Observation:
    """The user turn that returns a crop or an error text, up to the next turn's generation prompt.

    It follows a sampled <|im_end|>; `start` is the position after that token.
    """
    before, after = (
        "\n<|im_start|>user\n<tool_response>",
        f"</tool_response>{END_OF_TURN_TOKEN}\n<|im_start|>assistant\n",
    )
    if crop is None:
        image, ids = None, _tokens(encoder, before + error + after)
    else:
        image = prepare_image(
            encoder.processor,
            crop,
            max_pixels=encoder.crop_max_pixels,
            min_pixels=encoder.crop_min_pixels,
            max_patches=encoder.crop_patches,
            name="crop",
        )
        pads = np.full(image.features(encoder.merge_size), encoder.image_id, np.int32)
        opening, closing = _tokens(encoder, before + VISION_START_TOKEN), _tokens(encoder, VISION_END_TOKEN + after)
        ids = np.concatenate([opening, pads, closing])
    return Observation(*_place(ids, (image,) if image else (), start, encoder), image)


def _tokens(encoder: Encoder, text: str) -> np.ndarray:
    return np.asarray(encoder.tokenizer.encode(text, add_special_tokens=False), np.int32)


def _place(
    ids: np.ndarray, images: tuple[PreparedImage, ...], start: int, encoder: Encoder
) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """(token_ids, positions, next_position, feature_index) of tokens whose image placeholders are already expanded."""
    positions, next_position = multimodal_positions(
        ids, [image.grid for image in images], start, image_token_id=encoder.image_id, merge_size=encoder.merge_size
    )
    is_image = ids == encoder.image_id
    feature_index = np.where(is_image, np.cumsum(is_image) - 1, -1).astype(np.int32)
    return ids.astype(np.int32), positions, next_position, feature_index


def image_name(example: Example, index: int) -> str:
    """What messages call an example's image."""
    source = example.images[index]
    return f"example {example.id}, image {index + 1}" if isinstance(source, bytes) else str(source)
