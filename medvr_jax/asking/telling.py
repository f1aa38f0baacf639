"""What `--mode=ask` says on the terminal, beside the policy's own text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvr_jax.asking.agreement import MEANING
from medvr_jax.asking.request import Request
from medvr_jax.asking.streaming import printable
from medvr_jax.inputs.boxes import Size, scale_box
from medvr_jax.inputs.chat import Prompt
from medvr_jax.inputs.image_formats import Picture
from medvr_jax.inputs.images import PreparedImage
from medvr_jax.rollout.trajectories import IMAGE, Turn

_NO_ANSWER = {"truncated": "it ran out of room", "turn_limit": "it used all its turns"}  # by how a trajectory ended


def write(text: str) -> None:
    """A piece of a line, at once."""
    print(text, end="", flush=True)


def tell_start(request: Request, picture: Picture, prompt: Prompt, temperature: float) -> None:
    """What is looked at, and how the answers are going to be drawn."""
    header = picture.header
    frame = f", frame {request.frame or 0} of {header.frames}" if header.frames > 1 else ""
    kind, size, seen = f"{header.format}{frame}", _pixels(picture.image.size), _pixels(prompt.images[0].resized_size)
    print(f"image: {printable(request.image.name)} ({kind}), {size}; the model sees {seen}")
    if request.window:
        print("note: shown with centre {:g}, width {:g}".format(*request.window))
    for note in picture.notes:
        print(f"note: {printable(note)}")
    if request.samples > 1:
        print(f"{request.samples} samples at temperature {temperature:g}; the first one:")
    print(flush=True)


def describe_turn(number: int, turn: Turn, prepared: PreparedImage) -> str:
    """A line on what came back after a turn, counted from 0: the box in all three spaces, or an error."""
    if turn.zoom is None:
        told = "the image came back as the call asks" if turn.observation == IMAGE else turn.observation
        return f"  [turn {number + 1}] {printable(told)}" if told else ""
    normalised, seen = turn.zoom.normalised, scale_box(turn.zoom.normalised, (1, 1), prepared.resized_size)
    told = (
        f"normalised {_numbers(normalised, '.3f')}",
        f"seen {_numbers(seen, '.1f')} of {_pixels(prepared.resized_size)}",
        f"original {_numbers(turn.zoom.original, 'd')} of {_pixels(prepared.original_size)}",
    )
    return f"  [turn {number + 1}] looked at {'; '.join(told)}"


def tell_answer(answer: Mapping[str, Any]) -> None:
    """The answer that answer.json holds; of several samples all answers, and how far they agree."""
    text = printable(answer["answer_text"]) if answer["answer_text"] is not None else None
    print()
    found = answer["agreement"]
    if found is None:
        why = _NO_ANSWER.get(answer["trajectories"][0]["ended"], "the last turn holds none")
        print(f"answer: {text}" if text is not None else f"no answer: {why}")
        return
    silent = [{"samples": found["no_answer"], "text": "(no answer)"}] if found["no_answer"] else []
    for one in (*found["answers"], *silent):
        print(f"  {one['samples']:>3} of {found['samples']}  {printable(one['text'])}")
    low, high = found["confidence_interval"]
    tie = ", as frequent as another" if found["tie"] else ""
    if text is None:
        print("no answer in any sample")
        return
    print(f"answer: {text}{tie}")
    print(f"confidence: {found['confidence']:.2f} (95 % interval {low:.2f} to {high:.2f}). {MEANING}")


def _numbers(box: tuple[float, ...], form: str) -> str:
    return f"[{', '.join(format(v, form) for v in box)}]"


def _pixels(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
