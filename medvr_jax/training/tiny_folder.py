"""The tiny checkpoint's folder without its weights: tokenizer, chat template, image processor, model configuration.

It has the layout of a hub Qwen2.5-VL folder, small enough to live in the repository. The tokenizer is a byte-level BPE
with Qwen2.5's special tokens and pre-tokenisation (digits singly), trained on the few sentences below.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from medvr_jax.datasets.synthetic import CLASSES, FAINT_LEVELS, HABIT_BOXES, LESION_WORD, MARKER_WORD, NOTHING, question
from medvr_jax.models.config import BackboneConfig, TextConfig, VisionConfig
from medvr_jax.rollout.tools.window import Window
from medvr_jax.rollout.tools.zoom import ZoomIn

# The system prompts of the warm-up; the quick start's configuration has the same.
TINY_ZOOM_SYSTEM = "Zoom in, then answer."
TINY_WINDOW_SYSTEM = "Change the contrast, then answer."
TINY_DIRECT_SYSTEM = "Answer at once."

# Qwen2.5's added tokens in their order; the flag says whether the tokenizer calls them special.
ADDED_TOKENS = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<|object_ref_start|>", True),
    ("<|object_ref_end|>", True),
    ("<|box_start|>", True),
    ("<|box_end|>", True),
    ("<|quad_start|>", True),
    ("<|quad_end|>", True),
    ("<|vision_start|>", True),
    ("<|vision_end|>", True),
    ("<|vision_pad|>", True),
    ("<|image_pad|>", True),
    ("<|video_pad|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<|fim_prefix|>", False),
    ("<|fim_middle|>", False),
    ("<|fim_suffix|>", False),
    ("<|fim_pad|>", False),
    ("<|repo_name|>", False),
    ("<|file_sep|>", False),
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
# What the warm-up policy thinks before it looks: with a zoom nothing much, with a habit where it is going to look, with
# a window how bright the lesion is.
LOOK_THOUGHTS = ("I look closer.", "I zoom in.")
SEARCH_PLACE = "spot"  # beside the habit's places: wherever something is to be seen
LEVEL_WORDS = ("black", "dark", "dim", "grey", "bright", "white")
# General sentences, so that a user's own text does not fall into single bytes at once.
_SENTENCES = (
    "The image shows a scan of the chest, the brain, the liver or the skin.",
    "Which organ is shown in this image? Which modality was used to take this image?",
    "Is there a lesion, a mass, a nodule or a fracture in the left or right lung?",
    "yes no none normal abnormal left right upper lower centre small large bright dark",
    "Error: the tool call is not valid JSON. bbox_2d must be a list of four numbers.",
)


def level_thought(level: int) -> str:
    """The thought before a window, on something of this one of `FAINT_LEVELS`."""
    return f"It looks {LEVEL_WORDS[level]}."


def place_thought(place: str) -> str:
    """The thought before a zoom on one of the habit's places, or on `SEARCH_PLACE`."""
    return f"I look closer at the {place}."


def seen_thought(text: str) -> str:
    """The thought of the answering turn."""
    return f"It shows {text}."


@dataclasses.dataclass(frozen=True)
class Speech:
    """What a policy with one tool says and is told: system prompt, thoughts before a look, an example of a call, the
    options of its questions."""

    system: str
    thoughts: tuple[str, ...]
    call: str
    options: tuple[str, ...] = CLASSES


_ZOOM_CALL = json.dumps({"name": ZoomIn.name, "arguments": {"bbox_2d": [0, 14, 42, 56]}})
ZOOM_SPEECH = Speech(TINY_ZOOM_SYSTEM, LOOK_THOUGHTS, _ZOOM_CALL)
HABIT_SPEECH = Speech(
    TINY_ZOOM_SYSTEM,
    tuple(map(place_thought, (*HABIT_BOXES, SEARCH_PLACE, MARKER_WORD))),
    _ZOOM_CALL,
    (NOTHING, *CLASSES[:3]),
)
WINDOW_SPEECH = Speech(
    TINY_WINDOW_SYSTEM,
    tuple(map(level_thought, range(len(FAINT_LEVELS)))),
    json.dumps({"name": Window.name, "arguments": {"window": [54, 58]}}),
)


def write_tiny_folder(
    folder: str | Path, speech: Speech, *, vocabulary: int, initializer_range: float, text: dict, vision: dict
) -> BackboneConfig:
    """Writes everything but the weights; returns the model configuration.

    speech: what the tokenizer learns beside the task's text. vocabulary: BPE tokens before the added ones. text,
    vision: shape fields of TextConfig and VisionConfig; the embedding gets 2 % more rows than there are tokens, rounded
    up to a multiple of 64, as the real models have.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(vocabulary, speech)
    tokenizer.save_pretrained(folder)
    ids = tokenizer.get_vocab()
    config = BackboneConfig(
        text=TextConfig(
            vocab_size=-(-int(len(tokenizer) * 1.02) // 64) * 64,
            bos_token_id=ids["<|endoftext|>"],
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
            initializer_range=initializer_range,
            **text,
        ),
        vision=VisionConfig(out_hidden_size=text["hidden_size"], initializer_range=initializer_range, **vision),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    _write_json(folder / "config.json", config.to_json_dict())
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
            "do_sample": True,
            "temperature": 1.0,
        },
    )
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112},
            "patch_size": config.vision.patch_size,
            "temporal_patch_size": config.vision.temporal_patch_size,
            "merge_size": config.vision.spatial_merge_size,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )
    return config


def train_tokenizer(vocabulary: int, speech: Speech = ZOOM_SPEECH) -> Qwen2Tokenizer:
    """A byte-level BPE of `vocabulary` tokens, then Qwen2.5's added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_corpus(speech), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    result = Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    # Qwen2Tokenizer adds <|endoftext|> by itself; the others follow in Qwen2.5's order.
    result.add_tokens([AddedToken(t, special=special, normalized=False) for t, special in ADDED_TOKENS])
    result.eos_token = "<|im_end|>"
    result.chat_template = CHAT_TEMPLATE
    return result


def _corpus(speech: Speech) -> Iterator[str]:
    """The task's own text several times over, so that its words become single tokens, then the general sentences."""
    task = [
        "user\n<tool_response></tool_response>\n",
        "system\nassistant\n",
        speech.system,
        TINY_DIRECT_SYSTEM,
        *(question(word) for word in (LESION_WORD, MARKER_WORD)),
        *(f"\n{letter}. {text}" for letter, text in zip("ABCD", speech.options, strict=True)),
        *(f"<think>{thought}</think>\n{speech.call}" for thought in speech.thoughts),
        *(
            f"<think>{seen_thought(text)}</think><answer>{letter}</answer>"
            for letter, text in zip("ABCD", speech.options, strict=True)
        ),
    ]
    for _ in range(8):
        yield from task
    yield from _SENTENCES


def _write_json(path: Path, fields: dict) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
