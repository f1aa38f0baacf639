"""Damaged files and indexes: one clear line each, before any tensor is read, and exit status 2."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medvr_jax.errors import UserError
from medvr_jax.models import weights_out
from medvr_jax.models.safetensors_file import TensorReader
from medvr_jax.models.weights import load_backbone, save_backbone
from tests.test_main_errors import REPOSITORY, TINY, run_main

NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sharded(pair, tmp_path_factory) -> Path:
    """A folder of several files with an index."""
    folder = tmp_path_factory.mktemp("sharded") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_out, "SHARD_BYTES", 300_000)
        save_backbone(folder, pair.config, pair.params)
    return folder


def first_file(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def edit_header(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes the first file's header alone; the tensors' bytes stay."""
    file = first_file(folder)
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def edit_index(folder: Path, change: Callable[[dict], object]) -> None:
    fields = json.loads((folder / INDEX).read_text())
    change(fields)
    (folder / INDEX).write_text(json.dumps(fields))


def edit_file(file: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def shifted(header: dict) -> None:
    header[NORM]["data_offsets"] = [offset - 4 for offset in header[NORM]["data_offsets"]]


def truncate(folder: Path) -> str:
    file = first_file(folder)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-100])
    return f"{file}: not a complete safetensors file (found {size - 100} bytes, its header needs {size})"


def in_header(change: Callable[[dict], object], message: str) -> Callable[[Path], str]:
    return lambda folder: edit_header(folder, change) or message


def in_index(change: Callable[[dict], object], message: str) -> Callable[[Path], str]:
    return lambda folder: edit_index(folder, change) or message


