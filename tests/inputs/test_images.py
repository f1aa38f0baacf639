"""Images of every kind become RGB and patches as transformers makes them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from medvr_jax.errors import UserError
from medvr_jax.inputs.images import load_image, load_original, load_processor, pack_images, prepare_image
from medvr_jax.models.config import BackboneConfig
from tests.inputs.tiny import TINY


@pytest.fixture(scope="module")
def processor():
    return load_processor(TINY)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr"])
def test_any_mode_becomes_rgb(mode):
    ramp = np.linspace(0, 255, 64).reshape(8, 8)
    if mode in ("I", "F"):
        image = Image.fromarray((ramp * 100).astype({"I": np.int32, "F": np.float32}[mode]))
    elif mode == "I;16":
        image = Image.fromarray((ramp * 100).astype(np.uint16))
    else:
        image = Image.fromarray(ramp.astype(np.uint8)).convert(mode)
    loaded = load_image(encoded(image, "TIFF"))
    assert loaded.mode == "RGB" and loaded.size == (8, 8)
    values = np.asarray(loaded)[..., 0]
    assert values[0, 0] < 10 and values[-1, -1] > 245  # deep grey is scaled, not clipped


def test_levels_keep_what_the_eight_bits_round_away():
    """Of a 16-bit file its 65,536 values as fractions of the 256 that are shown; of others just these."""
    values = np.random.default_rng(0).integers(300, 60_000, (40, 30)).astype(np.uint16)
    original = load_original(encoded(Image.fromarray(values)))
    exact = (values.astype(np.float64) - values.min()) * 255 / (int(values.max()) - int(values.min()))
    np.testing.assert_allclose(original.levels, exact, atol=1e-4)
    assert len(np.unique(original.levels)) > 1000
    np.testing.assert_array_equal(np.asarray(original.shown)[..., 0], np.round(exact))
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8))
    original = load_original(encoded(colours))
    np.testing.assert_array_equal(original.levels, np.asarray(colours))
    assert original.levels.dtype == np.float32


@pytest.mark.parametrize("data", [b"", b"not an image", encoded(Image.new("RGB", (64, 64), 9))[:60]])
def test_unreadable_bytes_name_the_image(data):
    with pytest.raises(UserError, match="example 7"):
        load_image(data, name="example 7")


def test_unreadable_path_names_the_file(tmp_path):
    with pytest.raises(UserError, match="gone.png"):
        load_image(tmp_path / "gone.png")


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
@pytest.mark.parametrize("size", [(200, 300), (224, 168), (61, 30)], ids=["smaller", "as it is", "larger"])
def test_patches_equal_the_processor_and_sizes_are_recorded(processor, size, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    prepared = prepare_image(processor, image, max_pixels=50_000)
    truth = processor(images=[image], size={"longest_edge": 50_000, "shortest_edge": 3136}, return_tensors="np")
    np.testing.assert_array_equal(prepared.patches, truth["pixel_values"])
    assert prepared.grid == tuple(truth["image_grid_thw"][0])
    assert prepared.original_size == size
    assert (prepared.resized_size == size) == (size == (224, 168))
    assert prepared.resized_size == (prepared.grid[2] * 14, prepared.grid[1] * 14)


def test_any_shape_fits_the_patch_bucket(processor):
    rng = np.random.default_rng(1)
    shapes = [(1, 100), (100, 1), (28, 2800), (3000, 40), *rng.integers(20, 700, (60, 2)).tolist()]
    for width, height in shapes:
        prepared = prepare_image(
            processor, Image.new("RGB", (width, height)), min_pixels=12544, max_pixels=12544, max_patches=64
        )
        assert len(prepared.patches) <= 64 and len(prepared.patches) % 4 == 0


def test_too_elongated_is_the_users_error(processor):
    with pytest.raises(UserError, match="scan.png"):
        prepare_image(processor, Image.new("RGB", (900, 2)), name="scan.png")


def test_packing_pads_and_keeps_empty_rows(processor):
    vision = BackboneConfig.from_folder(TINY).vision
    small = prepare_image(processor, Image.new("RGB", (60, 80), (200, 10, 10)))
    large = prepare_image(processor, Image.new("RGB", (448, 448), (1, 2, 3)))
    batch = pack_images([small, None, large], 64, vision)
    assert batch.patches.shape == (3, 64, vision.patch_dim) and batch.patches.dtype == np.float32
    np.testing.assert_array_equal(batch.valid.sum(1), [len(small.patches), 0, 64])
    np.testing.assert_array_equal(batch.patches[0, : len(small.patches)], small.patches)
    assert not batch.patches[1].any()
    assert pack_images([], 64, vision).patches.shape == (0, 64, vision.patch_dim)
