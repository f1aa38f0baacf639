"""Checkpoints that survive `kill -9`: a pytree of jax arrays and a JSON object per step, through orbax.

A step is written into a folder of another name and renamed when it is complete, so that `latest` never sees half a
checkpoint. Leaves are stored under their path in the tree; the tree itself comes from the template of `restore`, so
that nothing is unpickled and a checkpoint does not depend on the classes of the day. What is in the tree is decided in
`state.py`.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from medvr_jax.errors import UserError


class Checkpoints:
    """The folder `WORKDIR/checkpoints`. Steps ascend; only the newest `keep` stay."""

    def __init__(self, workdir: str | Path, keep: int) -> None:
        self._folder = Path(workdir).resolve() / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        # Each host writes its own shards. Splitting the writing of replicas too would compile a slice per array.
        arrays = ocp.type_handlers.create_type_handler_registry(
            (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False)),
            (np.ndarray, ocp.type_handlers.NumpyHandler()),  # leaves that name no sharding
        )
        handlers = {
            "arrays": ocp.PyTreeCheckpointHandler(type_handler_registry=arrays),
            "metadata": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def save(self, step: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Writes a checkpoint; when this returns, it is on disk. `metadata` is a JSON object."""
        arrays = _flat(jax.tree.map(_without_key_type, tree))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.PyTreeSave(arrays),
                metadata=ocp.args.JsonSave({"arrays": _shapes(arrays), "metadata": metadata}),
            ),
            force=True,
        )

    def latest(self) -> int | None:
        """The newest complete step, None if there is none."""
        return self._manager.latest_step()

    def restore(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        """The tree of a step, bit for bit, and its metadata.

        template: the same tree with arrays or `jax.ShapeDtypeStruct`s, whose shapes, dtypes and shardings (any, not
        only those it was saved with) the result has.
        """
        leaves, structure = jax.tree.flatten(template)
        wanted = _flat(jax.tree.map(_abstract, template))
        saved = self._restore_item(step, metadata=ocp.args.JsonRestore())
        self._refuse_other(step, saved["arrays"], _shapes(wanted))
        found = self._restore_item(step, arrays=_restore_arguments(wanted))
        arrays = [_with_key_type(found[name], leaf) for name, leaf in zip(wanted, leaves, strict=True)]
        return jax.tree.unflatten(structure, arrays), saved["metadata"]

    def _restore_item(self, step: int, **item: Any) -> Any:
        (name,) = item
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**item))[name]
        except jax.errors.JaxRuntimeError:
            raise  # the devices', for instance out of memory
        except Exception as error:  # orbax raises nearly anything on damaged files, bare Exceptions too
            raise UserError(
                f"--workdir: checkpoint {self._folder / str(step)} cannot be read; remove that folder to go on from an"
                f" earlier one ({textwrap.shorten(str(error), 200)})"
            ) from error

    def _refuse_other(self, step: int, saved: dict[str, str], wanted: dict[str, str]) -> None:
        for name in [*wanted, *saved]:
            before, now = saved.get(name, "nothing"), wanted.get(name, "nothing")
            if before != now:
                raise UserError(
                    f"--workdir: checkpoint {self._folder / str(step)} is of another model or optimiser: "
                    f"{name} is {before} there, {now} is needed"
                )

    def close(self) -> None:
        """Lets orbax's threads end."""
        self._manager.close()


def _restore_arguments(wanted: dict[str, Any]) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted))


def _flat(tree: Any) -> dict[str, Any]:
    """Path -> leaf, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    flat = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(flat) < len(leaves):
        raise ValueError("two leaves of the tree have the same path; keys must not contain a full stop")
    return flat


def _shapes(flat: dict[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in flat.items()}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_key_type(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _with_key_type(data: jax.Array, template: Any) -> jax.Array:
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(template)) if _is_key(template) else data


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    sharding = None if _is_key(leaf) else getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
