"""Names of topologies, and the table behind them."""

from __future__ import annotations

import pytest

from medvr_jax.errors import UserError
from medvr_jax.hardware import CHIPS, parse_topology


@pytest.mark.parametrize(
    ("text", "count", "compiles"),
    [("v5p:4x4x2", 32, True), ("v5e:8x8", 64, True), ("V6E:4x4", 16, True), ("h100:8", 8, False), ("cpu", 3, False)],
)
def test_known_topologies(text, count, compiles):
    topology = parse_topology(text, host_devices=3)
    assert (topology.count, topology.compiles) == (count, compiles)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v7x:2x2", "--topology: found 'v7x:2x2', known are cpu, v4, v5e"),
        ("v5p:4x4", "--topology: found 'v5p:4x4', v5p needs 3 whole numbers of 1 or more, e.g. v5p:2x2x4"),
        ("v5e:8x0", "--topology: found 'v5e:8x0', v5e needs 2 whole numbers"),
        ("v5e:8xa", "--topology: found 'v5e:8xa', v5e needs 2 whole numbers"),
        ("h100", "--topology: found 'h100', h100 needs a number of devices of 1 or more, e.g. h100:8"),
        ("h100:2x4", "--topology: found 'h100:2x4', h100 needs a number of devices"),
        ("cpu:4", "--topology: found 'cpu:4', known are cpu"),
        ("", "--topology: found '', known are cpu"),
    ],
)
def test_unknown_topologies_are_refused(text, message):
    with pytest.raises(UserError) as caught:
        parse_topology(text)
    assert str(caught.value).startswith(message)


def test_figures_are_of_the_right_size():
    """A slip of a unit would be a factor of eight or a thousand."""
    for chip in CHIPS.values():
        assert 15 * 2**30 < chip.memory < 145e9
        assert 190e12 < chip.peak < 1000e12
        assert 800e9 <= chip.bandwidth <= 4800e9
        assert 30e9 < chip.interconnect <= 600e9
        assert 100 < chip.peak / chip.bandwidth < 600  # operations per byte at which both limits meet
