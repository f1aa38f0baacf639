"""Traffic read from real compiled programs, against what the shapes say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medvr_jax.planning.collectives import traffic

SIZE = 1024
ARRAY = SIZE * SIZE * 4


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def compiled_traffic(mesh, function, inputs, outputs, shape=(SIZE, SIZE)):
    array = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*inputs)))
    jitted = jax.jit(function, out_shardings=NamedSharding(mesh, PartitionSpec(*outputs)))
    return traffic(jitted.lower(array).compile().as_text())


def test_an_all_gather_sends_all_but_its_own_share(mesh):
    found = compiled_traffic(mesh, lambda x: x, ("b",), ())
    assert found.count == {"all-gather": 1} and found.open_loops == 0
    assert found.sent["all-gather"] == ARRAY * 3 / 4


def test_an_all_reduce_goes_round_twice(mesh):
    found = compiled_traffic(mesh, lambda x: x.sum(0), (("a", "b"),), (), shape=(8, SIZE))
    assert found.count == {"all-reduce": 1}
    assert found.sent["all-reduce"] == 2 * SIZE * 4 * 7 / 8


def test_what_a_scan_sends_is_counted_in_every_round(mesh):
    def layers(stack):
        def one(x, layer):
            return jnp.tanh(jax.lax.with_sharding_constraint(layer, whole) @ x), None

        return jax.lax.scan(one, jnp.ones((64, 64)), stack)[0]

    whole = NamedSharding(mesh, PartitionSpec())
    found = compiled_traffic(mesh, layers, (None, "b"), (), shape=(6, 64, 64))
    assert found.open_loops == 0
    # A compiler may gather the stack before the loop: the bytes are the same.
    assert found.sent["all-gather"] == 6 * 64 * 64 * 4 * 3 / 4


def test_a_loop_that_does_not_say_how_often_is_counted_once(mesh):
    def until_small(x):
        return jax.lax.while_loop(lambda x: x.sum() > 1.0, lambda x: x * 0.5, x)

    found = compiled_traffic(mesh, until_small, ("b",), ("b",), shape=(64, 64))
    assert found.open_loops == 1 and found.count["all-reduce"] >= 1


def test_the_forms_in_which_tpus_print_groups():
    line = "  %g = bf16[28,3584]{1,0} all-gather(%x), replica_groups=%s, dimensions={1}"
    text = "ENTRY %main (x: bf16[28,448]) -> bf16[28,3584] {\n" + line + "\n}\n"
    whole = 28 * 3584 * 2
    for groups, size in (
        ("mesh['axis_0'=1,'axis_1'=8,'axis_2'=4], device_ids=([4,8]T(1,0)) {'axis_1'}", 8),
        ("mesh['axis_0'=8,'axis_1'=4] {'axis_0','axis_1'}", 32),
        ("[4,8]<=[32]", 8),
        ("{{0,1,2,3},{4,5,6,7}}", 4),
    ):
        assert traffic(text.replace("%s", groups)).sent["all-gather"] == pytest.approx(whole * (size - 1) / size)
