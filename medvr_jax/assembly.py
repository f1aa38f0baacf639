"""From a checked configuration to the parts of a run: below the loops, the only reader of the configuration.

Everything behind this file takes plain values.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict
from PIL import Image

from medvr_jax import distributed
from medvr_jax.configuration import check_batches, model_folder
from medvr_jax.datasets.example import Example
from medvr_jax.datasets.source import SPLITS, ExampleSource, make_source
from medvr_jax.errors import UserError
from medvr_jax.inputs.batches import check_room
from medvr_jax.inputs.chat import Encoder, encode_observation, load_encoder
from medvr_jax.inputs.survey import prompt_sizes, rooms
from medvr_jax.models.backbone import with_settings
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.operations import matrices
from medvr_jax.models.partitioning import Layout
from medvr_jax.models.weights import load_backbone
from medvr_jax.rollout.engine import RolloutEngine
from medvr_jax.rollout.evr import EvrSettings
from medvr_jax.rollout.settings import RolloutSettings
from medvr_jax.rollout.tools import Tool, system_prompt, tools_by_name
from medvr_jax.training import sharding
from medvr_jax.training.rewarding import RewardSettings
from medvr_jax.training.state import Frozen, OptimizerSettings
from medvr_jax.training.throughput import Policy
from medvr_jax.training.update import UpdateSettings


@dataclasses.dataclass(frozen=True)
class Parts:
    """What training, evaluation and export share.

    Attributes:
        config: the run's configuration.
        mesh: the devices.
        graphdef: structure of the backbone.
        params: its parameters as the model folder has them, laid out for training. A train state made of them takes
            them over: once it is updated, only their shapes are left here.
        backbone: its shapes.
        encoder: tokenizer, image processor and system prompt.
        tools: tools by name.
        source: training and test examples.
    """

    config: Any
    mesh: Mesh
    graphdef: nnx.GraphDef
    params: nnx.State
    backbone: BackboneConfig
    encoder: Encoder
    tools: dict[str, Tool]
    source: ExampleSource

    def engine(self, settings: RolloutSettings) -> RolloutEngine:
        """A rollout engine for these shapes and rules."""
        place = sharding.by_group(self.mesh)
        put = functools.partial(distributed.put_rows, sharding=place)
        read = functools.partial(distributed.read_rows, sharding=place)
        return RolloutEngine(
            self.graphdef, self.backbone, self.encoder, self.tools, settings, put, read, self.sampling_layout
        )

    def rows(self, total: int) -> distributed.Rows:
        """This process's share of a batch of `total` groups."""
        return distributed.rows_of(sharding.by_group(self.mesh), total)

    @property
    def training_layout(self) -> Layout:
        """Where masters, optimiser state and the update's activations live."""
        return sharding.make_layout(sharding.TRAINING, self.mesh, self.backbone)

    @property
    def sampling_layout(self) -> Layout:
        """Where the weights and caches of a rollout live."""
        return sharding.make_layout(sharding.SAMPLING, self.mesh, self.backbone)


def assemble(
    config: Any,
    devices: Sequence[jax.Device] | None = None,
    *,
    splits: Iterable[str] = SPLITS,
    report_folder: Path | None = None,
) -> Parts:
    """Reads the model folder and the data; UserError for what is wrong with them.

    Args:
        config: the run's configuration.
        devices: to use; all by default.
        splits: of the data, to be checked now.
        report_folder: where what is wrong with the data is listed.
    """
    mesh = sharding.make_mesh(sharding.MeshShape(config.mesh.data, config.mesh.fsdp, config.mesh.tensor), devices)
    check_batches(_flat(config), sharding.data_shards(mesh))
    folder = model_folder(config.model.path)
    with distributed.together():
        tools = tools_by_name(config.rollout.tools)
        encoder = load_encoder(
            folder,
            config.prompt.system or system_prompt(tools),
            template=config.prompt.template,
            option=config.prompt.option,
            prompt_patches=config.prompt.patches,
            prompt_min_pixels=config.prompt.min_pixels,
            prompt_max_pixels=config.prompt.max_pixels,
            crop_patches=config.rollout.crop_patches,
            crop_min_pixels=config.rollout.crop_min_pixels,
            crop_max_pixels=config.rollout.crop_max_pixels,
        )
        if tools:
            _check_observation_fits(encoder, config.rollout)
        source = make_source(config.data, config.seed, report_folder if distributed.is_main() else None)
        if distributed.is_main():
            source.prepare(splits)
    with distributed.together():
        source.load(splits)
    backbone = BackboneConfig.from_folder(folder)
    place = functools.partial(
        sharding.parameter_shardings, layout=sharding.make_layout(sharding.TRAINING, mesh, backbone)
    )
    graphdef, params = load_backbone(folder, config.model.parameter_dtype, config.model.compute_dtype, place)
    attention = sharding.attention_backend(config.model.attention, mesh)
    graphdef = with_settings(graphdef, params, attention=attention, images_at_once=config.model.images_at_once)
    return Parts(config, mesh, graphdef, params, backbone, encoder, tools, source)


