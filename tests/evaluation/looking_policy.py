"""A made-up policy whose answers depend on one region of the image, in the place of the model: every figure of the
masking test is known by construction.

Its images are flat but for a grey square, whose brightness is the class. Who looks at the square answers by what is
there, and by the flat ground when it is gone; who looks elsewhere, or at nothing, always says the same.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from medvr_jax.datasets.example import Example
from medvr_jax.evaluation.answering import Answering
from medvr_jax.evaluation.answers import make_batches
from medvr_jax.evaluation.questions import QuestionSet, question_set
from medvr_jax.inputs.boxes import ZoomBox, normalise_box
from medvr_jax.inputs.images import load_image
from medvr_jax.rollout.trajectories import Trajectory, Turn

SIDE, GROUND = 64, 200
BRIGHTNESS = {"A": 40, "B": 90, "C": 140, "D": 190}  # the ground's is nearest to D
CORNER = (0, 0, 12, 12)  # where the square never is


def square(index: int) -> tuple[int, int, int, int]:
    """Where the square of a question is, in pixels."""
    x, y = 16 + 5 * (index % 6), 20 + 3 * (index % 8)
    return (x, y, x + 10, y + 8)


def letter(index: int) -> str:
    return "ABCD"[(index * 7 + index // 4) % 4]


def looks(index: int) -> bool:
    """Two of three questions are ones that the policy looks at in the right place."""
    return index % 3 != 0


def example(index: int, with_box: bool = True, dataset: str = "") -> Example:
    pixels = np.full((SIDE, SIDE), GROUND, np.uint8)
    x1, y1, x2, y2 = square(index)
    pixels[y1:y2, x1:x2] = BRIGHTNESS[letter(index)]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    boxes = (normalise_box(square(index), (SIDE, SIDE)),) if with_box else ()
    return Example(f"q{index}", (buffer.getvalue(),), "How bright?", ("a", "b", "c", "d"), letter(index), "choice",
                   boxes=boxes, dataset=dataset)  # fmt: skip


def made_set(name: str, count: int, with_boxes: bool = True) -> QuestionSet:
    return question_set(name, [example(index, with_boxes, name) for index in range(count)])


class MadeEngine:
    """Answers prompts; counts them, and breaks off at the call number `broken_at`."""

    def __init__(self, zooms: bool = True, broken_at: int | None = None) -> None:
        self.asked: list[str] = []
        self.calls = 0
        self._zooms, self._broken_at = zooms, broken_at
        nothing = np.zeros(8, bool)
        self.tables = SimpleNamespace(opens_call=nothing, opens_list=nothing, closes_list=nothing)

    def run(self, params: Any, prompts: Sequence[Any], key: Any) -> Any:
        if self.calls == self._broken_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.asked += [prompt.example.id for prompt in prompts]
        trajectories = [[self._answer(prompt.example)] for prompt in prompts]
        turns = 2 if self._zooms else 1
        sampled = np.tile([True, False], turns)[None, None].repeat(len(prompts), 0)
        host = SimpleNamespace(tokens=np.zeros(sampled.shape, int), sampled=sampled, entropy=np.zeros(sampled.shape))
        return SimpleNamespace(host=host, trajectories=trajectories)

    def _answer(self, asked: Example) -> Trajectory:
        said, turns = "B", []
        if self._zooms:
            index = int(asked.id[1:])
            box = square(index) if looks(index) else CORNER
            seen = float(np.asarray(load_image(asked.images[0]).crop(box), np.float64).mean())
            said = min(BRIGHTNESS, key=lambda name: abs(BRIGHTNESS[name] - seen))
            zoom = ZoomBox(box, normalise_box(box, (SIDE, SIDE)))
            turns.append(Turn("<think>.</think><tool_call>{}</tool_call><|im_end|>", True, None, zoom, "crop"))
        turns.append(Turn(f"<think>.</think><answer>{said}</answer><|im_end|>"))
        return Trajectory(tuple(turns), "answer", "base", None, None)


def made_ready(parts: Any, questions: Sequence[QuestionSet], engine: MadeEngine) -> Answering:
    """The made-up policy, ready to be asked in batches of the configuration's size."""
    size = parts.config.data.evaluation_batch
    plans = [make_batches(list(reversed(range(len(one.ids)))), size) for one in questions]
    return Answering(parts, None, engine, plans)
