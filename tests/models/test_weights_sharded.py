"""Weights over several devices and processes: the same numbers, only the bytes needed, and the same bytes back."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medvr_jax.models import safetensors_file, weight_layout, weights_out
from medvr_jax.models.model_files import stored_dtypes
from medvr_jax.models.partitioning import Layout
from medvr_jax.models.weights import load_backbone, save_backbone
from medvr_jax.training import sharding
from tests.models.test_weights import assert_identical

REPOSITORY = Path(__file__).resolve().parents[2]
MESHES = ((1, 8, 1), (1, 4, 2), (2, 2, 2), (8, 1, 1), (1, 1, 2))


def layout(data: int, fsdp: int, tensor: int) -> functools.partial:
    mesh = sharding.make_mesh(sharding.MeshShape(data, fsdp, tensor), jax.devices()[: data * fsdp * tensor])
    return functools.partial(sharding.parameter_shardings, layout=Layout(mesh, sharding.TRAINING))


def raw_tensors(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """(dtype, shape, bytes) of every tensor, by the published library and the format's own words."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        with safe_open(file, framework="np") as handle:
            assert set(handle.keys()) == set(header) - {"__metadata__"}
        for name, fields in header.items():
            if name != "__metadata__":
                first, last = (8 + length + offset for offset in fields["data_offsets"])
                found[name] = (fields["dtype"], fields["shape"], content[first:last])
    return found


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter but the vectors is read and written in several pieces, most of which overlap others."""
    monkeypatch.setattr(weight_layout, "PIECE_BYTES", 5000)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_shard_holds_its_part_and_comes_back(pair, tmp_path, monkeypatch, small_pieces, mesh) -> None:
    make = layout(*mesh)
    largest = []
    read = safetensors_file.TensorReader.read
    monkeypatch.setattr(
        safetensors_file.TensorReader,
        "read",
        lambda *args: largest.append(read(*args)) or largest[-1],
    )
    _, params = load_backbone(pair.folder, shardings=make)
    assert_identical(params, pair.params)
    for value, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(make(pair.params)), strict=True):
        assert value.sharding == wanted
    # a row of a tensor is never cut, so that a piece may be as long as one row of each shard
    assert max(block.nbytes for block in largest) <= 8 * max(5000, 4 * 1536)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert total <= sum(block.nbytes for block in largest) <= 1.5 * total  # replicas are read once

    monkeypatch.setattr(weights_out, "SHARD_BYTES", 300_000)
    save_backbone(tmp_path / "sharded", pair.config, params)
    monkeypatch.undo()
    save_backbone(tmp_path / "whole", pair.config, pair.params)
    assert raw_tensors(tmp_path / "sharded") == raw_tensors(tmp_path / "whole")


def test_the_layout_may_be_given_as_a_tree(pair) -> None:
    wanted = layout(1, 2, 2)(pair.params)
    _, params = load_backbone(pair.folder, shardings=wanted)
    assert_identical(params, pair.params)


@pytest.mark.parametrize(
    ("source", "masters"),
    [
        ("float32", jnp.float32),
        ("bfloat16", jnp.float32),
        ("bfloat16", jnp.bfloat16),
        ("float16", jnp.float32),
        ("mixed", jnp.float32),
    ],
)
def test_what_was_not_trained_comes_back_byte_for_byte(pair, tmp_path, small_pieces, source, masters) -> None:
    """The tensors are cast by torch, so that ours are compared with another's bytes."""
    import torch

    folder = tmp_path / "source"
    save_backbone(folder, pair.config, pair.params)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        kind = source if source != "mixed" else "float32" if "norm" in name or "bias" in name else "bfloat16"
        tensors[name] = tensors[name].to(getattr(torch, kind))
    save_file(tensors, folder / "model.safetensors")
    _, params = load_backbone(folder, masters, shardings=layout(1, 4, 2))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(masters)}
    save_backbone(tmp_path / "out", pair.config, params, stored_dtypes(folder))
    assert raw_tensors(tmp_path / "out") == raw_tensors(folder)
    name = json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"]
    assert name in ((source,) if source != "mixed" else ("float32", "bfloat16"))


