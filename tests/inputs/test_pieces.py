"""The text of single tokens against the tokenizer's own decoding of all of them."""

from __future__ import annotations

import pytest

from medvr_jax.inputs.tokenizer import IMAGE_TOKEN, load_tokenizer, token_pieces
from tests.inputs.tiny import TINY


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY)


@pytest.mark.parametrize(
    "text",
    [
        "<think>Look.</think>\n<tool_call>\n{}\n</tool_call><|im_end|>",
        "naïve 肺結節 🫁 \u202e עברית\t\n  two",
        "",
    ],
)
def test_pieces_are_the_text(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = token_pieces(tokenizer, ids)
    assert len(pieces) == len(ids) and "".join(pieces) == text == tokenizer.decode(ids)


def test_a_character_spread_over_tokens_stands_with_its_last(tokenizer):
    ids = tokenizer.encode("a肺b", add_special_tokens=False)
    assert len(ids) == 5  # the tiny vocabulary has no merges: three bytes are three tokens
    assert token_pieces(tokenizer, ids) == ["a", "", "", "肺", "b"]
    for end in range(len(ids) + 1):  # also where sampling stopped in the middle of it, or went on with something else
        assert "".join(token_pieces(tokenizer, ids[:end])) == tokenizer.decode(ids[:end])
    broken = ids[:3] + ids[4:] + ids[1:2] + ids[2:4]
    assert "".join(token_pieces(tokenizer, broken)) == tokenizer.decode(broken)


def test_image_placeholders_and_unknown_ids_are_empty(tokenizer):
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    a = tokenizer.encode("a", add_special_tokens=False)
    assert token_pieces(tokenizer, [image, *a, image, image, *a, 10**6]) == ["", "a", "", "", "a", ""]
