"""What the flags of `--mode=ask` say, and the image, checked before anything heavy is imported. No jax in this file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medvr_jax.datasets.example import LETTERS
from medvr_jax.errors import UserError

if TYPE_CHECKING:
    from medvr_jax.inputs.image_formats import Picture

NOTICE = (
    "Research software, not a medical device: nothing here has been validated for clinical use, and no answer may be"
    " used to diagnose or treat anybody."
)
MOST_SAMPLES = 256


@dataclasses.dataclass(frozen=True)
class Request:
    """One question about one image.

    Attributes:
        image: the file.
        question: its text.
        options: the choices, none for a free answer.
        samples: trajectories; one is greedy, several are drawn.
        frame: of the file, from 0; None = the first, nobody having asked.
        window: (centre, width) for the grey levels; None = the file's own.
    """

    image: Path
    question: str
    options: tuple[str, ...] = ()
    samples: int = 1
    frame: int | None = None
    window: tuple[float, float] | None = None


def read_request(
    image: str | None,
    question: str | None,
    options: Sequence[str] = (),
    samples: int = 1,
    frame: int | None = None,
    window: str | None = None,
) -> Request:
    """The flags as a request; UserError for what cannot be meant."""
    if not image:
        raise UserError("--image: missing; --mode=ask needs it, e.g. --image=scan.png")
    if not question or not question.strip():
        found = "missing" if question is None else f"found {question!r}"
        raise UserError(f'--question: {found}; --mode=ask needs one, e.g. --question="Is there a fracture?"')
    for flag, text in (("image", image), ("question", question), *(("option", option) for option in options)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"--{flag}: found {text!r}, allowed is text in UTF-8") from error
    if not 1 <= samples <= MOST_SAMPLES:
        raise UserError(f"--samples: found {samples}, allowed is 1 to {MOST_SAMPLES}")
    if frame is not None and frame < 0:
        raise UserError(f"--frame: found {frame}, allowed is 0 or more")
    return Request(_file(image), question.strip(), _options(options), samples, frame, _window(window))


def read_image(request: Request) -> Picture:
    """The image; UserError if it cannot be read so."""
    from medvr_jax.inputs import image_formats

    try:
        header = image_formats.read_header(request.image)
        if request.frame is not None and request.frame >= header.frames:
            allowed = "0, as there is one only" if header.frames == 1 else f"0 to {header.frames - 1}"
            raise UserError(f"--frame: found {request.frame}, {request.image} allows {allowed}")
        return image_formats.read_picture(request.image, request.frame or 0, request.window)
    except image_formats.WindowFault as fault:
        raise UserError(f"--window: {request.image}: {fault}") from fault
    except image_formats.ImageFault as fault:
        raise UserError(f"--image: {request.image}: not a readable image ({fault})") from fault


def _file(name: str) -> Path:
    path = Path(name)
    try:
        if path.is_dir():
            raise UserError(f"--image: {name} is a folder, needed is an image file")
        if not path.exists():
            raise UserError(f"--image: no such file {name}")
    except (OSError, ValueError) as error:  # a name that no file can have
        raise UserError(f"--image: found {name!r}, which is no file ({error})") from error
    return path


def _options(options: Sequence[str]) -> tuple[str, ...]:
    texts = tuple(option.strip() for option in options)
    for text in texts:
        if not text:
            raise UserError("--option: found an empty one, allowed is text")
        if texts.count(text) > 1:
            raise UserError(f"--option: found {text!r} {texts.count(text)} times, allowed is once")
    if len(texts) == 1 or len(texts) > len(LETTERS):
        raise UserError(f"--option: found {len(texts)}, allowed are none or 2 to {len(LETTERS)}")
    return texts


def _window(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    from medvr_jax.inputs.intensities import parse_window

    window = parse_window(text)
    if window is None:
        raise UserError(f"--window: found {text!r}, allowed is CENTRE,WIDTH, two numbers, the width more than 0")
    return window
