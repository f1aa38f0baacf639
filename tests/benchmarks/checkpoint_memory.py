"""A 7B-shaped checkpoint in and out over 8 CPU devices: byte for byte, and how much memory the host needs for it.

    python tests/benchmarks/checkpoint_memory.py [--layers=28] [--dtype=bfloat16] [--folder=DIR]

Makes random bfloat16 weights in the layout of the hub's Qwen2.5-VL-7B (about 16.6 GB, and as much again for the export;
all is removed afterwards), loads them with an eighth on each device, exports them, and compares every tensor. Peaks are
the kernel's own (VmHWM). The devices' memory is this process's, so the weights themselves are resident. Fewer --layers
need less memory: 28 want 19 GB.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from medvr_jax.models.config import BackboneConfig  # noqa: E402
from medvr_jax.models.model_files import INDEX, stored_dtypes, stored_tensors  # noqa: E402
from medvr_jax.models.partitioning import Layout  # noqa: E402
from medvr_jax.models.safetensors_file import DTYPES, StoredTensor, header_bytes  # noqa: E402
from medvr_jax.models.weights import load_backbone, save_backbone  # noqa: E402
from medvr_jax.training import sharding  # noqa: E402

DEVICES = 8
LIMIT = 2 * 2**30
HUB_BYTES = 16_584_333_312  # metadata.total_size of Qwen2.5-VL-7B-Instruct's index
HUB_FILE_BYTES = 4 * 10**9
CHUNK = 32 * 2**20

WIDTH, MLP, HEADS, KV_HEADS, VOCABULARY = 3584, 18944, 28, 4, 152064
VISION_WIDTH, VISION_MLP, VISION_BLOCKS = 1280, 3420, 32


def config_json(layers: int) -> dict:
    """config.json of the hub's folder, with this many decoder layers."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "max_position_embeddings": 128000,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {
            "depth": VISION_BLOCKS,
            "hidden_act": "silu",
            "hidden_size": VISION_WIDTH,
            "intermediate_size": VISION_MLP,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": WIDTH,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    }


def tensor_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the hub's files have them, written out here and not taken from the code under test."""
    head = WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (VISION_WIDTH, 3, 2, 14, 14)}
    for block in range(VISION_BLOCKS):
        name = f"visual.blocks.{block}."
        shapes |= {
            f"{name}norm1.weight": (VISION_WIDTH,),
            f"{name}norm2.weight": (VISION_WIDTH,),
            f"{name}attn.qkv.weight": (3 * VISION_WIDTH, VISION_WIDTH),
            f"{name}attn.qkv.bias": (3 * VISION_WIDTH,),
            f"{name}attn.proj.weight": (VISION_WIDTH, VISION_WIDTH),
            f"{name}attn.proj.bias": (VISION_WIDTH,),
            f"{name}mlp.gate_proj.weight": (VISION_MLP, VISION_WIDTH),
            f"{name}mlp.gate_proj.bias": (VISION_MLP,),
            f"{name}mlp.up_proj.weight": (VISION_MLP, VISION_WIDTH),
            f"{name}mlp.up_proj.bias": (VISION_MLP,),
            f"{name}mlp.down_proj.weight": (VISION_WIDTH, VISION_MLP),
            f"{name}mlp.down_proj.bias": (VISION_WIDTH,),
        }
    merged = 4 * VISION_WIDTH
    shapes |= {
        "visual.merger.ln_q.weight": (VISION_WIDTH,),
        "visual.merger.mlp.0.weight": (merged, merged),
        "visual.merger.mlp.0.bias": (merged,),
        "visual.merger.mlp.2.weight": (WIDTH, merged),
        "visual.merger.mlp.2.bias": (WIDTH,),
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
    }
    for layer in range(layers):
        name = f"model.layers.{layer}."
        shapes |= {
            f"{name}input_layernorm.weight": (WIDTH,),
            f"{name}post_attention_layernorm.weight": (WIDTH,),
            f"{name}mlp.down_proj.weight": (WIDTH, MLP),
            f"{name}mlp.gate_proj.weight": (MLP, WIDTH),
            f"{name}mlp.up_proj.weight": (MLP, WIDTH),
            f"{name}self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{name}self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{name}self_attn.q_proj.bias": (WIDTH,),
        }
        for part in ("k", "v"):
            shapes[f"{name}self_attn.{part}_proj.weight"] = (KV_HEADS * head, WIDTH)
            shapes[f"{name}self_attn.{part}_proj.bias"] = (KV_HEADS * head,)
    return shapes | {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}