def test_a_cast_on_the_way_in_is_torchs(pair, tmp_path) -> None:
    import torch

    _, params = load_backbone(pair.folder, jnp.bfloat16, shardings=layout(1, 2, 1))
    ours = np.asarray(params["embedding"][...]).view(np.uint16)
    theirs = pair.reference.get_input_embeddings().weight.detach().to(torch.bfloat16).view(torch.int16).numpy()
    np.testing.assert_array_equal(ours, theirs.view(np.uint16))


def test_one_program_serves_all_layers(pair, tmp_path, small_pieces) -> None:
    """Programs are made per parameter, not per layer or piece."""
    from medvr_jax.models.weights_in import _filler
    from medvr_jax.models.weights_out import _taker

    make = layout(1, 2, 1)
    _filler.cache_clear(), _taker.cache_clear()
    _, params = load_backbone(pair.folder, shardings=make)
    save_backbone(tmp_path / "out", pair.config, params)
    shapes = {(leaf.shape, leaf.sharding) for leaf in jax.tree.leaves(params)}
    fillers = [_filler(sharding) for sharding in {leaf.sharding for leaf in jax.tree.leaves(params)}]
    assert 0 < sum(filler._cache_size() for filler in fillers) <= len(shapes)
    assert _taker.cache_info().currsize <= len(shapes)


PROCESS = """
import json, os, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from pathlib import Path
from medvr_jax.models import weight_layout
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.weights import load_backbone, save_backbone
from tests.models.test_weights_sharded import layout
weight_layout.PIECE_BYTES = 20_000
read, preadv = [], os.preadv
os.preadv = lambda *arguments: read.append(preadv(*arguments)) or read[-1]
source, target = Path(sys.argv[3]), Path(sys.argv[4])
_, params = load_backbone(source, shardings=layout(1, 8, 1))
held = sum(s.data.nbytes for leaf in jax.tree.leaves(params) for s in leaf.addressable_shards)
save_backbone(target, BackboneConfig.from_folder(source), params)
assert (target / "model.safetensors").is_file()
print(json.dumps({"read": sum(read), "held": held}))
"""


def test_two_processes_read_half_each_and_write_one_folder(pair, tmp_path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    target = tmp_path / "out"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(number), str(pair.folder), str(target)],
            cwd=REPOSITORY,
            env=dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(REPOSITORY)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    results = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], results
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(pair.params))
    for output, _ in results:
        (line,) = (line for line in output.splitlines() if line.startswith("{"))  # gloo writes there, too
        figures = json.loads(line)
        assert figures["held"] < 1.3 * total  # vectors that nothing splits are on every device
        assert figures["read"] < 0.65 * total  # half, those vectors, and overlaps of pieces
    save_backbone(tmp_path / "whole", pair.config, pair.params)
    assert raw_tensors(target) == raw_tensors(tmp_path / "whole")


def test_a_killed_export_leaves_the_previous_one(pair, tmp_path) -> None:
    """A process that dies in the middle of the tensors: the folder is the old one, and the next export clears up."""
    out = tmp_path / "out"
    save_backbone(out, pair.config, pair.params)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    code = f"""
import os
from medvr_jax.models import weights_out
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.weights import load_backbone, save_backbone
write, done = weights_out._Files.write, []
def dying(*arguments):
    done.append(0)
    os._exit(9) if len(done) == 20 else write(*arguments)
weights_out._Files.write = dying
save_backbone({str(out)!r}, BackboneConfig.from_folder({str(out)!r}), load_backbone({str(out)!r})[1])
"""
    environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(REPOSITORY))
    died = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, check=False)
    assert died.returncode == 9
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert len(list(tmp_path.iterdir())) == 2
    save_backbone(out, pair.config, nnx.map_state(lambda _, v: v.replace(v.get_value() * 2), pair.params))
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    # between the two renames of a replacement, the old folder is aside: it comes back
    out.rename(tmp_path / ".out.previous")
    save_backbone(out, pair.config, pair.params)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
