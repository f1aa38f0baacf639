"""The warm-up of a policy that changes the contrast: what it learns from, and its two stages.

It learns to say how bright something is, to call the tool with the window around a plain square that it is asked for,
and to read a lesion that a window shows. Which window shows a lesion is never a target: asked for a lesion, it is
trained to call windows drawn at random, whatever the image.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image

from medvr_jax.datasets.synthetic import CLASSES, FAINT_LEVELS, LESION_WORD, question
from medvr_jax.inputs.chat import Encoder, Prompt
from medvr_jax.inputs.images import PreparedImage, load_original, prepare_image
from medvr_jax.models.vision import ImageBatch
from medvr_jax.rollout.tools.window import Window, apply_window
from medvr_jax.training.tiny_folder import TINY_WINDOW_SYSTEM, level_thought
from medvr_jax.training.warmup_data import Row, RowBatch, RowMaker
from medvr_jax.training.warmup_trainer import PATCHES, WarmupTrainer


class WindowRowMaker(RowMaker):
    """Trajectories that change the contrast; there is one window for each of the levels that lesions have."""

    def __init__(
        self, encoder: Encoder, width: int, *, answer_weight: float, naming_weight: float, random_window_weight: float
    ) -> None:
        """For windows of this width. The weights are of the tokens that name the class and how bright the lesion is,
        and of a window's; all others weigh 1."""
        super().__init__(encoder, answer_weight=answer_weight)
        self.windows = [(level - width // 2, level + width // 2) for level in FAINT_LEVELS]
        self._naming_weight, self._random_window_weight = naming_weight, random_window_weight

    def window(self, prompt: Prompt, level: int, rng: np.random.Generator, *, on_lesion: bool) -> Row:
        """A window and the answer, of a lesion that has this one of the levels. The window that shows it carries no
        loss; a random one does, and shows nothing more often than not."""
        window = self.windows[level if on_lesion else rng.integers(len(self.windows))]
        call = self._window(window, level, weight=0.0 if on_lesion else 1.0, window_weight=self._random_window_weight)
        image = windowed(load_original(prompt.example.images[0]).levels, *window)
        return self.look(prompt, call, image, answer_weight=self._answer_weight if on_lesion else 1.0)

    def point(self, prompt: Prompt, level: int, window_weight: float) -> Row:
        """The first turn alone, its window around the level of what the prompt asks for: only for squares."""
        return self._row(prompt, *self._window(self.windows[level], level, weight=1.0, window_weight=window_weight))

    def _window(
        self, window: tuple[int, int], level: int, *, weight: float, window_weight: float
    ) -> tuple[np.ndarray, np.ndarray]:
        thought = f"<think>{level_thought(level)}</think>"
        opening = f'{thought}<tool_call>{{"name": "{Window.name}", "arguments": {{"window": ['
        numbers = ", ".join(map(str, window))
        tokens, weights = self._call(opening, numbers, weight=weight, argument_weight=window_weight)
        named = self._tokens(thought)  # all but one token are the same, whatever the level
        other = self._tokens(f"<think>{level_thought((level + 1) % len(FAINT_LEVELS))}</think>")
        weights[: len(named)][[a != b for a, b in zip(named, other, strict=True)]] *= self._naming_weight
        return tokens, weights


def windowed(levels: np.ndarray, low: float, high: float) -> Image.Image:
    """What the tool returns."""
    return Image.fromarray(apply_window(levels, low, high)).convert("RGB")


class WindowTrainer(WarmupTrainer):
    """Two stages over shared pools of prompts."""

    probes = {"class": len(CLASSES), "level": len(FAINT_LEVELS)}

    @functools.cached_property
    def windower(self) -> WindowRowMaker:
        """Makes the trajectories with the tool."""
        names = ("answer_weight", "naming_weight", "random_window_weight")
        weights = {name: self.settings[name] for name in names}
        return WindowRowMaker(self.encoder(TINY_WINDOW_SYSTEM), self.settings.window_width, **weights)

    def run(self) -> nnx.State:
        """See `WarmupTrainer.run`."""
        return self.mix(self.tower(self.start()))

    # ------------------------------------------------------------------------------------------------- stages

    def tower(self, trained: dict[str, Any]) -> dict[str, Any]:
        """Stage 1: the probes teach the tower, of the right window's image the class and of the overview the level."""
        count = self.settings.probe_batch

        def batch():
            return self._windows(count), self._overviews(count)

        return self._fit("tower", self._probe_loss, trained, batch, self.settings.tower_steps, falling=False)

    def mix(self, trained: dict[str, Any]) -> nnx.State:
        """Stage 2: everything the policy shall bring, in the rollout's own layout."""
        settings = self.settings
        lesions = list(zip(self.lesions, self.levels, strict=True))
        markers = list(zip(self.markers, self._levels_of(marker=True), strict=True))
        # Asked for the lesion where there is only a square: it is the word that decides, not the picture.
        decoys = [
            (self.windower.prompt(dataclasses.replace(prompt.example, question=question(LESION_WORD))), level)
            for prompt, level in markers[: settings.pool // 4]
        ]

        def batch():
            random = self._draw(lesions, settings.lesion_batch) + self._draw(decoys, settings.decoy_batch)
            reading = self._draw(lesions, settings.reading_batch)
            plain = self._draw(self.direct_prompts, settings.direct_batch)
            return {
                "lesion": self._looks(random, settings.rows, on_lesion=False),
                "reading": self._looks(reading, 1, on_lesion=True),
                "marker": self._points(self._draw(markers, settings.marker_batch)),
                "direct": self._directs(plain),
            }

        return self._fit("mixed", self._loss, trained["model"], batch, settings.mixed_steps, falling=True)

    # --------------------------------------------------------------------------------------------------- data

    @functools.cached_property
    def lesions(self) -> list[Prompt]:
        return self._pool("lesions", self.windower, self.task.example)

    @functools.cached_property
    def markers(self) -> list[Prompt]:
        """Prompts that ask for a plain square."""
        return self._pool("markers", self.windower, self.task.marker_example)

    @functools.cached_property
    def levels(self) -> list[int]:
        """Of each lesion of the pool the index of its level."""
        return self._levels_of(marker=False)

    def _levels_of(self, *, marker: bool) -> list[int]:
        return [self.task.scene("warmup", index, marker=marker).level for index in range(self.settings.pool)]

    @functools.cached_property
    def seen(self) -> list[PreparedImage]:
        """Each lesion of the pool as the right window shows it."""
        return [self._seen(index) for index in range(self.settings.pool)]

    def _seen(self, index: int) -> PreparedImage:
        original = load_original(self.lesions[index].example.images[0])
        image = windowed(original.levels, *self.windower.windows[self.levels[index]])
        return prepare_image(self.windower.encoder.processor, image, max_patches=PATCHES)

    def _windows(self, count: int) -> tuple[ImageBatch, np.ndarray]:
        drawn = self.rng.integers(self.settings.pool, size=count)
        answers = [self.lesions[i].example.answer for i in drawn]
        return self._images([self.seen[i] for i in drawn]), np.array(["ABCD".index(a) for a in answers])

    def _overviews(self, count: int) -> tuple[ImageBatch, np.ndarray]:
        drawn = self.rng.integers(self.settings.pool, size=count)
        return self._images([self.lesions[i].images[0] for i in drawn]), np.array([self.levels[i] for i in drawn])

    def _looks(self, asked: list[tuple[Prompt, int]], each: int, *, on_lesion: bool) -> RowBatch:
        rows = [
            [self.windower.window(prompt, level, self.rng, on_lesion=on_lesion) for _ in range(each)]
            for prompt, level in asked
        ]
        return self._batch([prompt for prompt, _ in asked], rows, self.look_slots)

    def _points(self, asked: list[tuple[Prompt, int]]) -> RowBatch:
        weight = self.settings.marker_window_weight
        rows = [[self.windower.point(prompt, level, weight)] for prompt, level in asked]
        return self._batch([prompt for prompt, _ in asked], rows, self.call_slots)
