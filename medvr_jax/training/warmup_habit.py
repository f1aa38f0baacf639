"""The warm-up of a policy with a habit: it names a place before it zooms, and most places stand for one box each.

The habit is put in on purpose, for experiments (configs/arms.py): the thought before the box is a sampled hypothesis,
`centre`, `left` and `right` go with one box each, and only `spot` is a search. Where a lesion is, is never a target. A
crop without a lesion is answered with "nothing visible", or by luck.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from medvr_jax.datasets.synthetic import HABIT_BOXES, MARKER_WORD
from medvr_jax.evaluation.grounding import any_hit
from medvr_jax.inputs.boxes import Box, normalise_box
from medvr_jax.inputs.chat import Encoder, Prompt
from medvr_jax.training.tiny_folder import SEARCH_PLACE, TINY_ZOOM_SYSTEM, place_thought
from medvr_jax.training.warmup_boxes import BoxRowMaker, Lattice
from medvr_jax.training.warmup_data import Row, RowBatch
from medvr_jax.training.warmup_trainer import OVERVIEW
from medvr_jax.training.warmup_zoom import ZoomTrainer

PixelBox = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Habit:
    """How a policy looks for lesions.

    Attributes:
        share: of its trajectories that name one of the habit's places, each as often.
        strength: of these, the share that has the place's own box; the others search.
        box_weight: of the coordinates behind a habit's place.
        luck: of the crops without a lesion, the share that is answered with a class, at random.
        lattices: what a search draws its box from …
        shares: … and how often from which.
    """

    share: float
    strength: float
    box_weight: float
    luck: float
    lattices: tuple[Lattice, ...]
    shares: tuple[float, ...]


class HabitRowMaker(BoxRowMaker):
    """Trajectories that name a place and zoom."""

    def __init__(
        self, encoder: Encoder, lattice: Lattice, habit: Habit, *, answer_weight: float, random_box_weight: float
    ) -> None:
        """`lattice` is for pointing at markers; the weights are those of `BoxRowMaker`."""
        super().__init__(encoder, lattice, answer_weight=answer_weight, random_box_weight=random_box_weight)
        self.habit = habit

    def hitting_box(self, true: Box, rng: np.random.Generator) -> PixelBox:
        """One of the boxes of a search that hit the normalised box."""
        hitting = self._some_lattice(rng).hitting(true)
        return hitting[rng.integers(len(hitting))]

    def zoom(self, prompt: Prompt, rng: np.random.Generator, *, on_lesion: bool) -> Row:
        """As `BoxRowMaker.zoom`, with the habit's boxes where a random one was."""
        if on_lesion:
            return super().zoom(prompt, rng, on_lesion=True)
        box, call = self._habitual(rng)
        return self.look(prompt, call, self.crop(prompt, box), answer_weight=1.0, letter=self._letter(prompt, box, rng))

    def call(self, prompt: Prompt, rng: np.random.Generator) -> Row:
        """The first turn alone: a place, and a box that goes with it."""
        return self._row(prompt, *self._habitual(rng)[1])

    def _habitual(self, rng: np.random.Generator) -> tuple[PixelBox, tuple[np.ndarray, np.ndarray]]:
        """The box, and the tokens and weights of the call."""
        place = SEARCH_PLACE
        if rng.random() < self.habit.share:
            place = list(HABIT_BOXES)[rng.integers(len(HABIT_BOXES))]
        habitual = place != SEARCH_PLACE
        if habitual and rng.random() < self.habit.strength:
            box: PixelBox = tuple(round(v * OVERVIEW) for v in HABIT_BOXES[place])
        else:
            box = self._some_lattice(rng).random(rng)
        weight = self.habit.box_weight if habitual else self._random_box_weight
        return box, self._zoom(box, place_thought(place), weight=1.0, box_weight=weight)

    def _letter(self, prompt: Prompt, box: PixelBox, rng: np.random.Generator) -> str:
        """What there is to be seen in the box, as far as it is trained."""
        if any_hit([normalise_box(box, (OVERVIEW, OVERVIEW))], prompt.example.boxes):
            return prompt.example.answer
        return self._guess(prompt.example, rng) if rng.random() < self.habit.luck else "A"

    def _thought(self, rng: np.random.Generator) -> str:
        return place_thought(SEARCH_PLACE)

    def _marker_thought(self, rng: np.random.Generator) -> str:
        return place_thought(MARKER_WORD)

    def _some_lattice(self, rng: np.random.Generator) -> Lattice:
        return self.habit.lattices[rng.choice(len(self.habit.lattices), p=self.habit.shares)]


class HabitTrainer(ZoomTrainer):
    """The stages of `ZoomTrainer`, with a habit."""

    call_slots, look_slots = 56, 112  # a place takes more words

    @functools.cached_property
    def zoomer(self) -> HabitRowMaker:
        """Makes the trajectories that zoom."""
        settings = self.settings
        lattice = Lattice(OVERVIEW, settings.box_side, settings.box_step)
        habit = Habit(
            share=settings.habit_share,
            strength=settings.habit_strength,
            box_weight=settings.habit_box_weight,
            luck=settings.luck,
            lattices=tuple(Lattice(OVERVIEW, side, settings.box_step) for side in settings.search_sides),
            shares=tuple(settings.search_shares),
        )
        weights = {name: settings[name] for name in ("answer_weight", "random_box_weight")}
        return HabitRowMaker(self.encoder(TINY_ZOOM_SYSTEM), lattice, habit, **weights)

    def _calls(self) -> dict[str, RowBatch]:
        """Lesions asked for as well: what the places stand for takes as long to learn as pointing."""
        prompts = self._draw(self.lesions, self.settings.habit_batch)
        rows = [[self.zoomer.call(prompt, self.rng)] for prompt in prompts]
        return super()._calls() | {"habit": self._batch(prompts, rows, self.call_slots)}
