"""What the stages of a supervised warm-up have in common: pools of prompts, losses, and how one stage is fitted."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from medvr_jax.datasets.synthetic import SyntheticTask
from medvr_jax.inputs.chat import Encoder, Prompt, load_encoder
from medvr_jax.inputs.images import PreparedImage, pack_images
from medvr_jax.inputs.tokenizer import make_token_tables
from medvr_jax.models.backbone import PromptInputs, ResponseInputs
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.features import image_features
from medvr_jax.models.packing import pack_all
from medvr_jax.models.vision import ImageBatch
from medvr_jax.models.weights import random_backbone
from medvr_jax.training.tiny_folder import TINY_DIRECT_SYSTEM
from medvr_jax.training.warmup_data import RowBatch, RowMaker, batch_rows

OVERVIEW = 112  # pixels: what the folder's image processor makes of the task's square images
PATCHES = 64
PROMPT_SLOTS = 64  # P


class WarmupTrainer:
    """Fits stages; the subclasses say which, and what is learned in them."""

    probes: Mapping[str, int]  # linear probes of the tower's features: their outputs by name
    call_slots, look_slots = 48, 96  # T of one and of two turns

    def __init__(self, config: Any, folder: Path, backbone_config: BackboneConfig) -> None:
        """For a recipe and the folder that `tiny_folder` wrote."""
        self.settings, self.config = config.warmup, backbone_config
        self.task = SyntheticTask(**dict(config.data.synthetic))
        self.rng = np.random.default_rng(config.seed)
        self.graphdef, self._params = random_backbone(backbone_config, config.seed)
        self.folder = folder
        self.director = RowMaker(self.encoder(TINY_DIRECT_SYSTEM), answer_weight=self.settings.answer_weight)
        tables = make_token_tables(self.director.encoder.tokenizer, backbone_config.text.vocab_size)
        self.banned = jnp.asarray(tables.banned)

    def run(self) -> nnx.State:
        """All stages, from random parameters on."""
        raise NotImplementedError

    def encoder(self, system: str) -> Encoder:
        """The folder's, with this system prompt."""
        return load_encoder(self.folder, system, prompt_patches=PATCHES, crop_patches=PATCHES)

    def start(self) -> dict[str, Any]:
        """Random parameters and probes."""
        width = self.config.text.hidden_size
        probes = {name: {"kernel": jnp.zeros((width, n)), "bias": jnp.zeros(n)} for name, n in self.probes.items()}
        return {"model": self._params, "probes": probes}

    # --------------------------------------------------------------------------------------------------- data

    @functools.cached_property
    def lesions(self) -> list[Prompt]:
        """Prompts that ask for the lesion, of the task's own tool."""
        raise NotImplementedError

    def _images(self, drawn: list[PreparedImage]) -> ImageBatch:
        return pack_images(drawn, PATCHES, self.config.vision)

    def _directs(self, prompts: list[Prompt]) -> RowBatch:
        return self._batch(prompts, [[self.director.direct(p, self.rng)] for p in prompts], self.call_slots)

    @functools.cached_property
    def direct_prompts(self) -> list[Prompt]:
        """Lesions asked for that are to be answered at once."""
        return [self.director.prompt(prompt.example) for prompt in self.lesions[: self.settings.pool // 4]]

    def _pool(self, name: str, maker: RowMaker, example: Callable) -> list[Prompt]:
        start = time.perf_counter()
        pool = [maker.prompt(example("warmup", index)) for index in range(self.settings.pool)]
        print(f"[{name}] {len(pool)} prompts in {time.perf_counter() - start:.1f} s", flush=True)
        return pool

    def _draw(self, pool: list, count: int) -> list:
        return [pool[i] for i in self.rng.integers(len(pool), size=count)]

    def _batch(self, prompts: list[Prompt], rows: list, slots: int) -> RowBatch:
        return batch_rows(prompts, rows, P=PROMPT_SLOTS, T=slots, S=PATCHES, vision=self.config.vision)

    # --------------------------------------------------------------------------------------------------- training

    def _probe_loss(self, trained: dict[str, Any], batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """batch: images and what they show, for each probe in the order of its name; `place` is the number of a patch
        in the processor's order, the others are of the whole image."""
        backbone = nnx.merge(self.graphdef, trained["model"])
        total, figures = jnp.zeros(()), {}
        for (name, probe), (images, labels) in zip(sorted(trained["probes"].items()), batch, strict=True):
            features = backbone.encode_images(images)  # [I, S // merge², D]
            if name != "place":
                features = features.mean(axis=1)
            features *= jax.lax.rsqrt(jnp.mean(features**2, axis=-1, keepdims=True) + 1e-6)
            # A place is one of a cell's merge² patches: the same four outputs for every cell, one softmax over all.
            logits = (features @ probe["kernel"] + probe["bias"]).reshape(len(labels), -1)
            total += optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            figures[f"{name}/right"] = (logits.argmax(-1) == labels).mean()
        return total, figures

    def _loss(self, params: nnx.State, batches: dict[str, RowBatch]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum over kinds of the weighted mean loss; figures: of the heavy tokens, how many are the likeliest."""
        backbone = nnx.merge(self.graphdef, params)
        total, figures = jnp.zeros(()), {}
        for kind, batch in batches.items():
            logits = backbone.logits(_hidden(backbone, batch))[:, :, :-1] / self.settings.temperature
            logits = jnp.where(self.banned, -jnp.inf, logits)
            targets, weights = batch.tokens[:, :, 1:], batch.weights[:, :, 1:]
            chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
            losses = jnp.where(weights > 0, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)
            total += (losses * weights).sum() / weights.sum()
            heavy = weights > (1 if kind in ("marker", "reading") else 0)
            right = (logits.argmax(-1) == targets) & heavy
            figures[f"{kind}/right"] = right.sum() / heavy.sum()
            if kind == "marker":
                figures["marker/box"] = (right.sum(-1) == heavy.sum(-1)).mean()
        return total, figures

    def _fit(
        self,
        name: str,
        loss: Callable,
        trained: Any,
        batch: Callable,
        steps: int,
        *,
        falling: bool,
        enough: tuple[str, float] | None = None,
    ) -> Any:
        """AdamW on `loss` for at most `steps` batches, with a line of figures now and then.

        `enough`: (figure, value) ends it when the figure's mean since the last line has reached the value.
        """
        settings = self.settings
        peak = settings.mixed_learning_rate if falling else settings.learning_rate
        ramp = optax.linear_schedule(0.0, peak, settings.ramp_steps)
        rest = (
            optax.cosine_decay_schedule(peak, steps - settings.ramp_steps) if falling else optax.constant_schedule(peak)
        )
        schedule = optax.join_schedules([ramp, rest], [settings.ramp_steps])
        optimiser = optax.chain(
            optax.clip_by_global_norm(settings.max_grad_norm), optax.adamw(schedule, b2=0.99, weight_decay=0.01)
        )

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def update(trained, state, batch):
            (value, figures), gradient = jax.value_and_grad(loss, has_aux=True)(trained, batch)
            changes, state = optimiser.update(gradient, state, trained)
            return optax.apply_updates(trained, changes), state, {"loss": value, **figures}

        state = optimiser.init(trained)
        start, recent = time.perf_counter(), []
        for step in range(1, steps + 1):
            trained, state, figures = update(trained, state, batch())
            recent.append(figures)
            if step % settings.log_every == 0 or step == steps:
                means = {key: np.mean([float(f[key]) for f in recent]) for key in figures}
                spent = time.perf_counter() - start
                shown = " ".join(f"{key} {value:.3f}" for key, value in means.items())
                print(
                    f"[{name}] step {step}/{steps} {shown} | {spent:.0f} s, {spent / step * (steps - step):.0f} s left",
                    flush=True,
                )
                recent.clear()
                if enough is not None and means[enough[0]] >= enough[1]:
                    break
        return trained


def _hidden(backbone: Any, batch: RowBatch) -> jax.Array:
    """[B, M, T, D] of a batch of trajectories, images encoded with gradients."""
    prompts = batch.prompts
    prompt = PromptInputs(
        prompts.tokens,
        prompts.positions,
        prompts.valid,
        prompts.feature_index,
        image_features(backbone, prompts.images),
    )
    B, M, T = batch.tokens.shape
    features, index = jnp.zeros((B, 0, prompt.features.shape[-1]), prompt.features.dtype), batch.feature_index
    if batch.images is not None:  # one for each trajectory; the indices count within it
        features = image_features(backbone, batch.images)
        index = jnp.where(index >= 0, index + features.shape[1] // M * jnp.arange(M)[:, None], -1)
    response = ResponseInputs(batch.tokens, batch.positions, index, features)
    return backbone.score(prompt, response, pack_all(B, M, T)).reshape(B, M, T, -1)
