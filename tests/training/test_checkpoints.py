"""Checkpoints: bit for bit, onto any sharding, complete or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from medvr_jax.errors import UserError
from medvr_jax.training.checkpoints import Checkpoints

REPOSITORY = Path(__file__).resolve().parents[2]


def make_tree(seed: int) -> dict[str, Any]:
    """The kinds of leaves that a training state has: an NNX state, optax's, a typed random key, odd dtypes."""
    _, params = nnx.split(nnx.Linear(3, 5, rngs=nnx.Rngs(seed)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    return {
        "params": params,
        "optimizer": optimizer.init(params),
        "key": jax.random.key(seed),
        "half": jnp.asarray([1.5, float("nan"), -0.0], jnp.bfloat16),
        "step": jnp.int32(seed),
        "nothing": None,
    }


def assert_same_bits(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_what_is_restored_is_what_was_saved(tmp_path: Path) -> None:
    tree, metadata = make_tree(3), {"data_position": 48, "records": [{"a": 1.25, "b": None}]}
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    checkpoints.save(3, tree, metadata)
    checkpoints.close()

    again = Checkpoints(tmp_path, keep=2)
    assert again.latest() == 3
    restored, found = again.restore(3, make_tree(4))
    assert_same_bits(restored, tree)
    assert found == metadata


def test_restore_takes_shapes_and_shardings_of_the_template(tmp_path: Path) -> None:
    values = jnp.arange(8.0)
    Checkpoints(tmp_path, keep=1).save(1, {"x": values}, {})
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    template = {"x": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}
    restored, _ = Checkpoints(tmp_path, keep=1).restore(1, template)
    assert restored["x"].sharding == sharding
    np.testing.assert_array_equal(restored["x"], values)


def test_only_the_newest_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 5):
        checkpoints.save(step, {"x": jnp.float32(step)}, {})
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["2", "5"]
    assert checkpoints.latest() == 5


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"x": jnp.zeros(9)}, "x is float32[8] there, float32[9] is needed"),
        ({"x": jnp.zeros(8, jnp.bfloat16)}, "x is float32[8] there, bfloat16[8] is needed"),
        ({"x": jnp.zeros(8), "y": jnp.zeros(1)}, "y is nothing there, float32[1] is needed"),
        ({}, "x is float32[8] there, nothing is needed"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(template: Any, message: str, tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=1).save(1, {"x": jnp.zeros(8)}, {})
    with pytest.raises(UserError) as caught:
        Checkpoints(tmp_path, keep=1).restore(1, template)
    assert message in str(caught.value)


@pytest.mark.parametrize("damaged", ["arrays/**/d/*", "metadata/metadata"])
def test_a_damaged_checkpoint_is_named(damaged: str, tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=1).save(1, {"x": jnp.arange(8000.0)}, {})
    folder = tmp_path / "checkpoints" / "1"
    largest = max(folder.glob(damaged), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(UserError, match=f"--workdir: checkpoint {folder} cannot be read"):
        Checkpoints(tmp_path, keep=1).restore(1, {"x": jnp.zeros(8000)})


def test_a_killed_save_leaves_the_one_before(tmp_path: Path) -> None:
    """SIGKILL while step 2 is being written: step 1 is the latest, whole, and step 2 can be saved again."""
    program = """
import sys, jax.numpy as jnp, numpy as np
from medvr_jax.training.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
checkpoints.save(1, {"x": jnp.arange(8.0)}, {"position": 1})
print("saved", flush=True)
noise = np.random.default_rng(0).random(40_000_000, np.float32)
checkpoints.save(2, {"x": jnp.asarray(noise)}, {"position": 2})
print("finished", flush=True)
"""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), JAX_PLATFORMS="cpu")
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "saved\n"
    folder = tmp_path / "checkpoints"
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2:  # the folder of step 2, under whatever name
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.001)
    time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert "finished" not in child.communicate()[0]
    assert len(list(folder.iterdir())) == 2, "the kill came too early or too late to leave half a checkpoint"

    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() == 1
    restored, metadata = checkpoints.restore(1, {"x": jnp.zeros(8)})
    np.testing.assert_array_equal(restored["x"], np.arange(8.0))
    assert metadata == {"position": 1}
    checkpoints.save(2, {"x": jnp.ones(8)}, {"position": 2})
    assert checkpoints.latest() == 2
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