def write_checkpoint(folder: Path, layers: int) -> int:
    """Random finite bfloat16 numbers in files of at most 4 GB with an index; returns the tensors' bytes."""
    dtype = DTYPES["BF16"]
    files: list[dict[str, tuple[np.dtype, tuple[int, ...]]]] = [{}]
    used = total = 0
    for name, shape in tensor_shapes(layers).items():
        size = math.prod(shape) * dtype.itemsize
        if used + size > HUB_FILE_BYTES:
            files.append({})
            used = 0
        files[-1][name] = (dtype, shape)
        used, total = used + size, total + size
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_json(layers)))
    # one exponent bit is 0, so that no number is infinite or NaN, whose bits a cast would not keep
    bits = np.random.default_rng(0).integers(0, 2**16, CHUNK + 1, np.uint16) & 0xBFFF
    pool, places = memoryview(bits.view(np.uint8)), {}
    for number, tensors in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        with open(folder / name, "wb") as stream:
            stream.write(header_bytes(tensors)[0])
            for count, shape in enumerate(shape for _, shape in tensors.values()):
                left = math.prod(shape) * dtype.itemsize
                start = 2 * (count * 7919 * number % CHUNK)  # every tensor begins elsewhere in the pool
                while left:
                    left -= stream.write(pool[start : start + min(left, len(pool) - start)])
                    start = 0
        places |= dict.fromkeys(tensors, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    return total


def resident(field: str) -> int:
    """Bytes of this process by the kernel: VmRSS now, VmHWM at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measured(function: Callable) -> tuple[object, float, int]:
    """The function's result, its seconds, and the most resident bytes while it ran."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    began = time.perf_counter()
    result = function()
    return result, time.perf_counter() - began, resident("VmHWM")


def assert_same_bytes(first: dict[str, StoredTensor], second: dict[str, StoredTensor]) -> int:
    """How many tensors were compared."""
    assert first.keys() == second.keys()
    for name, one in first.items():
        other = second[name]
        assert (one.dtype, one.shape) == (other.dtype, other.shape), name
        with open(one.file, "rb") as left, open(other.file, "rb") as right:
            left.seek(one.offset), right.seek(other.offset)
            for start in range(0, one.byte_count, CHUNK):
                count = min(CHUNK, one.byte_count - start)
                assert left.read(count) == right.read(count), name
    return len(first)


def run(folder: Path, layers: int, dtype: str) -> None:
    """Makes, loads, exports, compares; prints the table; AssertionError if something is not as promised."""
    source, target = folder / "source", folder / "export"
    began = time.perf_counter()
    total = write_checkpoint(source, layers)
    print(f"made {total:,} bytes in {time.perf_counter() - began:.0f} s", flush=True)
    assert layers != 28 or total == HUB_BYTES
    mesh = sharding.make_mesh(sharding.MeshShape(data=1, fsdp=DEVICES))
    layout = functools.partial(sharding.parameter_shardings, layout=Layout(mesh, sharding.TRAINING))
    jax.block_until_ready(jax.device_put(np.zeros(8), sharding.by_group(mesh)))
    before = resident("VmRSS")
    (_, params), load_seconds, load_peak = measured(lambda: load_backbone(source, dtype, shardings=layout))
    leaves = jax.tree.leaves(params)
    weights = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    share = {device: 0 for device in mesh.devices.flat}
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            share[shard.device] += shard.data.nbytes
    # An eighth each; vectors that nothing splits are small.
    assert max(share.values()) <= 1.01 * total / DEVICES, "some device holds more than its share"
    after = resident("VmRSS")
    config = BackboneConfig.from_folder(source)
    _, save_seconds, save_peak = measured(lambda: save_backbone(target, config, params, stored_dtypes(source)))
    compared = assert_same_bytes(stored_tensors(source), stored_tensors(target))
    largest = max(file.stat().st_size for file in target.glob("*.safetensors"))
    rows = (
        ("decoder layers", f"{layers}"),
        ("checkpoint, bfloat16", f"{total / 1e9:.2f} GB in {len(list(source.glob('*.safetensors')))} files"),
        (f"resident as {dtype} on {DEVICES} devices", f"{_gib(weights)} ({_gib(max(share.values()))} on the fullest)"),
        ("process before the import", _gib(before)),
        ("import", f"{load_seconds:.0f} s"),
        ("import: peak beyond the weights", _gib(load_peak - weights)),
        ("after the import: beyond the weights", _gib(after - weights)),
        ("export", f"{save_seconds:.0f} s"),
        ("export: peak beyond the weights", _gib(save_peak - weights)),
        ("exported files", f"{len(list(target.glob('*.safetensors')))}, the largest of {largest / 1e9:.2f} GB"),
        ("tensors compared, all identical", f"{compared}"),
    )
    print(
        "\n".join(["| figure | value |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)]), flush=True
    )
    assert largest <= 5 * 10**9
    assert max(load_peak, save_peak) - weights <= LIMIT, "the host needs more than 2 GiB beyond the weights"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def main() -> None:
    """Reads the command line; the folder is removed whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28, help="decoder layers; the 7B has 28")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the masters")
    parser.add_argument(
        "--folder", default=None, help="where to make the folders; the system's temporary one by default"
    )
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    folder = Path(tempfile.mkdtemp(prefix="checkpoint_memory_", dir=arguments.folder))
    try:
        run(folder, arguments.layers, arguments.dtype)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
