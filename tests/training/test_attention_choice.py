"""`model.attention`: what the devices run."""

from __future__ import annotations

import types

import numpy as np
import pytest

from medvr_jax.errors import UserError
from medvr_jax.training import sharding


def devices(platform: str) -> types.SimpleNamespace:
    """What a mesh of this platform shows of itself here."""
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))


@pytest.mark.parametrize("platform, kind", [("cpu", "xla"), ("gpu", "fused"), ("tpu", "splash")])
def test_auto_goes_by_the_platform(platform, kind):
    mesh = devices(platform)
    backend = sharding.attention_backend("auto", mesh)
    assert backend.kind == kind
    if kind != "xla":
        assert backend == sharding.attention_backend(kind, mesh)
    assert sharding.attention_backend("xla", mesh).kind == "xla"


@pytest.mark.parametrize("choice, platform", [("splash", "cpu"), ("fused", "cpu"), ("splash", "gpu"), ("fused", "tpu")])
def test_foreign_kernels_are_refused(choice, platform):
    with pytest.raises(
        UserError, match=f"model.attention: found {choice!r}, allowed on {platform} devices are auto, xla"
    ):
        sharding.attention_backend(choice, devices(platform))
