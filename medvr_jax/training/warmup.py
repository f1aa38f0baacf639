"""The supervised warm-up that makes the tiny checkpoint; see configs/tiny_warmup.py.

Three stages: the vision tower alone tells crops' classes and markers' places; then the whole model learns to point at a
marker; then format, reading and pointing together. It stands in for pre-training, and is no part of the method: the
lesion's place is never a target.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image

from medvr_jax.datasets.synthetic import CLASSES, LESION_WORD, SyntheticTask, question
from medvr_jax.inputs.boxes import check_zoom_box
from medvr_jax.inputs.chat import Prompt, load_encoder
from medvr_jax.inputs.images import PreparedImage, pack_images, prepare_image
from medvr_jax.inputs.tokenizer import make_token_tables
from medvr_jax.models.backbone import PromptInputs, ResponseInputs
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.features import image_features
from medvr_jax.models.packing import pack_all
from medvr_jax.models.vision import ImageBatch
from medvr_jax.models.weights import random_backbone, save_backbone
from medvr_jax.training.tiny_folder import TINY_DIRECT_SYSTEM, TINY_ZOOM_SYSTEM, write_tiny_folder
from medvr_jax.training.warmup_data import Lattice, RowBatch, RowMaker, batch_rows

OVERVIEW = 112  # pixels: what the folder's image processor makes of the task's square images
PATCHES = 64
PROMPT_SLOTS, CALL_SLOTS, ZOOM_SLOTS = 64, 48, 96  # P, and T of one and of two turns


def run_warmup(config: Any, workdir: str | Path) -> None:
    """Trains from random parameters and writes WORKDIR/export, a whole Hugging Face folder."""
    settings, folder = config.warmup, Path(workdir) / "export"
    backbone_config = write_tiny_folder(
        folder,
        vocabulary=settings.vocabulary,
        initializer_range=settings.initializer_range,
        text=dict(settings.text),
        vision=dict(settings.vision),
    )
    trainer = _Trainer(config, folder, backbone_config)
    params = trainer.mix(trainer.ground(trainer.tower(trainer.start())))
    save_backbone(folder, backbone_config, params)
    print(f"warm-up done: {folder}", flush=True)


class _Trainer:
    """The three stages over shared pools of prompts."""

    def __init__(self, config: Any, folder: Path, backbone_config: BackboneConfig) -> None:
        self.settings, self.config = config.warmup, backbone_config
        self.task = SyntheticTask(**dict(config.data.synthetic))
        self.rng = np.random.default_rng(config.seed)
        self.graphdef, self._params = random_backbone(backbone_config, config.seed)
        lattice = Lattice(OVERVIEW, self.settings.box_side, self.settings.box_step)
        weights = {name: self.settings[name] for name in ("answer_weight", "random_box_weight")}
        self.zoomer, self.director = (
            RowMaker(load_encoder(folder, system, prompt_patches=PATCHES, crop_patches=PATCHES), lattice, **weights)
            for system in (TINY_ZOOM_SYSTEM, TINY_DIRECT_SYSTEM)
        )
        tables = make_token_tables(self.zoomer.encoder.tokenizer, backbone_config.text.vocab_size)
        self.banned = jnp.asarray(tables.banned)

    def start(self) -> dict[str, Any]:
        """Random parameters, and the linear probes of stages 1 and 2: of a crop's class and of the marker's place."""
        width = self.config.text.hidden_size
        sizes = {"class": len(CLASSES), "place": self.config.vision.merge_unit}
        probes = {name: {"kernel": jnp.zeros((width, n)), "bias": jnp.zeros(n)} for name, n in sizes.items()}
        return {"model": self._params, "probes": probes}

    # ------------------------------------------------------------------------------------------------- stages

    def tower(self, trained: dict[str, Any]) -> dict[str, Any]:
        """Stage 1: the probes teach the tower."""
        settings = self.settings

        def batch():
            return self._crops(settings.probe_batch), self._places(settings.probe_batch)

        return self._fit("tower", self._probe_loss, trained, batch, settings.tower_steps, falling=False)

    def ground(self, trained: dict[str, Any]) -> dict[str, Any]:
        """Stage 2: pointing at the marker; the probes go on, or the tower forgets the classes."""
        settings = self.settings

        def loss(trained, batch):
            marker, *probed = batch
            pointing, figures = self._loss(trained["model"], {"marker": marker})
            probing, more = self._probe_loss(trained, probed)
            return pointing + settings.probe_weight * probing, figures | more

        def batch():
            few = settings.probe_batch // 4
            markers = self._markers(settings.ground_batch, settings.ground_box_weight)
            return markers, self._crops(few), self._places(few)

        enough = ("marker/box", settings.ground_until)
        return self._fit("ground", loss, trained, batch, settings.ground_steps, falling=False, enough=enough)

    def mix(self, trained: dict[str, Any]) -> nnx.State:
        """Stage 3: everything the policy shall bring, in the rollout's own layout."""
        settings = self.settings
        direct = [self.director.prompt(prompt.example) for prompt in self.lesions[: settings.pool // 4]]
        # Asked for the lesion where there is only a marker: it is the word that decides, not the picture.
        decoys = [
            self.zoomer.prompt(dataclasses.replace(prompt.example, question=question(LESION_WORD)))
            for prompt in self.markers[: settings.pool // 4]
        ]

        def batch():
            prompts = self._draw(self.lesions, settings.lesion_batch) + self._draw(decoys, settings.decoy_batch)
            rows = [[self.zoomer.zoom(p, self.rng, on_lesion=False) for _ in range(settings.rows)] for p in prompts]
            plain = self._draw(direct, settings.direct_batch)
            return {
                "lesion": self._batch(prompts, rows, ZOOM_SLOTS),
                "reading": self._readings(settings.reading_batch),
                "marker": self._markers(settings.marker_batch, settings.marker_box_weight),
                "direct": self._batch(plain, [[self.director.direct(p, self.rng)] for p in plain], CALL_SLOTS),
            }

        return self._fit("mixed", self._loss, trained["model"], batch, settings.mixed_steps, falling=True)

    # --------------------------------------------------------------------------------------------------- data

    def _crop(self, index: int) -> tuple[PreparedImage, int]:
        """A readable crop (the lesion is in the box) and its class."""
        scene = self.task.scene("warmup", index)
        side = scene.pixels.shape[0]
        boxes = self.zoomer.lattice.hitting(tuple(v / side for v in scene.box))
        box = boxes[self.rng.integers(len(boxes))]
        zoom = check_zoom_box(list(box), (OVERVIEW, OVERVIEW), (side, side))
        encoder = self.zoomer.encoder
        crop = Image.fromarray(scene.pixels).crop(zoom.original).convert("RGB")
        return prepare_image(encoder.processor, crop, max_patches=PATCHES), scene.label

    @functools.cached_property
    def markers(self) -> list[Prompt]:
        return self._pool("markers", self.zoomer, self.task.marker_example)

    @functools.cached_property
    def lesions(self) -> list[Prompt]:
        return self._pool("lesions", self.zoomer, self.task.example)

    @functools.cached_property
    def crops(self) -> list[tuple[PreparedImage, int]]:
        return [self._crop(index) for index in range(self.settings.pool)]

    def _crops(self, count: int) -> tuple[ImageBatch, np.ndarray]:
        drawn = self._draw(self.crops, count)
        images = pack_images([crop for crop, _ in drawn], PATCHES, self.config.vision)
        return images, np.array([label for _, label in drawn])

    def _places(self, count: int) -> tuple[ImageBatch, np.ndarray]:
        """Overviews with a marker, and the index, in the processor's order, of the patch that holds its centre."""
        drawn = self._draw(self.markers, count)
        images = pack_images([prompt.images[0] for prompt in drawn], PATCHES, self.config.vision)
        boxes = np.array([prompt.example.boxes[0] for prompt in drawn])
        column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 * PATCHES**0.5).astype(int).T
        cells = int(PATCHES**0.5) // 2
        return images, ((row // 2 * cells + column // 2) * 4 + row % 2 * 2 + column % 2).astype(np.int32)

    def _pool(self, name: str, maker: RowMaker, example: Callable) -> list[Prompt]:
        start = time.perf_counter()
        pool = [maker.prompt(example("warmup", index)) for index in range(self.settings.pool)]
        print(f"[{name}] {len(pool)} prompts in {time.perf_counter() - start:.1f} s", flush=True)
        return pool

    def _draw(self, pool: list, count: int) -> list:
        return [pool[i] for i in self.rng.integers(len(pool), size=count)]

    def _markers(self, count: int, box_weight: float) -> RowBatch:
        prompts = self._draw(self.markers, count)
        return self._batch(prompts, [[self.zoomer.point(p, self.rng, box_weight)] for p in prompts], CALL_SLOTS)

    def _readings(self, count: int) -> RowBatch:
        prompts = self._draw(self.lesions, count)
        rows = [[self.zoomer.zoom(p, self.rng, on_lesion=True) for _ in range(self.settings.rows)] for p in prompts]
        return self._batch(prompts, rows, ZOOM_SLOTS)

    def _batch(self, prompts: list[Prompt], rows: list, slots: int) -> RowBatch:
        return batch_rows(prompts, rows, P=PROMPT_SLOTS, T=slots, S=PATCHES, vision=self.config.vision)

    # --------------------------------------------------------------------------------------------------- training

    def _probe_loss(self, trained: dict[str, Any], batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """batch: crops with their classes, and overviews with the patch that the marker's centre lies in."""
        backbone = nnx.merge(self.graphdef, trained["model"])
        total, figures = jnp.zeros(()), {}
        for (name, probe), (images, labels) in zip(sorted(trained["probes"].items()), batch, strict=True):
            features = backbone.encode_images(images)  # [I, S // merge², D]
            if name == "class":
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
