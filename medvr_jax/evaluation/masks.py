"""The masks of the masking test, and the questions with their image masked.

`zoomed` blanks what the policy zoomed into in its plain answer, `lesion` the true boxes; `random` and `random_lesion`
are their controls: regions of the same size and shape elsewhere, the same ones whenever a question is asked with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from medvr_jax.datasets.example import Example, Picked
from medvr_jax.evaluation.regions import elsewhere, generator_of, pixel_boxes
from medvr_jax.inputs.blanking import PixelBox
from medvr_jax.inputs.boxes import Size
from medvr_jax.inputs.chat import image_name
from medvr_jax.inputs.image_formats import Blanked
from medvr_jax.inputs.images import image_header

Boxes = Sequence[Sequence[float]]

ZOOMED, RANDOM, LESION, RANDOM_LESION = "zoomed", "random", "lesion", "random_lesion"
MASKS = (ZOOMED, RANDOM, LESION, RANDOM_LESION)
CONTROLS = {ZOOMED: RANDOM, LESION: RANDOM_LESION}


@dataclasses.dataclass(frozen=True)
class Masking:
    """One question with one mask.

    Attributes:
        index, id: of the question in its set.
        mask: one of MASKS.
        boxes: what the mask, or the one it is the control of, blanks; normalised.
    """

    index: int
    id: str
    mask: str
    boxes: Boxes

    def region(self, size: Size) -> tuple[PixelBox, ...]:
        """What is blanked of an image of this (width, height)."""
        boxes = pixel_boxes(self.boxes, size)
        if self.mask in CONTROLS:
            return boxes
        return elsewhere(boxes, size, generator_of(self.mask, self.id))


def maskings(index: int, identity: str, looked: Boxes, true: Boxes) -> list[Masking]:
    """The masks that a question can be asked with: normalised boxes that the policy looked at, and the true ones."""
    boxes = {ZOOMED: looked, RANDOM: looked, LESION: true, RANDOM_LESION: true}
    return [Masking(index, identity, mask, boxes[mask]) for mask in MASKS if boxes[mask]]


def masked_examples(examples: Sequence[Example], tasks: Sequence[Masking]) -> Picked:
    """Questions with the first image masked, the one that tools work on; each is made when it is asked for."""

    def read(place: int) -> Example:
        task = tasks[place]
        example = examples[task.index]
        first, *others = example.images
        region = task.region(image_header(first, image_name(example, 0)).size)
        return dataclasses.replace(example, images=(Blanked(first, region), *others))

    return Picked(read, range(len(tasks)))
