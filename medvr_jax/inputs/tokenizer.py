"""The folder's tokenizer, and the boolean tables over the vocabulary that the sampling loop asks."""

from __future__ import annotations

import codecs
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from medvr_jax.errors import UserError

IMAGE_TOKEN = "<|image_pad|>"
VIDEO_TOKEN = "<|video_pad|>"
VISION_START_TOKEN = "<|vision_start|>"
VISION_END_TOKEN = "<|vision_end|>"
END_OF_TURN_TOKEN = "<|im_end|>"
END_OF_TEXT_TOKEN = "<|endoftext|>"
OPEN_CALL_TOKEN = "<tool_call>"
CLOSE_CALL_TOKEN = "</tool_call>"
NEEDED_TOKENS = (
    IMAGE_TOKEN,
    VIDEO_TOKEN,
    VISION_START_TOKEN,
    VISION_END_TOKEN,
    END_OF_TURN_TOKEN,
    END_OF_TEXT_TOKEN,
    OPEN_CALL_TOKEN,
    CLOSE_CALL_TOKEN,
)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The Hugging Face tokenizer of a folder; refused when it lacks a token that the rollout needs."""
    if not _holds(folder, "tokenizer_config.json"):
        raise UserError(f"model.path: no tokenizer_config.json in {folder}; a Hugging Face folder is needed")
    if not _holds(folder, "tokenizer.json") and not _holds(folder, "vocab.json", "merges.txt"):
        raise UserError(f"model.path: no tokenizer.json in {folder}, nor vocab.json with merges.txt; one is needed")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    missing = [token for token in NEEDED_TOKENS if token not in tokenizer.get_vocab()]
    if missing:
        raise UserError(f"model.path: the tokenizer of {folder} lacks the single token {missing[0]}")
    return tokenizer


def _holds(folder: str | Path, *names: str) -> bool:
    return all(os.path.isfile(os.path.join(folder, name)) for name in names)


def reserved_texts(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """The texts that mean something to the model and so must not come from data; <tool_call> is none of them."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(special | {IMAGE_TOKEN})


@dataclasses.dataclass(frozen=True)
class TokenTables:
    """Facts about every token id, each an array [V] of bool over the model's (padded) vocabulary."""

    banned: np.ndarray  # never sampled: vision placeholders and ids beyond the tokenizer
    end_of_turn: np.ndarray
    opens_call: np.ndarray
    closes_call: np.ndarray
    opens_list: np.ndarray  # the token's text ends with "[": coordinates follow
    closes_list: np.ndarray  # the token's text holds a "]"
    end_of_turn_id: int  # <|im_end|>: the only end after which a turn may be answered
    image_id: int


def make_token_tables(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> TokenTables:
    """The tables for a model with `vocabulary` rows in its embedding."""
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"model.path: the tokenizer has {len(tokenizer)} tokens but the model's vocab_size is {vocabulary}"
        )
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in NEEDED_TOKENS}

    def only(*tokens: str) -> np.ndarray:
        table = np.zeros(vocabulary, dtype=bool)
        table[[ids[token] for token in tokens]] = True
        return table

    known = np.zeros(vocabulary, dtype=bool)
    opens_list = np.zeros(vocabulary, dtype=bool)
    closes_list = np.zeros(vocabulary, dtype=bool)
    for text, token_id in tokenizer.get_vocab().items():  # byte-level texts: brackets stand for themselves
        known[token_id] = True
        opens_list[token_id] = text.endswith("[")
        closes_list[token_id] = "]" in text
    return TokenTables(
        banned=~known | only(IMAGE_TOKEN, VIDEO_TOKEN, VISION_START_TOKEN, VISION_END_TOKEN),
        end_of_turn=only(END_OF_TURN_TOKEN, END_OF_TEXT_TOKEN),
        opens_call=only(OPEN_CALL_TOKEN),
        closes_call=only(CLOSE_CALL_TOKEN),
        opens_list=opens_list,
        closes_list=closes_list,
        end_of_turn_id=ids[END_OF_TURN_TOKEN],
        image_id=ids[IMAGE_TOKEN],
    )


def token_pieces(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """The text of each token; together they are `tokenizer.decode(token_ids)` without image placeholders.

    A character whose bytes are spread over tokens stands with the last of them, the others are empty there.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    names = tokenizer.convert_ids_to_tokens([int(token_id) for token_id in token_ids])
    pieces = ["" if name is None or name == IMAGE_TOKEN else decoder.decode(_token_bytes(name)) for name in names]
    if pieces:
        pieces[-1] += decoder.decode(b"", final=True)
    return pieces


def _token_bytes(name: str) -> bytes:
    """The bytes of a token, which a byte-level vocabulary writes as characters of `_BYTES`; added tokens are text."""
    if all(character in _BYTES for character in name):
        return bytes(_BYTES[character] for character in name)
    return name.encode()


def _byte_characters() -> dict[str, int]:
    """Character -> byte, as GPT-2's byte-level vocabularies have it: printable Latin-1 stands for itself, the other
    bytes are written as the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_characters()
