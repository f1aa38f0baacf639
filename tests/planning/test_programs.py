"""What is planned is what runs: every program of a real step gets the arguments and layouts that the plan has."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from medvr_jax import assembly
from medvr_jax.models import layers
from medvr_jax.planning import costs
from medvr_jax.planning.programs import step_programs
from medvr_jax.training import abstract
from medvr_jax.training.trainer import Trainer
from tests.tiny_run import small_config


@pytest.fixture(scope="module", params=[True, False], ids=["frozen tower", "trained tower"])
def step(request) -> tuple[Any, dict[str, tuple]]:
    """The plan's programs by name, and the arguments with which a real step calls them."""
    patch = pytest.MonkeyPatch()
    patch.setattr(layers, "LARGE_KERNEL", 1)  # as the kernels of real models are
    request.addfinalizer(patch.undo)
    config = small_config(
        "full",
        mesh__fsdp=2,
        grpo__updates_per_batch=2,
        model__freeze_vision_tower=request.param,
        steps=1,
    )
    parts = assembly.assemble(config, jax.devices()[:4])
    trainer = Trainer(parts)
    calls: dict[str, tuple] = {}

    def recording(name: str, function: Any) -> Any:
        def called(*arguments: Any) -> Any:
            calls.setdefault(name, jax.tree.map(described, arguments))
            return function(*arguments)

        return called

    engine = trainer._engine
    names = {"encode": "vision", "encode_crops": "crops"}
    engine.programs = engine.programs._replace(
        **{
            attribute: recording(names.get(attribute, attribute), getattr(engine.programs, attribute))
            for attribute in ("encode", "slice", "prefill", "decode", "encode_crops", "extend")
        }
    )
    for attribute, name in (("_to_sampling", "reshard"), ("_scorer", "score"), ("_update", "update")):
        setattr(trainer, attribute, recording(name, getattr(trainer, attribute)))
    trainer.step(0)
    run = abstract.abstract_run(config, parts.backbone, parts.mesh)
    return {program.name: program for program in step_programs(run)}, calls


def described(leaf: Any) -> Any:
    """Shape, dtype and place of an array; a host array has no place."""
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype)


def test_every_program_is_planned(step):
    programs, calls = step
    assert set(calls) == set(programs)


def test_arguments_are_those_of_a_real_step(step):
    programs, calls = step
    for name, arguments in calls.items():
        planned, structure = jax.tree_util.tree_flatten_with_path(programs[name].arguments)
        real, found = jax.tree_util.tree_flatten_with_path(arguments)
        assert structure == found, name
        for (path, ours), (_, theirs) in zip(planned, real, strict=True):
            where = f"{name}{jax.tree_util.keystr(path)}"
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), where
            if theirs.sharding is not None and theirs.sharding.device_set == ours.sharding.device_set:
                assert ours.sharding.is_equivalent_to(theirs.sharding, len(ours.shape)), (where, theirs.sharding)
            else:  # from the host, or on one device until the program spreads it
                assert ours.sharding.is_fully_replicated, (where, theirs.sharding)


def test_bytes_are_those_of_real_arrays(step):
    programs, _ = step
    array = jax.device_put(np.zeros((8, 6), np.float32), programs["update"].arguments[2].advantages.sharding)
    assert costs.device_bytes(described(array)) == array.addressable_shards[0].data.nbytes == 8 * 6 * 4 // 4
    state = programs["update"].arguments[0]
    alive = programs["update"].alive
    assert costs.device_bytes((alive["parameters"], alive["optimiser"])) == costs.device_bytes(
        programs["update"].arguments[:2]
    )
    # Two moments in float32 for every trained number, and three counters.
    moments = costs.device_bytes(state.optimizer) - 2 * costs.device_bytes(state.trainable)
    assert 0 < moments <= 16