def survey_prompts(parts: Parts, *, training: bool) -> tuple[tuple[int, int], ...]:
    """(tokens, patches) that suit the batches of this run, those of evaluation and, where asked for, of training.

    Raises:
        UserError: for an example that is needed and does not fit, or whose image cannot be read.
    """
    prompt, data, source = parts.config.prompt, parts.config.data, parts.source
    largest = (prompt.bucket, prompt.patches)
    if prompt.sizes < 2:
        return (largest,)

    def needed(examples: Sequence[Example]) -> np.ndarray:
        found = rooms(examples, parts.encoder)
        for example, room in zip(examples, found.tolist(), strict=True):
            check_room(example.id, *room, len(example.images), prompt.bucket, prompt.images, prompt.patches)
        return found

    def needed_in_step(step: int, known: dict[Hashable, tuple[int, int]]) -> np.ndarray:
        start = step * data.prompts_per_step
        keys = source.keys(start, data.prompts_per_step)
        new = {key: start + row for row, key in enumerate(keys) if key not in known}
        found = needed([source.train(position, 1)[0] for position in new.values()])
        known.update(zip(new, map(tuple, found.tolist()), strict=True))
        return np.max([known[key] for key in keys], axis=0)

    steps = range(1 if source.alike else parts.config.steps) if training else ()
    size = data.evaluation_batch
    with distributed.together():
        known: dict[Hashable, tuple[int, int]] = {}
        batches = [needed_in_step(step, known) for step in steps]
        tested = source.test(size if source.alike else data.test_examples)
        batches += [needed(tested[start : start + size]).max(axis=0) for start in range(0, len(tested), size)]
    return prompt_sizes(np.array(batches), largest, count=prompt.sizes, merge_unit=parts.encoder.merge_size**2)


def _check_observation_fits(encoder: Encoder, rollout: Any) -> None:
    """UserError unless the largest crop and the text around it fit the tokens of an observation."""
    side = math.isqrt(rollout.crop_max_pixels)
    needed = len(encode_observation(encoder, 0, crop=Image.new("RGB", (side, side))).token_ids)
    if needed > rollout.observation_length:
        raise UserError(
            f"rollout.observation_length: found {rollout.observation_length}, a crop of rollout.crop_max_pixels ="
            f" {rollout.crop_max_pixels} with the text around it takes {needed} tokens"
        )


def _flat(config: Any) -> dict[str, Any]:
    sections = ("data", "grpo", "rollout")
    return {f"{section}.{name}": value for section in sections for name, value in config[section].items()}


def training_rollout(
    config: Any, backbone: BackboneConfig, prompts: tuple[tuple[int, int], ...] = ()
) -> RolloutSettings:
    """Rollouts of training: M trajectories at a temperature, with forks if the configuration has them. prompts: what
    `survey_prompts` found."""
    return dataclasses.replace(
        greedy_rollout(config, backbone, prompts),
        trajectories=config.rollout.trajectories,
        temperature=config.rollout.temperature,
        evr=_evr(config, backbone) if config.evr.enabled else None,
    )


def groups_at_once(config: Any) -> int:
    """Groups that one rollout holds: all of a step, or fewer where the configuration says so."""
    return config.rollout.groups_at_once or config.data.prompts_per_step


