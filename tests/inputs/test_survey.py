"""What prompts need, found from headers and texts alone; and the sizes chosen for batches."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from medvr_jax.datasets.example import Example
from medvr_jax.errors import UserError
from medvr_jax.inputs.chat import encode_prompt, load_encoder
from medvr_jax.inputs.survey import STEP, prompt_sizes, room_for
from tests.inputs.tiny import TINY


def example(number: int, *sizes: tuple[int, int]) -> Example:
    images = []
    for size in sizes:
        file = io.BytesIO()
        Image.new("RGB", size).save(file, "PNG")
        images.append(file.getvalue())
    return Example(str(number), tuple(images), "Where? " * (number % 3 + 1), ("left", "right"), "A", "choice")


def test_room_is_what_encoding_takes() -> None:
    encoder = load_encoder(TINY, "Look.", prompt_patches=64, prompt_min_pixels=28 * 28, prompt_max_pixels=112 * 112)
    shapes = [((112, 112),), ((30, 500),), ((900, 35), (64, 80)), ((1000, 700),), ()]
    for number, sizes in enumerate(shapes):
        found = room_for(example(number, *sizes), encoder)
        prompt = encode_prompt(example(number, *sizes), encoder)
        patches = max((len(image.patches) for image in prompt.images), default=0)
        assert found == (len(prompt.token_ids) - 1, patches)


def test_an_image_without_a_readable_header_is_refused() -> None:
    encoder = load_encoder(TINY, "Look.", prompt_patches=64)
    with pytest.raises(UserError, match="example e, image 1: not a readable image"):
        room_for(Example("e", (b"nothing",), "Where?", (), "left", "open"), encoder)


def padded(needed: np.ndarray, sizes: tuple[tuple[int, int], ...]) -> float:
    """Tokens of all batches, each in the first size that holds it."""
    return sum(next(p for p, s in sizes if tokens <= p and patches <= s) for tokens, patches in needed.tolist())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [2, 3, 4])
def test_sizes_pad_the_least(seed: int, count: int) -> None:
    """Against all choices of so many sizes out of those that occur."""
    rng = np.random.default_rng(seed)
    tokens = rng.choice([20, 45, 100, 230, 250], 12)
    needed = np.stack([tokens, 4 * (tokens // 5)], axis=1)
    largest = (512, 256)
    sizes = prompt_sizes(needed, largest, count=count, merge_unit=4)
    assert len(sizes) <= count and sizes[-1] == (256, 200) and list(sizes) == sorted(sizes)
    assert all(p % STEP == 0 and s % 4 == 0 for p, s in sizes)
    every = sorted({(int(-(-t // STEP) * STEP), int(s)) for t, s in needed.tolist()})
    best = min(
        padded(needed, (*chosen, every[-1])) for k in range(count) for chosen in itertools.combinations(every[:-1], k)
    )
    assert padded(needed, sizes) == best


def test_one_size_for_data_that_is_alike() -> None:
    needed = np.array([[60, 64]] * 5)
    assert prompt_sizes(needed, (96, 64), count=2, merge_unit=4) == ((64, 64),)
    assert prompt_sizes(needed, (64, 64), count=3, merge_unit=4) == ((64, 64),)
    assert prompt_sizes(needed, (96, 64), count=1, merge_unit=4) == ((96, 64),)
    assert prompt_sizes(np.zeros((0, 2)), (96, 64), count=2, merge_unit=4) == ((96, 64),)
