"""Prompts and observations against transformers: text first, then its own tokenizer and template on expanded text."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.synthetic import SyntheticTask
from medvr_jax.errors import UserError
from medvr_jax.inputs.batches import batch_prompts, pad_feature_index, prompt_id
from medvr_jax.inputs.chat import encode_observation, encode_prompt, load_encoder
from medvr_jax.inputs.tokenizer import make_token_tables
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.rope import multimodal_positions
from medvr_jax.rollout.tools import system_prompt, tools_by_name
from tests.inputs.tiny import TINY


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(TINY, "Look.", crop_patches=64)


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (9, 99, 199)).save(buffer, "PNG")
    return buffer.getvalue()


def example(*images: bytes, question: str = "What is in the lesion?", options=("level", "upright")) -> Example:
    return Example("e1", images, question, options, "A", "choice")


def test_prompt_equals_the_template_with_expanded_placeholders(encoder):
    prompt = encode_prompt(example(png(448, 448), png(100, 60)), encoder)
    counts = [len(image.patches) // 4 for image in prompt.images]
    images = "".join(f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>" for n in counts)
    text = (
        f"<|im_start|>system\nLook.<|im_end|>\n<|im_start|>user\n{images}What is in the lesion?\nA. level\nB. upright"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.token_ids.tolist() == encoder.tokenizer.encode(text)
    assert counts[0] == 16 and counts[0] != counts[1]
    is_image = prompt.token_ids == encoder.image_id
    np.testing.assert_array_equal(prompt.feature_index[is_image], np.arange(sum(counts)))
    assert (prompt.feature_index[~is_image] == -1).all()
    assert (prompt.positions[-1] + 1 == prompt.next_position).all()


def test_without_images_options_or_system_text(encoder):
    plain = dataclasses.replace(encoder, system="")
    prompt = encode_prompt(Example("t", (), "How?", (), "so", "open"), plain)
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHow?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompt.token_ids.tolist() == encoder.tokenizer.encode(text)
    assert prompt.images == ()


def test_a_question_cannot_smuggle_an_image_token_in(encoder):
    with pytest.raises(UserError, match="e1.*image_pad"):
        encode_prompt(example(png(64, 64), question="Is <|image_pad|> here?"), encoder)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|endoftext|>"])
def test_texts_cannot_end_their_turn(encoder, token):
    for bad in (example(question=f"Is it?{token}"), example(options=("level", token))):
        with pytest.raises(UserError) as caught:
            encode_prompt(bad, encoder)
        assert f"example e1: question or options: found the text {token}" in str(caught.value)
    with pytest.raises(UserError) as caught:
        load_encoder(TINY, f"Look.{token}")
    assert f"prompt.system: found the text {token}" in str(caught.value)


def test_a_recipe_may_say_the_question_otherwise():
    """Braces of the question's own are left alone."""
    template, option = "\n  {question} \nThink, then answer.", "{letter}) {text}"
    encoder = load_encoder(TINY, "Look.", template=template, option=option)
    asked = example(question="Is {text} or {question} {letter}?", options=("{letter}", "up"))
    text = (
        "<|im_start|>system\nLook.<|im_end|>\n<|im_start|>user\n"
        "\n  Is {text} or {question} {letter}?\nA) {letter}\nB) up \nThink, then answer.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert encode_prompt(asked, encoder).token_ids.tolist() == encoder.tokenizer.encode(text)
    with pytest.raises(UserError, match="prompt.template: found the text <.im_end.>"):
        load_encoder(TINY, "Look.", template="<|im_end|>{question}")


def test_calls_are_no_reserved_texts(encoder):
    text = "Answer <tool_call> or <|im_en|>."
    assert text in encoder.tokenizer.decode(encode_prompt(example(question=text), encoder).token_ids)
    assert load_encoder(TINY, text).system == text


def test_unreadable_image_names_the_example(encoder):
    with pytest.raises(UserError, match="example e1, image 2"):
        encode_prompt(example(png(64, 64), b"broken"), encoder)


def test_observation_continues_the_sequence(encoder):
    prompt = encode_prompt(example(png(448, 448)), encoder)
    sampled = encoder.tokenizer.encode("<think>I zoom in.</think><|im_end|>")
    start = prompt.next_position + len(sampled)
    seen = encode_observation(encoder, start, crop=Image.new("RGB", (168, 168)))
    pads = "<|image_pad|>" * 16
    text = (
        f"\n<|im_start|>user\n<tool_response><|vision_start|>{pads}<|vision_end|></tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert seen.token_ids.tolist() == encoder.tokenizer.encode(text)
    np.testing.assert_array_equal(seen.feature_index[seen.feature_index >= 0], np.arange(16))

    whole = np.concatenate([prompt.token_ids, sampled, seen.token_ids])
    grids = [prompt.images[0].grid, seen.image.grid]
    positions, following = multimodal_positions(whole, grids, image_token_id=encoder.image_id, merge_size=2)
    np.testing.assert_array_equal(positions[-len(seen.token_ids) :], seen.positions)
    assert following == seen.next_position


def test_error_observation_has_text_and_no_image(encoder):
    seen = encode_observation(encoder, 50, error="Error: no box.")
    assert seen.image is None and (seen.feature_index == -1).all()
    assert "<tool_response>Error: no box.</tool_response>" in encoder.tokenizer.decode(seen.token_ids)
    assert seen.positions[0].tolist() == [50, 50, 50] and seen.next_position == 50 + len(seen.token_ids)


def test_full_system_prompts_survive_the_template(encoder):
    for system in (system_prompt(tools_by_name(["image_zoom_in_tool"])), system_prompt({})):
        prompt = encode_prompt(example(png(64, 64)), dataclasses.replace(encoder, system=system))
        assert system in encoder.tokenizer.decode(prompt.token_ids)


def test_batch_splits_off_the_last_token_and_pads(encoder):
    vision = BackboneConfig.from_folder(TINY).vision
    prompts = [
        encode_prompt(example(png(448, 448), png(60, 90)), encoder),
        encode_prompt(example(png(90, 60)), encoder),
    ]
    batch = batch_prompts(prompts, 96, 2, 64, vision)
    assert batch.images.patches.shape == (2, 2, 64, vision.patch_dim)
    for row, prompt in enumerate(prompts):
        n = len(prompt.token_ids) - 1
        np.testing.assert_array_equal(batch.tokens[row, :n], prompt.token_ids[:-1])
        np.testing.assert_array_equal(batch.valid[row], np.arange(96) < n)
        assert batch.last_token[row] == prompt.token_ids[-1]
        assert batch.last_position[row].tolist() == prompt.positions[-1].tolist()
        assert batch.next_position[row] == prompt.next_position == batch.last_position[row, 0] + 1
    first = batch.feature_index[0][batch.feature_index[0] >= 0]
    second_image = len(prompts[0].images[1].patches) // 4
    np.testing.assert_array_equal(first, [*range(16), *range(16, 16 + second_image)])  # S // 4 = 16 per image
    assert batch.prompt_ids.dtype == np.uint32 and batch.prompt_ids[0] == prompt_id("e1")


def test_feature_indices_move_to_padded_images():
    index = np.array([-1, 0, 1, -1, 2, 3, 4, -1])
    np.testing.assert_array_equal(pad_feature_index(index, [2, 3], 10), [-1, 0, 1, -1, 10, 11, 12, -1])


@pytest.mark.parametrize(
    ("bucket", "images", "patches", "field"), [(20, 1, 64, "bucket"), (96, 0, 64, "images"), (96, 1, 32, "patches")]
)
def test_prompts_beyond_their_bucket_are_refused(encoder, bucket, images, patches, field):
    vision = BackboneConfig.from_folder(TINY).vision
    with pytest.raises(UserError, match=f"prompt.{field}"):
        batch_prompts([encode_prompt(example(png(448, 448)), encoder)], bucket, images, patches, vision)


def test_the_bucket_does_not_count_the_last_token(encoder):
    vision = BackboneConfig.from_folder(TINY).vision
    prompt = encode_prompt(example(png(448, 448)), encoder)
    n = len(prompt.token_ids) - 1
    assert batch_prompts([prompt], n, 1, 64, vision).valid.all()
    with pytest.raises(UserError, match=f"of {n} tokens, the last one not counted; prompt.bucket allows {n - 1}$"):
        batch_prompts([prompt], n - 1, 1, 64, vision)


def test_token_tables(encoder):
    vocabulary = BackboneConfig.from_folder(TINY).text.vocab_size
    tables = make_token_tables(encoder.tokenizer, vocabulary)
    size = len(encoder.tokenizer)
    assert vocabulary > size and tables.banned[size:].all()
    banned = {encoder.tokenizer.convert_ids_to_tokens(int(i)) for i in np.flatnonzero(tables.banned[:size])}
    assert banned == {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"}
    for i in range(size):
        text = encoder.tokenizer.decode([i])
        assert tables.opens_list[i] == text.endswith("[") and tables.closes_list[i] == ("]" in text), text
    assert tables.end_of_turn.sum() == 2 and tables.opens_call.sum() == 1 and tables.closes_call.sum() == 1
    call = encoder.tokenizer.encode(
        '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [14, 0, 56, 42]}}</tool_call>'
    )
    assert tables.opens_call[call[0]] and tables.closes_call[call[-1]]
    assert tables.opens_list[call].sum() == 1 and tables.closes_list[call].sum() == 1
    inside = call[np.flatnonzero(tables.opens_list[call])[0] + 1 : np.flatnonzero(tables.closes_list[call])[0]]
    assert [encoder.tokenizer.decode([i]) for i in inside] == list("14, 0, 56, 42")  # one token per digit
    with pytest.raises(UserError, match="vocab_size"):
        make_token_tables(encoder.tokenizer, size - 1)


def test_prompts_of_the_task_are_short(encoder):
    prompt = encode_prompt(SyntheticTask().example("test", 0), encoder)
    assert len(prompt.token_ids) < 100 and len(prompt.images[0].patches) == 64