def greedy_rollout(config: Any, backbone: BackboneConfig, prompts: tuple[tuple[int, int], ...] = ()) -> RolloutSettings:
    """Rollouts of evaluation: one greedy trajectory, no forks. prompts: what `survey_prompts` found."""
    vision = backbone.vision
    return RolloutSettings(
        trajectories=1,
        temperature=0.0,
        max_turns=config.rollout.max_turns,
        response_length=config.rollout.response_length,
        observation_length=config.rollout.observation_length,
        prompt_bucket=config.prompt.bucket,
        prompt_images=config.prompt.images,
        prompt_patches=config.prompt.patches,
        crop_patches=config.rollout.crop_patches,
        smallest_crop=config.rollout.crop_min_pixels // vision.patch_size**2,
        merge_unit=vision.merge_unit,
        tools=bool(config.rollout.tools),
        surveyed_prompts=prompts,
        sizes=config.rollout.sizes,
        evr=None,
    )


def evaluation_rollout(
    config: Any, backbone: BackboneConfig, prompts: tuple[tuple[int, int], ...] = ()
) -> RolloutSettings:
    """Rollouts of `--mode=evaluate`: greedy ones, or as many samples as it asks for."""
    evaluate = config.evaluate
    settings = greedy_rollout(config, backbone, prompts)
    return dataclasses.replace(settings, trajectories=evaluate.samples, temperature=evaluate.temperature)


def _evr(config: Any, backbone: BackboneConfig) -> EvrSettings:
    evr = config.evr
    scale = 1.0 if evr.entropy_unit == "nats" else 1.0 / math.log(backbone.text.vocab_size)
    return EvrSettings(
        p_base=evr.p_base,
        gamma=evr.gamma,
        threshold=evr.threshold,
        base_tokens=evr.base_tokens,
        window=evr.window,
        entropy_scale=scale,
        repeated=evr.spending == "repeated",
        max_passes=evr.max_passes,
        gate=evr.gate,
        position=evr.position,
    )


def reward_settings(config: Any) -> RewardSettings:
    """Weights and rules of the reward and the advantage; UserError for one that needs the groups of other processes."""
    limit, processes = config.rewards.maximum_popularity, jax.process_count()
    if limit < 1 and processes > 1:
        raise UserError(
            f"rewards.maximum_popularity: found {limit} in a run of {processes} processes, allowed is 1.0 there, as"
            " each knows its own questions alone"
        )
    names = [field.name for field in dataclasses.fields(RewardSettings)]
    values = {**config.rewards, **config.grpo}
    return RewardSettings(**{name: values[name] for name in names})


def update_settings(config: Any, mesh: Mesh) -> UpdateSettings:
    """The objective and how its gradient is taken."""
    grpo = config.grpo
    return UpdateSettings(
        clip_low=grpo.clip_low,
        clip_high=grpo.clip_high,
        kl_weight=grpo.kl_weight,
        aggregation=grpo.aggregation,
        temperature=config.rollout.temperature,
        micro_batch_groups=grpo.micro_batch_groups,
        logit_chunk=grpo.logit_chunk,
        remat=config.model.remat,
        compute_dtype=config.model.compute_dtype,
        data_shards=sharding.data_shards(mesh),
    )


def frozen_parts(config: Any) -> Frozen:
    """The parts of the model that are not trained."""
    return Frozen(vision_tower=config.model.freeze_vision_tower, embeddings=config.model.freeze_embeddings)


def priced_policy(config: Any, params: nnx.State, backbone: BackboneConfig) -> Policy:
    """What a step's tokens and images cost."""
    return Policy(
        sizes=matrices(params, backbone),
        backbone=backbone,
        width=jnp.dtype(config.model.compute_dtype).itemsize,
        vision_trained=not config.model.freeze_vision_tower,
        head_trained=not (config.model.freeze_embeddings and backbone.text.tie_word_embeddings),
        updates=config.grpo.updates_per_batch,
        reference=bool(config.grpo.kl_weight),
    )


def optimizer_settings(config: Any) -> OptimizerSettings:
    """AdamW and its schedule."""
    return OptimizerSettings(**config.optimizer, steps=config.steps * config.grpo.updates_per_batch)


def run_seed_key(config: Any, step: int) -> jax.Array:
    """The random key of a step; nothing else of a run is random."""
    return jax.random.fold_in(jax.random.key(config.seed), step)


def with_seed(parts: Parts, seed: int) -> Parts:
    """The same parts for a run with another seed, which sees other questions, or these in another order."""
    changed = ConfigDict(parts.config.to_dict(), type_safe=False)
    changed.seed = seed
    return dataclasses.replace(parts, config=FrozenConfigDict(changed), source=make_source(changed.data, seed))
