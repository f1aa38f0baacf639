"""The flags of --mode=ask: what they say, and what they cannot mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvr_jax.asking.request import MOST_SAMPLES, read_request
from medvr_jax.errors import UserError


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    return str(path)


def test_flags_become_a_request(image: str) -> None:
    found = read_request(image, " What is it? ", [" a", "b "], 16, 2, "40,400")
    assert (found.image, found.question, found.options) == (Path(image), "What is it?", ("a", "b"))
    assert (found.samples, found.frame, found.window) == (16, 2, (40.0, 400.0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": None}, "--image: missing"),
        ({"image": "/nowhere/a.png"}, "--image: no such file /nowhere/a.png"),
        ({"image": "/"}, "--image: / is a folder"),
        ({"image": "a" * 5000}, "which is no file"),
        ({"image": "a\0b"}, "--image: "),
        ({"question": None}, "--question: missing"),
        ({"question": " \n"}, r"--question: found ' \\n'"),
        ({"question": "\udcff"}, "--question: found .* allowed is text in UTF-8"),
        ({"options": ["one"]}, "--option: found 1, allowed are none or 2 to 26"),
        ({"options": [str(i) for i in range(27)]}, "--option: found 27"),
        ({"options": ["a", " a"]}, "--option: found 'a' 2 times"),
        ({"options": ["a", " "]}, "--option: found an empty one"),
        ({"samples": 0}, f"--samples: found 0, allowed is 1 to {MOST_SAMPLES}"),
        ({"samples": 1000}, "--samples: found 1000"),
        ({"frame": -1}, "--frame: found -1"),
        ({"window": "40"}, "--window: found '40', allowed is CENTRE,WIDTH"),
        ({"window": "40,0"}, "--window: found '40,0'"),
    ],
    ids=str,
)
def test_what_cannot_be_meant(image: str, changed: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_request(**({"image": image, "question": "What is it?"} | changed))
