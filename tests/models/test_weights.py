"""Folders in and out: bit for bit, readable by transformers, and refused with one clear line when broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForImageTextToText

from medvr_jax.errors import UserError
from medvr_jax.models import weights_out
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.weights import load_backbone, random_backbone, save_backbone
from tests.models import cases
from tests.models.conftest import make_pair
from tests.models.test_backbone import three_turn_group


def assert_identical(first, second) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_import_of_export_is_bit_identical(sibling, tmp_path, dtype, tied):
    config = BackboneConfig.from_json_dict(sibling.config.to_json_dict() | {"tie_word_embeddings": tied})
    graphdef, params = random_backbone(config, 3, dtype)
    save_backbone(tmp_path / "out", config, params, dtype)
    graphdef_again, again = load_backbone(tmp_path / "out", dtype)
    assert_identical(params, again)
    assert graphdef_again == graphdef and BackboneConfig.from_folder(tmp_path / "out") == config
    assert any(np.asarray(leaf).std() > 0 for leaf in jax.tree.leaves(params))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen2_vl"])
def test_transformers_loads_an_export_and_agrees(tmp_path, model_type, tied):
    """Their folder → ours → an export → theirs: the same class, tensors and logits."""
    pair = make_pair(tmp_path / "theirs", model_type=model_type, tied=tied)
    save_backbone(tmp_path / "ours", pair.config, pair.params)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert type(again) is type(pair.reference)
    theirs = dict(pair.reference.named_parameters())
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter, theirs.pop(name), rtol=0, atol=0)
    assert not theirs
    group = three_turn_group(np.random.default_rng(0), pair.config)
    logits = cases.score_logits(pair.graphdef, pair.params, group)
    assert cases.largest_difference(logits, again, group) <= 2e-4
    names = load_file(tmp_path / "ours" / "model.safetensors")
    assert all(
        name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.", "visual.", "lm_head."))
        for name in names
    )
    assert ("lm_head.weight" in names) is not tied


def test_both_config_layouts_mean_the_same(sibling):
    pair = sibling
    flat = pair.config.to_json_dict()
    nested = json.loads((pair.folder / "config.json").read_text())
    assert "text_config" in nested and "text_config" not in flat
    assert BackboneConfig.from_json_dict(flat) == BackboneConfig.from_json_dict(nested) == pair.config


def test_newer_names_and_a_written_tied_head_are_read(pair, tmp_path):
    save_backbone(tmp_path / "a", pair.config, pair.params)
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    renamed = {}
    for name, value in tensors.items():
        name = name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name
        renamed["model." + name if name.startswith("visual.") else name] = value
    save_file(renamed, tmp_path / "a" / "model.safetensors")
    assert_identical(load_backbone(tmp_path / "a")[1], pair.params)
    config = json.loads((tmp_path / "a" / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    params = load_backbone(tmp_path / "a")[1]
    assert "head" not in params and "embedding" in params


def test_large_exports_are_sharded(pair, tmp_path, monkeypatch):
    limit = 50_000 + max(leaf.nbytes for leaf in jax.tree.leaves(pair.params))
    monkeypatch.setattr(weights_out, "SHARD_BYTES", limit)
    save_backbone(tmp_path / "out", pair.config, pair.params)
    files = sorted(x.name for x in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and files[0].startswith("model-00001-of-")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert all((tmp_path / "out" / name).stat().st_size <= limit for name in files)
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(pair.params))
    assert_identical(load_backbone(tmp_path / "out")[1], pair.params)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "out")


def test_export_replaces_weights_keeps_the_rest_and_never_leaves_half(pair, tmp_path, monkeypatch):
    out = tmp_path / "out"
    limit = 50_000 + max(leaf.nbytes for leaf in jax.tree.leaves(pair.params))
    monkeypatch.setattr(weights_out, "SHARD_BYTES", limit)
    save_backbone(out, pair.config, pair.params)
    (out / "tokenizer.json").write_text("kept")
    before = {x.name: x.read_bytes() for x in out.iterdir()}

    def fail(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(weights_out, "_write_piece", fail)
        with pytest.raises(OSError, match="disk full"):
            save_backbone(out, pair.config, pair.params)
    assert {x.name: x.read_bytes() for x in out.iterdir()} == before

    monkeypatch.undo()
    save_backbone(out, pair.config, pair.params)
    assert sorted(x.name for x in out.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(x.name for x in tmp_path.iterdir()) == ["out"]


@pytest.fixture
def folder(pair, tmp_path) -> Path:
    return Path(shutil.copytree(pair.folder, tmp_path / "model"))


def edit(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit_config(folder: Path, change) -> None:
    fields = json.loads((folder / "config.json").read_text())
    change(fields)
    (folder / "config.json").write_text(json.dumps(fields))


NORM = "model.norm.weight"
BROKEN = {
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "model.safetensors: not a complete safetensors file",
    ),
    "cut in the header": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:50]),
        "model.safetensors: not a complete safetensors file",
    ),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a complete safetensors file"),
    "not safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 500), "not a complete safetensors file"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no \*.safetensors file"),
    "missing tensor": (lambda f: edit(f, lambda t: t.pop(NORM)), "tensor model.norm.weight is missing"),
    "extra tensor": (
        lambda f: edit(f, lambda t: t.update({"model.bonus": np.ones(2, np.float32)})),
        "tensor model.bonus is not part of",
    ),
    "wrong shape": (
        lambda f: edit(f, lambda t: t.update({NORM: np.ones(65, np.float32)})),
        rf"tensor {NORM} has shape \[65\], config.json needs \[64\]",
    ),
    "twice": (
        lambda f: shutil.copy(f / "model.safetensors", f / "more.safetensors"),
        "more.safetensors: tensor .* is also in .*model.safetensors",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: cannot be read"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "found a JSON list"),
    "other model": (
        lambda f: edit_config(f, lambda c: c.update(model_type="llava")),
        "model_type is 'llava', allowed are qwen2_5_vl, qwen2_vl",
    ),
    "missing field": (
        lambda f: edit_config(f, lambda c: c["text_config"].pop("vocab_size")),
        "field text_config.vocab_size is missing",
    ),
    "wrong type": (
        lambda f: edit_config(f, lambda c: c["vision_config"].update(depth="four")),
        "vision_config.depth is 'four', allowed is int",
    ),
    "other rope": (
        lambda f: edit_config(f, lambda c: c["text_config"]["rope_parameters"].update(rope_type="yarn")),
        "is 'yarn', allowed is 'mrope' or 'default'",
    ),
    "sections": (
        lambda f: edit_config(f, lambda c: c["text_config"]["rope_parameters"].update(mrope_section=[2, 3, 4])),
        "config.json: mrope_section .* must sum to half the head width",
    ),
    "no heads": (
        lambda f: edit_config(f, lambda c: c["text_config"].update(num_attention_heads=0)),
        "field num_heads is 0, allowed are positive numbers",
    ),
    "blocks": (
        lambda f: edit_config(f, lambda c: c["vision_config"].update(fullatt_block_indexes=[4])),
        "must lie in 0 … 3",
    ),
    "activation": (lambda f: edit_config(f, lambda c: c["text_config"].update(hidden_act="gelu")), "allowed is 'silu'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_refused_in_one_line(folder, name):
    spoil, message = BROKEN[name]
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_backbone(folder)
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(tmp_path / "nowhere")
