"""Programs compiled ahead of time are the ones that run; kept on disk they compute the same, bit for bit."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medvr_jax import programs
from medvr_jax.errors import UserError
from medvr_jax.reports.progress import Progress

REPOSITORY = Path(__file__).resolve().parents[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carried:
    """A pytree with a leaf that may be missing."""

    values: jax.Array
    extra: jax.Array | None


def shardings():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    return NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())


def made(by_row, whole):
    """A module's parameters, a dataclass, a random key and a number of the host."""
    params = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    carried = Carried(jnp.ones((4, 3)), None)
    placed = jax.device_put(params, whole), jax.device_put(carried, by_row), jax.device_put(jax.random.key(1), whole)
    return (*placed, np.int32(7))


def step(params, carried, key, count):
    noise = jax.random.normal(key, (4,)) + count
    return dataclasses.replace(carried, values=carried.values + (carried.values @ params["kernel"][...] + noise).sum())


def test_a_warm_program_compiles_nothing_when_it_is_called():
    """With a donated dataclass, an nnx.State, a random key, a number of the host, and two devices."""
    by_row, whole = shardings()
    arguments = made(by_row, whole)
    function = jax.jit(step, donate_argnums=1, out_shardings=by_row)
    seen = []
    before = programs.compilations()
    programs.warm_up(
        [programs.Program("step", function, programs.abstract(arguments))], lambda *told: seen.append(told)
    )
    warm = programs.compilations()
    assert warm.count == before.count + 1 and warm.seconds > before.seconds and seen == [(1, 1, "step")]
    first = function(*arguments)
    again = function(arguments[0], first, *arguments[2:])
    jax.block_until_ready(again)
    assert programs.compilations() == warm
    assert first.values.is_deleted()
    noise = np.asarray(jax.random.normal(jax.random.key(1), (4,)), np.float64) + 7
    kernel, expected = np.asarray(arguments[0]["kernel"][...], np.float64), np.ones((4, 3))
    for _ in range(2):
        expected = expected + (expected @ kernel + noise).sum()
    np.testing.assert_allclose(again.values, expected, rtol=1e-5)
    longer = jax.device_put(Carried(np.ones((8, 3), np.float32), None), by_row)
    warm = programs.compilations()  # the comparison has drawn its own noise
    # Another shape is another program, and is counted.
    function(arguments[0], longer, *arguments[2:])
    assert programs.compilations().count == warm.count + 1


def test_a_tree_of_many_leaves_is_called_quickly():
    """What a warm call costs the host: below a millisecond for 300 leaves."""
    tree = {f"leaf {n}": jnp.ones(2) for n in range(300)}
    function = jax.jit(lambda tree, x: x + 1)
    arguments = (tree, jnp.ones(2))
    programs.warm_up([programs.Program("many", function, programs.abstract(arguments))])
    jax.block_until_ready(function(*arguments))
    spent = []
    for _ in range(30):
        began = time.perf_counter()
        function(*arguments)
        spent.append(time.perf_counter() - began)
    assert np.median(spent) < 1e-3


@pytest.mark.parametrize("threads", [1, 3])
def test_warm_up_tells_how_far_it_is(threads):
    """One line per program at most; every program is ready at the end, in whatever order the threads finish."""
    functions = [jax.jit(lambda x, n=n: jnp.sin(x) * n) for n in range(5)]
    shape = jax.ShapeDtypeStruct((2 + threads,), jnp.float32)
    stream = io.StringIO()
    with Progress(5, 0, "compiling", stream=stream) as progress:

        def tell(done, total, name):
            assert total == 5
            progress.update(done, name)

        seconds = programs.warm_up(
            [programs.Program(f"sine {n}", function, (shape,)) for n, function in enumerate(functions)], tell, threads
        )
    assert seconds > 0
    assert stream.getvalue().splitlines()[0].startswith("compiling 1/5 | the first in ")
    assert stream.getvalue().splitlines()[-1].startswith("compiling 5/5 | ")
    before = programs.compilations().count
    for function in functions:
        function(jnp.ones(2 + threads))
    assert programs.compilations().count - before <= 1  # the ones themselves


def test_a_refusal_of_the_compiler_is_raised():
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    unknown = jax.jit(lambda x: jax.ffi.ffi_call("no_such_kernel", shape)(x))
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_kernel"):
        programs.warm_up([programs.Program("unknown", unknown, (shape,))])


# ------------------------------------------------------------------------------------------------------------- on disk


@pytest.fixture
def settings():
    """jax's settings as they were."""
    names = ["jax_compilation_cache_dir", *(name for name, _ in programs._KEEP_ALL)]
    before = {name: jax.config.values[name] for name in names}
    yield before
    for name, value in before.items():
        jax.config.update(name, value)


def test_where_programs_are_kept(settings, tmp_path, monkeypatch):
    monkeypatch.delenv(programs.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert programs.keep_programs("") is None
    assert programs.keep_programs("auto") == tmp_path / "medvr_jax/programs"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "medvr_jax/programs")
    assert programs.keep_programs(str(tmp_path / "mine")) == tmp_path / "mine"
    monkeypatch.setenv(programs.FOLDER_VARIABLE, str(tmp_path / "jax"))
    assert programs.keep_programs("") == programs.keep_programs("auto") == tmp_path / "jax"


def test_a_folder_that_cannot_be_written_to(settings, tmp_path, monkeypatch):
    monkeypatch.delenv(programs.FOLDER_VARIABLE, raising=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^programs.cache: '.*file/inside' cannot be written to \(Not a directory\)"):
        programs.keep_programs(str(tmp_path / "file/inside"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert programs.keep_programs("auto") is None


GRADIENT = """
import hashlib, json, sys
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from medvr_jax import programs
from medvr_jax.models.backbone import Backbone, PromptInputs
from medvr_jax.models.config import BackboneConfig

programs.keep_programs(sys.argv[1])
config = BackboneConfig.from_folder("medvr_jax/assets/tiny")
graphdef, params = nnx.split(jax.jit(lambda: Backbone(config, key=jax.random.key(0)))())
tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
places = np.broadcast_to(np.arange(12, dtype=np.int32)[:, None], (2, 12, 3))
prompt = PromptInputs(tokens, places, tokens >= 0, -np.ones_like(tokens), np.zeros((2, 0, config.text.hidden_size)))

def loss(params):
    backbone = nnx.merge(graphdef, params)
    cache = backbone.prefill(prompt)
    return sum(jnp.sum(jnp.sin(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(cache))

leaves = jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params))
digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves))
made = programs.compilations()
print(json.dumps([digest.hexdigest(), made.count, made.from_cache]))
"""


def test_programs_from_the_disk_compute_the_same(tmp_path):
    """The gradient of the backbone: without a cache, by two processes that fill one at a time, and from it."""
    environment = {name: value for name, value in os.environ.items() if name != programs.FOLDER_VARIABLE}

    def start(cache: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", GRADIENT, cache], cwd=REPOSITORY, env=environment | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def result(process: subprocess.Popen) -> list:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0 and not err, err
        return json.loads(out.splitlines()[-1])

    cache = str(tmp_path / "programs")
    together = [start(cache), start(cache), start("")]
    *filled, without = map(result, together)
    warm = result(start(cache))
    assert warm[0] == without[0] == filled[0][0] == filled[1][0]
    assert warm[1] == warm[2] == without[1] >= 2 and without[2] == 0
