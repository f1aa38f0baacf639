"""A model folder with one damaged file is refused in one line that names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from medvr_jax.errors import UserError
from medvr_jax.inputs.chat import load_encoder
from tests.inputs.tiny import TINY


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "{broken"),
        ("preprocessor_config.json", "[1]"),
        ("chat_template.jinja", None),
        ("chat_template.jinja", "{% for x in %}"),
        ("tokenizer_config.json", None),
        ("config.json", "{broken"),
    ],
)
def test_one_line_names_the_folder(name: str, text: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(UserError, match=str(folder)) as caught:
        load_encoder(folder, "Look.")
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
    with pytest.raises(UserError, match=f"model.path: no tokenizer.json in {folder}, nor vocab.json with merges.txt"):
        load_encoder(folder, "Look.")