DAMAGES: dict[str, Callable[[Path], str]] = {
    "truncated shard": truncate,
    "longer file": lambda f: (
        first_file(f).write_bytes(first_file(f).read_bytes() + b"\0" * 8) and "bytes, its header needs"
    ),
    "dtype of the same width": in_header(
        lambda h: h[EMBEDDING].update(dtype="I32"), f"tensor {EMBEDDING} has dtype I32, allowed are F32, F16, BF16"
    ),
    "dtype of another width": in_header(
        lambda h: h[EMBEDDING].update(dtype="BF16"),
        f"tensor {EMBEDDING} of dtype BF16 and shape [512, 64] needs 65536 bytes, its offsets [0, 131072] hold 131072",
    ),
    "unknown dtype": in_header(lambda h: h[EMBEDDING].update(dtype="Q7"), f"tensor {EMBEDDING} has dtype Q7"),
    "offsets beyond": in_header(
        lambda h: h[EMBEDDING].update(data_offsets=[0, 10**15]), f"tensor {EMBEDDING} of dtype F32"
    ),
    "overlap": in_header(shifted, "overlaps the one before it"),
    "hole": in_header(lambda h: h.pop(EMBEDDING), "leaves bytes unused before it"),
    "negative offset": in_header(
        lambda h: h[EMBEDDING].update(data_offsets=[-131072, 0]), f"tensor {EMBEDDING} is described by"
    ),
    "shape is no list": in_header(lambda h: h[EMBEDDING].update(shape="512"), f"tensor {EMBEDDING} is described by"),
    "entry is no object": in_header(lambda h: h.update({EMBEDDING: 1}), f"tensor {EMBEDDING} is described by 1"),
    "header is a list": lambda f: (
        first_file(f).write_bytes((2).to_bytes(8, "little") + b"[]") and "its header is a JSON list"
    ),
    "name twice": lambda f: (
        first_file(f).write_bytes((13).to_bytes(8, "little") + b'{"a":1,"a":2}') and "a name stands there twice"
    ),
    "endless header": lambda f: (
        first_file(f).write_bytes((2**62).to_bytes(8, "little") + b"{}") and "found 10 bytes, its header alone needs"
    ),
    "missing file": in_index(
        lambda i: i["weight_map"].update({NORM: "model-00009-of-00009.safetensors"}),
        f"names the file model-00009-of-00009.safetensors for tensor {NORM}, but there is no such file",
    ),
    "tensor elsewhere": in_index(
        lambda i: i["weight_map"].update({EMBEDDING: max(i["weight_map"].values())}), f"tensor {EMBEDDING}"
    ),
    "tensor that no file has": in_index(
        lambda i: i["weight_map"].update({"model.bonus": min(i["weight_map"].values())}),
        "for tensor model.bonus, which is not in it",
    ),
    "tensor not named": in_index(
        lambda i: i["weight_map"].pop(EMBEDDING), f"tensor {EMBEDDING} is not named by {INDEX}"
    ),
    "file outside": in_index(
        lambda i: i["weight_map"].update({NORM: "../secret.safetensors"}),
        f"weight_map gives tensor {NORM} the file '../secret.safetensors'",
    ),
    "absurd size": in_index(
        lambda i: i["metadata"].update(total_size=10**15), "metadata.total_size is 1000000000000000"
    ),
    "size is text": in_index(lambda i: i["metadata"].update(total_size="big"), "metadata.total_size is 'big'"),
    "no map": in_index(lambda i: i.pop("weight_map"), "has no weight_map"),
    "index is no JSON": lambda f: (f / INDEX).write_text("{") and f"{INDEX}: not a readable JSON file",
    "key missing": lambda f: (
        edit_file(first_file(f), lambda t: t.pop(EMBEDDING))
        or edit_index(f, lambda i: i["weight_map"].pop(EMBEDDING))
        or f"tensor {EMBEDDING} is missing (1 missing in all)"
    ),
    "wrong shape": lambda f: (
        edit_file(first_file(f), lambda t: t.update({EMBEDDING: t[EMBEDDING].T.copy()}))
        or f"tensor {EMBEDDING} has shape [64, 512], config.json needs [512, 64]"
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_one_line_before_any_tensor_is_read(sharded, tmp_path, monkeypatch, name) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    message = DAMAGES[name](folder)
    monkeypatch.setattr(TensorReader, "read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_backbone(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_half_of_the_other_kind_is_refused(pair, tmp_path) -> None:
    """bfloat16's bits under float16's name have the right size: only the other tensors give it away."""
    import jax.numpy as jnp

    save_backbone(tmp_path / "model", pair.config, pair.params, jnp.bfloat16)
    edit_header(tmp_path / "model", lambda h: h[NORM].update(dtype="F16"))
    with pytest.raises(UserError, match=f"tensor {NORM} has dtype F16, allowed are BF16 and F32"):
        load_backbone(tmp_path / "model")


def test_files_that_the_index_leaves_out_are_not_read(sharded, pair, tmp_path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    save_file({"other": np.ones(3, np.float32)}, folder / "consolidated.safetensors")
    _, params = load_backbone(folder)
    np.testing.assert_array_equal(params["embedding"][...], pair.params["embedding"][...])


def other_model(folder: Path) -> str:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"model_type": "llava"}))
    return f"{folder}/config.json: model_type is 'llava', allowed"


def flipped_dtype(folder: Path) -> str:
    edit_header(folder, lambda h: h[NORM].update(dtype="I32"))
    return f"{folder}/model.safetensors: tensor {NORM} has dtype I32, allowed are"


def missing_key(folder: Path) -> str:
    edit_file(folder / "model.safetensors", lambda t: t.pop(NORM))
    return f"{folder}: tensor {NORM} is missing"


def wrong_shape(folder: Path) -> str:
    edit_file(folder / "model.safetensors", lambda t: t.update({NORM: np.ones(65, np.float32)}))
    return f"{folder}/model.safetensors: tensor {NORM} has shape [65], config.json needs [64]"


def index_of_a_missing_file(folder: Path) -> str:
    places = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    places[NORM] = "model-00002-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    return f"{folder}/{INDEX}: names the file model-00002-of-00002.safetensors for tensor {NORM}"


@pytest.mark.parametrize(
    "damage",
    [truncate, flipped_dtype, missing_key, wrong_shape, index_of_a_missing_file, other_model],
    ids=lambda damage: damage.__name__,
)
def test_the_entry_point_exits_with_status_2(damage, tmp_path) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    message = damage(folder)
    result = run_main(
        tmp_path,
        f"--config={REPOSITORY}/configs/tiny_cpu.py",
        f"--workdir={tmp_path}/run",
        f"--config.model.path={folder}",
    )
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("medvr_jax: ") and message in result.stderr
