"""The windowing tool: its arithmetic against a formula in float64, what models write, and beside the zoom."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from medvr_jax.datasets.synthetic import SyntheticTask
from medvr_jax.inputs.chat import encode_observation, encode_prompt, load_encoder
from medvr_jax.inputs.images import OriginalImage, PreparedImage, load_original
from medvr_jax.rollout.state import ACTIVE, BASE, TURN_ENDED
from medvr_jax.rollout.tool_registry import TOOLS
from medvr_jax.rollout.tools import ToolResult, parse_tool_call, run_tool_call, system_prompt, tools_by_name
from medvr_jax.rollout.turns import Sampled, TurnServer
from tests.inputs.tiny import TINY

NAME, ZOOM = "image_window_tool", "image_zoom_in_tool"
SEEN = PreparedImage(np.zeros((8, 1), np.float32), (1, 4, 8), resized_size=(112, 56), original_size=(200, 100))
GREY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 200), dtype=np.uint8))
FEATURES = 16  # of a crop


def text_of(arguments: object, name: str = NAME) -> str:
    return f"<think>x</think><tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call><|im_end|>"


def run(window: object, original: OriginalImage) -> ToolResult:
    parsed = parse_tool_call(text_of({"window": window}))
    assert parsed is not None
    return run_tool_call(parsed, tools_by_name([NAME]), original, SEEN)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def by_the_formula(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """float64: a straight line from `low` at 0 to `high` at 255."""
    return np.interp(np.asarray(values, np.float64), [low, high], [0.0, 255.0])


@pytest.mark.parametrize("window", [[40, 200], [0, 255], [99.5, 103.25], [-50, 300], [200, 1e9], [-1e308, 1e308]])
@pytest.mark.parametrize("kind", ["L", "RGB", "I;16", "F"])
def test_the_window_is_the_formula_at_full_depth(kind: str, window: list[float]) -> None:
    """Of a 16-bit file or one of floats the digits count that its eight bits round away."""
    rng = np.random.default_rng(1)
    if kind in ("L", "RGB"):
        pixels = rng.integers(0, 256, (30, 40, 3) if kind == "RGB" else (30, 40)).astype(np.uint8)
        levels, original = pixels.astype(np.float64), load_original(png(pixels))
        if kind == "L":
            levels = np.repeat(levels[..., None], 3, axis=-1)
    else:
        values = rng.integers(1000, 30_000, (30, 40)).astype({"I;16": np.uint16, "F": np.float32}[kind])
        values.flat[:2] = 1000, 30_000
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "PNG" if kind == "I;16" else "TIFF")
        levels, original = (values.astype(np.float64) - 1000) * 255 / 29_000, load_original(buffer.getvalue())
    result = run(window, original)
    assert result.image is not None and result.zoom is None and result.call_box is None
    found, exact = np.asarray(result.image).astype(np.float64), by_the_formula(levels, *window)
    assert result.image.size == (40, 30) and np.abs(found - exact).max() < 0.51
    if kind == "I;16" and window == [99.5, 103.25]:
        inside = found[(found > 0) & (found < 255)]
        assert len(np.unique(inside)) > 8  # the eight bits hold three or four values there


def test_a_window_too_narrow_is_widened() -> None:
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    original = load_original(png(values))
    image = run([100.0, 100.0 + 1e-12], original).image
    exact = by_the_formula(values / 257.0, 100 - 1 / 128, 100 + 1 / 128)
    assert np.abs(np.asarray(image).astype(float) - exact).max() < 1  # float32's digits at this width
    assert 2 <= (np.asarray(image) % 255 > 0).sum() <= 4


def test_results_that_look_alike_have_one_key() -> None:
    original = OriginalImage(GREY)
    keys = [run(window, original).key for window in ([40, 60], [40.0, 6e1], [40, 60.5])]
    assert keys[0] == keys[1] != keys[2]
    assert run([40, 60], original).key != run([40, 60.00001], original).key


@pytest.mark.parametrize(
    "window",
    [
        [60, 40],
        [40, 40],
        [1],
        [1, 2, 3],
        "40, 60",
        {"low": 1, "high": 2},
        None,
        [True, False],
        ["40", "60"],
        [float("nan"), 5],
        [0, float("inf")],
        [0, 10**400],
        [-20, 0],
        [255, 300],
        [[40], [60]],
    ],
)
def test_a_wrong_window_gets_one_sentence(window: object) -> None:
    result = run(window, OriginalImage(GREY))
    assert result.image is None and result.key is None
    assert result.error is not None and result.error.startswith("Error: window ") and "\n" not in result.error
    assert result.error.endswith(".") and len(result.error) < 80


def test_the_schema_says_what_the_tool_takes() -> None:
    tool = tools_by_name([NAME])[NAME]
    schema = tool.schema()["function"]
    assert schema["name"] == NAME and schema["parameters"]["required"] == ["window"]
    form = schema["parameters"]["properties"]["window"]
    assert (form["type"], form["minItems"], form["maxItems"]) == ("array", 2, 2)
    lines = system_prompt(tools_by_name([ZOOM, NAME])).splitlines()
    first = lines.index("<tools>") + 1
    assert [json.loads(line)["function"]["name"] for line in lines[first : first + 2]] == [ZOOM, NAME]


def test_every_registered_tool_is_what_its_line_says() -> None:
    for name, tool in tools_by_name(list(TOOLS)).items():
        assert tool.name == name == tool.schema()["function"]["name"]
    box, window = {"bbox_2d": [10, 10, 60, 40]}, {"window": [10, 60]}
    for name, tool in tools_by_name(list(TOOLS)).items():
        result = tool.run(box | window, OriginalImage(GREY.convert("RGB")), SEEN)
        assert (result.zoom is not None) == TOOLS[name].boxes


def test_both_tools_in_one_turn() -> None:
    """Rows of one group that zoom, window or get it wrong: each gets what its own tool makes, equal calls one image."""
    encoder = load_encoder(TINY, "Look.", prompt_patches=64, crop_patches=64)
    prompt = encode_prompt(SyntheticTask().example("test", 0), encoder)
    window, box = {"window": [80, 120]}, {"bbox_2d": [14, 28, 56, 70]}
    calls = [(window, NAME), (box, ZOOM), (window, NAME), ({"window": [1]}, NAME), (window, ZOOM)]
    rows = [[0, *encoder.tokenizer.encode(text_of(*call))] for call in calls]
    tokens = np.zeros((1, len(rows), 400), np.int32)
    for m, row in enumerate(rows):
        tokens[0, m, : len(row)] = row
    same = np.ones((1, len(rows)), np.int32)
    sampled = Sampled(
        tokens=tokens,
        length=np.array([[len(row) for row in rows]]),
        status=TURN_ENDED * same,
        next_position=100 * same,
        origin=BASE * same,
        parent=-same,
        fork_position=-same,
    )
    tools = tools_by_name([ZOOM, NAME])
    server = TurnServer(
        [prompt], len(rows), encoder, tools, observation_length=128, response_length=400, crop_features=FEATURES
    )
    with contextlib.closing(server):
        server.read_originals()
        serving = server.serve(sampled, last_turn=False)
        trajectories = server.trajectories(sampled)[0]
    assert (serving.status == ACTIVE).all()
    seen = [t.turns[0].observation for t in trajectories]
    assert seen[:3] == ["image", "crop", "image"] and all(text.startswith("Error: ") for text in seen[3:])
    assert [len(t.zooms) for t in trajectories] == [0, 1, 0, 0, 0]
    assert [t.images for t in trajectories] == [1, 1, 1, 0, 0]
    places = [set((row[row >= 0] // FEATURES).tolist()) for row in serving.feature_index[0]]
    assert places == [{0}, {1}, {0}, set(), set()]
    original = load_original(prompt.example.images[0])
    levels = np.asarray(original.shown).astype(np.float64)
    exact = Image.fromarray(np.rint(by_the_formula(levels, 80, 120)).astype(np.uint8))
    for crop, image in zip(server.crops[0], (exact, original.shown.crop((56, 112, 224, 280))), strict=True):
        np.testing.assert_array_equal(crop.patches, encode_observation(encoder, 0, crop=image).image.patches)
