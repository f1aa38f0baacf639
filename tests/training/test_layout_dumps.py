"""Where every parameter of the 3B and 7B models lives, on 8 and 32 devices: compared with committed lists.

After a change that is meant, `python -m tests.training.test_layout_dumps` writes the lists anew; read the difference.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.weights_in import abstract_backbone
from medvr_jax.training.sharding import MESH_AXES, SAMPLING, TRAINING, describe_shardings, make_layout
from tests.models.test_published_configs import PUBLISHED

FOLDER = Path(__file__).parent / "layouts"
TABLES = {"training": TRAINING, "sampling": SAMPLING}
MESHES = {  # model: (data, fsdp, tensor)
    "Qwen2.5-VL-3B": ((1, 8, 1), (1, 16, 2)),
    "Qwen2.5-VL-7B": ((1, 2, 4), (1, 8, 4)),
}
CASES = [(model, mesh, table) for model, meshes in MESHES.items() for mesh in meshes for table in TABLES]


def dump(model: str, mesh: tuple[int, int, int], table: str) -> tuple[Path, str]:
    """The file of a case, and what it should hold."""
    config = BackboneConfig.from_json_dict(PUBLISHED[model])
    _, params = abstract_backbone(config, jnp.float32, jnp.bfloat16)
    layout = make_layout(TABLES[table], AbstractMesh(mesh, MESH_AXES), config)
    name = f"{model}_data{mesh[0]}_fsdp{mesh[1]}_tensor{mesh[2]}_{table}.txt"
    return FOLDER / name, describe_shardings(params, layout)


@pytest.mark.parametrize(("model", "mesh", "table"), CASES)
def test_layout_is_the_committed_one(model: str, mesh: tuple[int, int, int], table: str) -> None:
    file, text = dump(model, mesh, table)
    assert text == file.read_text(encoding="utf-8")


def test_training_splits_all_that_is_large() -> None:
    """Of the 7B model on 32 devices every matrix is split 32 ways but those that see patches."""
    for line in (FOLDER / "Qwen2.5-VL-7B_data1_fsdp8_tensor4_training.txt").read_text().splitlines():
        name, shape, axes = line.split(": ")
        sizes = [int(n) for n in shape.split(" x ")]
        if len(sizes) - ("layers" in name or "blocks" in name) >= 2 and "patch" not in name and "bias" not in name:
            assert {"fsdp", "tensor"} <= set(axes.split(", ")), line


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for case in CASES:
        file, text = dump(*case)
        file.write_text(text, encoding="utf-8")
