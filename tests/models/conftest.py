"""Random transformers models in folders, and ours loaded from them, for all tests of the backbone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from flax import nnx

from medvr_jax.models.backbone import Backbone
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.weights import load_backbone
from tests.torch_reference import random_model, small_config


@dataclasses.dataclass
class Pair:
    """The same model twice."""

    reference: torch.nn.Module
    folder: Path
    config: BackboneConfig
    graphdef: nnx.GraphDef
    params: nnx.State

    @property
    def model(self) -> Backbone:
        return nnx.merge(self.graphdef, self.params)


def make_pair(folder: Path, **overrides) -> Pair:
    reference = random_model(small_config(**overrides))
    reference.save_pretrained(folder)
    graphdef, params = load_backbone(folder)
    return Pair(reference, folder, BackboneConfig.from_folder(folder), graphdef, params)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def qwen2_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("qwen2_reference"), model_type="qwen2_vl")


@pytest.fixture(scope="session", params=["pair", "qwen2_pair"], ids=["qwen2_5_vl", "qwen2_vl"])
def sibling(request: pytest.FixtureRequest) -> Pair:
    """One pair of each model type, in turn."""
    return request.getfixturevalue(request.param)
