"""Run by test_distributed.py in each of two processes: what they tell each other, and rollouts with one of them idle.

python tests/share_rollouts.py DEVICES OUTPUT CONFIG_OVERRIDES (JSON)
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medvr_jax import assembly, distributed  # noqa: E402
from medvr_jax.errors import UserError  # noqa: E402
from medvr_jax.inputs.chat import encode_prompts  # noqa: E402
from medvr_jax.processes import read_processes  # noqa: E402
from medvr_jax.rollout import turns  # noqa: E402
from medvr_jax.rollout.trajectories import Rollout  # noqa: E402
from medvr_jax.training import sharding  # noqa: E402
from medvr_jax.training.state import make_cast  # noqa: E402
from medvr_jax.training.trainer import make_train_state  # noqa: E402
from tests.tiny_run import small_config  # noqa: E402


def main(devices: str, output: str, overrides: str) -> None:
    jax.config.update("jax_num_cpu_devices", int(devices))
    distributed.initialise(read_processes(os.environ))
    found = {"told": told(), "shared_error": shared_error(), "rollouts": rollouts(json.loads(overrides))}
    Path(f"{output}.{jax.process_index()}.json").write_text(json.dumps(found))


def told() -> list[bool]:
    """Whether rows come back as they were put, for batches split over the processes and for copies on both."""
    right = []
    for shape in (sharding.MeshShape(), sharding.MeshShape(data=2, tensor=-1), sharding.MeshShape(data=1, tensor=-1)):
        layout = sharding.by_group(sharding.make_mesh(shape))
        whole = np.random.default_rng(0).normal(size=(16, 3))
        words = np.array([["a", "long word"][row % 2] for row in range(16)])
        rows = distributed.rows_of(layout, 16)
        placed = distributed.put_rows(whole[rows.here].astype(np.float32), layout)
        right.append(placed.shape == (16, 3))
        right.append(bool((distributed.read_rows(placed, layout) == whole[rows.here].astype(np.float32)).all()))
        right.append(bool(np.asarray(jax.numpy.sum(placed)) - whole.sum() < 1e-4))
        gathered = distributed.gather_rows({"numbers": whole[rows.here], "words": words[rows.here]}, rows)
        right.append(bool((gathered["numbers"] == whole).all() and (gathered["words"] == words).all()))
    number = jax.process_index()
    right.append(distributed.any_process(number == 1) and not distributed.any_process(False))
    long = bytes([number]) * (300_000 * (1 + number))  # of different lengths, longer than what is sent at a time
    right.append(distributed.gather_bytes(long) == [bytes(300_000), bytes([1]) * 600_000])
    return right


def shared_error() -> str:
    """What process 0 hears of an error of process 1."""
    try:
        with distributed.together():
            if jax.process_index() == 1:
                raise UserError("example 7: no such image")
    except distributed.SharedError as error:
        return str(error)
    return ""


def rollouts(overrides: dict[str, str]) -> list[list[dict]]:
    """Greedy rollouts, first as they are, then with process 1 deaf to tool calls."""
    config = small_config(**overrides)
    parts = assembly.assemble(config)
    params = make_train_state(parts)[0].params
    params = make_cast(parts.params, parts.sampling_layout, config.model.compute_dtype)(params)
    engine = parts.engine(assembly.greedy_rollout(config, parts.backbone))
    rows = parts.rows(config.data.evaluation_batch)
    examples = parts.source.test(rows.total)
    prompts = encode_prompts([examples[row] for row in rows.here], parts.encoder)
    first = engine.run(params, prompts, jax.random.key(0))
    if jax.process_index() == 1:
        turns.parse_tool_call = lambda text: None
    second = engine.run(params, prompts, jax.random.key(0))
    return [said(first), said(second)]


def said(rollout: Rollout) -> list[dict]:
    return [
        {"texts": list(t.texts), "zooms": len(t.zooms), "ended": t.ended, "tokens": int(rollout.host.length[b, m])}
        for b, group in enumerate(rollout.trajectories)
        for m, t in enumerate(group)
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
