"""A step's groups rolled out in parts, so that caches and crops exist for a few groups at a time.

Random numbers depend on the prompt, the slot and the position alone: parts change memory, not results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from medvr_jax.inputs.chat import Prompt
from medvr_jax.models.partitioning import Layout
from medvr_jax.rollout.engine import RolloutEngine
from medvr_jax.rollout.programs import crop_feature_sharding
from medvr_jax.rollout.trajectories import Calls, Rollout

_ON_DEVICES = ("prompt_inputs", "tokens", "positions", "feature_index", "crop_features")
_ON_HOST = ("host", "prompt_batch")
_LISTS = ("prompts", "trajectories", "decisions", "crops")


class PartedRollout:
    """Rolls out B groups, a number of them at a time; each part takes the next ones of every shard of the batch."""

    def __init__(self, engine: RolloutEngine, layout: Layout, groups: int, at_once: int) -> None:
        """For B = `groups`; `at_once` divides it and is a multiple of the batch's shards.

        `join` makes the arrays of a step of those of its `parts`, as many dictionaries with the same keys.
        """
        shards = layout.shards("groups")
        self._engine, self.parts, self._rows = engine, groups // at_once, at_once // shards

        def join(parts: Sequence[Any]) -> Any:
            """Leaves [at_once, ...] of each part → [B, ...]; every row stays on its device."""

            def leaf(*rows: jax.Array) -> jax.Array:
                by_shard = [x.reshape(shards, self._rows, *x.shape[1:]) for x in rows]
                return jnp.stack(by_shard, axis=1).reshape(groups, *rows[0].shape[1:])

            return jax.tree.map(leaf, *parts)

        shardings = dict.fromkeys(_ON_DEVICES, layout.sharding("groups"))
        shardings["crop_features"] = crop_feature_sharding(layout)
        self.join: Callable[[Sequence[Any]], Any] = jax.jit(join, out_shardings=shardings)

    def run(self, params: nnx.State, prompts: Sequence[Prompt], key: jax.Array) -> Rollout:
        """As `RolloutEngine.run`."""
        if self.parts == 1:
            return self._engine.run(params, prompts, key)
        places = np.arange(len(prompts)).reshape(-1, self.parts, self._rows)  # [shards here, parts, rows]
        taken = [places[:, part].ravel() for part in range(self.parts)]
        size = self._engine.prompt_size(prompts)  # one for all parts, which are joined
        rollouts = [self._engine.run(params, [prompts[i] for i in rows], key, size) for rows in taken]
        order = np.argsort(np.concatenate(taken))
        return self._joined(rollouts, order)

    def _joined(self, rollouts: Sequence[Rollout], order: np.ndarray) -> Rollout:
        """One rollout of all parts; `order` sorts this process's rows, part after part, into those of the batch."""

        def on_host(*rows: np.ndarray) -> np.ndarray:
            return np.concatenate(rows)[order]

        def fields(names: Sequence[str]) -> list[dict[str, Any]]:
            return [{name: getattr(rollout, name) for name in names} for rollout in rollouts]

        hosts = [rows | {"host": dataclasses.asdict(rows["host"])} for rows in fields(_ON_HOST)]
        host = jax.tree.map(on_host, *hosts)
        host["host"] = type(rollouts[0].host)(**host["host"])
        lists = {name: [x for rollout in rollouts for x in getattr(rollout, name)] for name in _LISTS}
        seconds: dict[str, float] = {}
        for rollout in rollouts:
            for name, value in rollout.seconds.items():
                seconds[name] = seconds.get(name, 0.0) + value
        return Rollout(
            **{name: [items[i] for i in order] for name, items in lists.items()},
            **self.join(fields(_ON_DEVICES)),
            **host,
            seconds=seconds,
            calls=sum((rollout.calls for rollout in rollouts), Calls()),
        )
