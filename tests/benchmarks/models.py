"""The models that benchmarks run: shapes by name, random weights in Hugging Face folders that both sides load."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from medvr_jax import distributed
from medvr_jax.inputs.chat import Encoder, load_encoder
from medvr_jax.models.backbone import with_settings
from medvr_jax.models.config import BackboneConfig, TextConfig, VisionConfig
from medvr_jax.models.partitioning import Layout
from medvr_jax.models.weights import load_backbone, random_backbone, save_backbone
from medvr_jax.planning.architectures import published
from medvr_jax.training import sharding
from tests.benchmarks import measure

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "34359738368", "MALLOC_TOP_PAD_": "268435456"}
REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "medvr_jax" / "assets" / "tiny"


def _shape(
    width: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tower: VisionConfig
) -> BackboneConfig:
    tiny = BackboneConfig.from_folder(TINY)
    head = width // heads
    section = (head // 2 - 2 * (head * 3 // 16), head * 3 // 16, head * 3 // 16)  # 16, 24, 24 for a head of 128
    text = TextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        mrope_section=section,
        tie_word_embeddings=True,
        bos_token_id=tiny.text.bos_token_id,
        eos_token_id=tiny.text.eos_token_id,
        pad_token_id=tiny.text.pad_token_id,
    )
    return dataclasses.replace(tiny, text=text, vision=dataclasses.replace(tower, out_hidden_size=width))


def _tower(width: int, mlp: int, depth: int, heads: int) -> VisionConfig:
    return VisionConfig(
        depth=depth, hidden_size=width, intermediate_size=mlp, num_heads=heads, out_hidden_size=width,
        full_attention_blocks=(depth - 1,),
    )  # fmt: skip


def shape(name: str) -> BackboneConfig:
    """The shapes of a model by name; see `NAMES`. Token ids are those of the tiny checkpoint's tokenizer."""
    small = _tower(320, 856, 4, 4)
    match name:
        case "tiny":
            return BackboneConfig.from_folder(TINY)
        case "nano":  # for a test of the benchmarks themselves
            return _shape(64, 96, 1, 4, 2, 640, _tower(64, 80, 1, 4))
        case "micro":
            return _shape(192, 768, 6, 3, 1, 8192, small)
        case "small":
            return _shape(384, 1536, 8, 6, 2, 8192, small)
        case "130m":
            return _shape(768, 3072, 12, 12, 2, 32768, small)
        case "wide_vocabulary":
            return _shape(384, 1536, 8, 6, 2, 152064, small)
        case "3b" | "7b":
            tiny, large = BackboneConfig.from_folder(TINY), published(f"qwen2.5-vl-{name}")
            ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
            text = dataclasses.replace(
                large.text, bos_token_id=tiny.text.bos_token_id, eos_token_id=tiny.text.eos_token_id
            )
            return dataclasses.replace(large, text=text, **{key: getattr(tiny, key) for key in ids})
    raise ValueError(f"no model {name!r}")


NAMES = ("tiny", "nano", "micro", "small", "130m", "wide_vocabulary", "3b", "7b")


@dataclasses.dataclass(frozen=True)
class Model:
    """One model of a benchmark: a folder, and our side loaded from it onto one device."""

    name: str
    folder: Path
    config: BackboneConfig
    graphdef: nnx.GraphDef
    params: nnx.State
    mesh: Mesh
    dtype: str

    @property
    def sampling_layout(self) -> Layout:
        return sharding.make_layout(sharding.SAMPLING, self.mesh, self.config)

    @property
    def training_layout(self) -> Layout:
        return sharding.make_layout(sharding.TRAINING, self.mesh, self.config)

    def put(self, tree: Any) -> Any:
        """A tree of host arrays on the device."""
        return distributed.put_rows(tree, sharding.by_group(self.mesh))

    def read(self, tree: Any) -> Any:
        """A tree of device arrays on the host."""
        return distributed.read_rows(tree, sharding.by_group(self.mesh))

    def sizes(self) -> dict[str, Any]:
        """What a report says of the model."""
        text, vision = self.config.text, self.config.vision
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return {
            "model": self.name,
            "parameters": count,
            "dtype": self.dtype,
            "decoder": {
                "width": text.hidden_size, "layers": text.num_layers, "heads": text.num_heads,
                "kv_heads": text.num_kv_heads, "mlp": text.intermediate_size, "vocabulary": text.vocab_size,
                "tied": text.tie_word_embeddings,
            },
            "tower": {"width": vision.hidden_size, "blocks": vision.depth, "mlp": vision.intermediate_size},
        }  # fmt: skip


def write_folder(name: str, parent: Path, dtype: str = "float32") -> Path:
    """A folder with the tiny checkpoint's tokenizer and processor and random weights; written once per `parent`."""
    if name == "tiny":
        return TINY
    folder = parent / f"{name}_{dtype}"
    if not (folder / "config.json").exists():
        config = shape(name)
        _, params = random_backbone(config, seed=0, dtype=jnp.dtype(dtype))
        folder.mkdir(parents=True, exist_ok=True)
        save_backbone(folder, config, params)
        for file in TINY.iterdir():
            if file.name not in ("config.json", "model.safetensors"):
                shutil.copy(file, folder)
    return folder


def load_model(name: str, parent: Path, dtype: str | None = None) -> Model:
    """Our side of a model: float32 on a CPU and bfloat16 elsewhere, if `dtype` does not say otherwise."""
    dtype = dtype or default_dtype()
    folder = write_folder(name, parent, dtype)
    config = BackboneConfig.from_folder(folder)
    mesh = sharding.make_mesh(sharding.MeshShape(1, 1, 1), jax.devices()[:1])
    layout = sharding.make_layout(sharding.TRAINING, mesh, config)
    place = functools.partial(sharding.parameter_shardings, layout=layout)
    graphdef, params = load_backbone(folder, dtype, dtype, place)
    graphdef = with_settings(graphdef, params, attention=sharding.attention_backend("auto", mesh))
    return Model(name, folder, config, graphdef, params, mesh, dtype)


def default_dtype() -> str:
    """float32 on a CPU, bfloat16 on an accelerator."""
    return "float32" if jax.devices()[0].platform == "cpu" else "bfloat16"


def make_encoder(folder: Path, *, prompt_side: int, crop_side: int, system: str = "Zoom in, then answer.") -> Encoder:
    """An encoder that makes square images `prompt_side` pixels wide and square crops `crop_side`."""
    return load_encoder(
        folder,
        system,
        prompt_patches=(prompt_side // 14) ** 2,
        prompt_min_pixels=prompt_side**2,
        prompt_max_pixels=(prompt_side + 1) ** 2,
        crop_patches=(crop_side // 14) ** 2,
        crop_min_pixels=crop_side**2,
        crop_max_pixels=(crop_side + 1) ** 2,
    )


def start(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command's arguments, and what its process takes from them, for both sides; before the first use of jax.

    On a GPU jax takes memory as it needs it. With `--keep_memory`, malloc keeps its memory, as under
    `launch/quickstart.sh`: glibc reads these settings at its start, so the script is started again with them.
    """
    arguments = parser.parse_args()
    measure.QUIET.seconds = arguments.wait
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if arguments.keep_memory and not MALLOC.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], MALLOC | os.environ)
    return arguments
