"""The warm-up of a policy that zooms.

Three stages: the vision tower alone tells crops' classes and markers' places; then the whole model learns to point at a
marker; then format, reading and pointing together. The lesion's place is never a target.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image

from medvr_jax.datasets.synthetic import CLASSES, LESION_WORD, question
from medvr_jax.inputs.boxes import check_zoom_box
from medvr_jax.inputs.chat import Prompt
from medvr_jax.inputs.images import PreparedImage, prepare_image
from medvr_jax.models.vision import ImageBatch
from medvr_jax.training.tiny_folder import TINY_ZOOM_SYSTEM
from medvr_jax.training.warmup_boxes import BoxRowMaker, Lattice
from medvr_jax.training.warmup_data import RowBatch
from medvr_jax.training.warmup_trainer import OVERVIEW, PATCHES, WarmupTrainer


class ZoomTrainer(WarmupTrainer):
    """The three stages over shared pools of prompts."""

    @property
    def probes(self) -> dict[str, int]:
        """Of a crop's class, and of the marker's place: one of a cell's patches."""
        return {"class": len(CLASSES), "place": self.config.vision.merge_unit}

    @functools.cached_property
    def zoomer(self) -> BoxRowMaker:
        """Makes the trajectories that zoom."""
        lattice = Lattice(OVERVIEW, self.settings.box_side, self.settings.box_step)
        weights = {name: self.settings[name] for name in ("answer_weight", "random_box_weight")}
        return BoxRowMaker(self.encoder(TINY_ZOOM_SYSTEM), lattice, **weights)

    def run(self) -> nnx.State:
        """See `WarmupTrainer.run`."""
        return self.mix(self.ground(self.tower(self.start())))

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
            calls, *probed = batch
            pointing, figures = self._loss(trained["model"], calls)
            probing, more = self._probe_loss(trained, probed)
            return pointing + settings.probe_weight * probing, figures | more

        def batch():
            few = settings.probe_batch // 4
            return self._calls(), self._crops(few), self._places(few)

        enough = ("marker/box", settings.ground_until)
        return self._fit("ground", loss, trained, batch, settings.ground_steps, falling=False, enough=enough)

    def mix(self, trained: dict[str, Any]) -> nnx.State:
        """Stage 3: everything the policy shall bring, in the rollout's own layout."""
        settings = self.settings
        # Asked for the lesion where there is only a marker: it is the word that decides, not the picture.
        decoys = [
            self.zoomer.prompt(dataclasses.replace(prompt.example, question=question(LESION_WORD), boxes=()))
            for prompt in self.markers[: settings.pool // 4]
        ]

        def batch():
            prompts = self._draw(self.lesions, settings.lesion_batch) + self._draw(decoys, settings.decoy_batch)
            rows = [[self.zoomer.zoom(p, self.rng, on_lesion=False) for _ in range(settings.rows)] for p in prompts]
            plain = self._draw(self.direct_prompts, settings.direct_batch)
            return {
                "lesion": self._batch(prompts, rows, self.look_slots),
                "reading": self._readings(settings.reading_batch),
                "marker": self._markers(settings.marker_batch, settings.marker_box_weight),
                "direct": self._directs(plain),
            }

        return self._fit("mixed", self._loss, trained["model"], batch, settings.mixed_steps, falling=True)

    # --------------------------------------------------------------------------------------------------- data

    def _crop(self, index: int) -> tuple[PreparedImage, int]:
        """A readable crop (the lesion is in the box) and its class."""
        scene = self.task.scene("warmup", index)
        side = scene.pixels.shape[0]
        box = self.zoomer.hitting_box(tuple(v / side for v in scene.box), self.rng)
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
        return self._images([crop for crop, _ in drawn]), np.array([label for _, label in drawn])

    def _places(self, count: int) -> tuple[ImageBatch, np.ndarray]:
        """Overviews with a marker, and the index, in the processor's order, of the patch that holds its centre."""
        drawn = self._draw(self.markers, count)
        images = self._images([prompt.images[0] for prompt in drawn])
        boxes = np.array([prompt.example.boxes[0] for prompt in drawn])
        column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 * PATCHES**0.5).astype(int).T
        cells = int(PATCHES**0.5) // 2
        return images, ((row // 2 * cells + column // 2) * 4 + row % 2 * 2 + column % 2).astype(np.int32)

    def _calls(self) -> dict[str, RowBatch]:
        """What stage 2 points at."""
        return {"marker": self._markers(self.settings.ground_batch, self.settings.ground_box_weight)}

    def _markers(self, count: int, box_weight: float) -> RowBatch:
        prompts = self._draw(self.markers, count)
        return self._batch(prompts, [[self.zoomer.point(p, self.rng, box_weight)] for p in prompts], self.call_slots)

    def _readings(self, count: int) -> RowBatch:
        prompts = self._draw(self.lesions, count)
        rows = [[self.zoomer.zoom(p, self.rng, on_lesion=True) for _ in range(self.settings.rows)] for p in prompts]
        return self._batch(prompts, rows, self.look_slots)
