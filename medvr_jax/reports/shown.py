"""Groups as an outside viewer can hold them: a picture with every box drawn on it, and the texts as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from medvr_jax.inputs.images import load_image

Record = Mapping[str, Any]

_LONG_SIDE = 512
_RIGHT, _WRONG, _TRUE, _UNDER = "#5fd0ff", "#ffab70", "#ffffff", "#000000"  # as on the page


class ShownGroup(NamedTuple):
    """One prompt and its trajectories."""

    name: str  # the same from step to step
    picture: Image.Image  # RGB; zooms of right trajectories blue, of wrong ones orange, true boxes white
    caption: str
    texts: tuple[str, ...]  # of each trajectory, Markdown


def shown_groups(records: Sequence[Record], images: Mapping[str, bytes | str | Path]) -> list[ShownGroup]:
    """The groups of a step whose image is at hand, in the order of their numbers.

    Args:
        records: the step's trajectories as `rollouts/` holds them.
        images: prompt id -> encoded image.
    """
    groups: dict[int, list[Record]] = {}
    for record in records:
        if record["prompt_id"] in images:
            groups.setdefault(record["group"], []).append(record)
    return [
        ShownGroup(
            name=f"group_{number:02d}",
            picture=draw_boxes(load_image(images[group[0]["prompt_id"]], group[0]["prompt_id"]), group),
            caption=_caption(group),
            texts=tuple(map(trajectory_text, group)),
        )
        for number, group in sorted(groups.items())
    ]


def draw_boxes(image: Image.Image, group: Sequence[Record]) -> Image.Image:
    """A reduced copy with the group's boxes; wrong ones below right ones, the true ones on top."""
    image = image.copy()
    image.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    for record in sorted(group, key=lambda record: record["correct"]):
        for box in record["boxes"]:
            draw.rectangle(_pixels(box, image.size), outline=_RIGHT if record["correct"] else _WRONG, width=2)
    for box in group[0]["true_boxes"]:
        draw.rectangle(_pixels(box, image.size), outline=_UNDER, width=3)
        draw.rectangle(_pixels(box, image.size), outline=_TRUE, width=1)
    return image


def _pixels(box: Sequence[float], size: tuple[int, int]) -> list[float]:
    """A normalised box, cut at the image's border, in the pixels that a rectangle's corners fill."""
    return [min(max(value, 0.0), 1.0) * (side - 1) for value, side in zip(box, (*size, *size), strict=True)]


def _caption(group: Sequence[Record]) -> str:
    right, zoomed = (sum(bool(record[key]) for record in group) for key in ("correct", "boxes"))
    return _writable(f"{group[0]['question']} ({right} of {len(group)} right, {zoomed} zoomed)")


def trajectory_text(record: Record) -> str:
    """A trajectory as Markdown: what became of it, and its turns as they are, whatever characters they hold."""
    origin = f"fork of {record['parent']}" if record["parent"] is not None else record["origin"]
    said = "no answer" if record["prediction"] is None else f"answer {_one_line(record['prediction'])}"
    facts = (
        f"slot {record['slot']}",
        origin,
        "right" if record["correct"] else "wrong",
        said,
        f"reward {record['rewards']['total']:.2f}",
        f"advantage {record['advantage']:+.2f}",
        f"ended: {record['ended']}",
    )
    parts = [" · ".join(facts)]
    for turn in record["turns"]:
        parts.append(_fenced(turn["text"]))
        if turn["observation"] is not None:
            parts.append(_fenced(turn["observation"]))
    return _writable("\n\n".join(parts))


def _writable(text: str) -> str:
    """Lone surrogates, which UTF-8 cannot hold, become question marks."""
    return text.encode("utf-8", "replace").decode()


def _one_line(text: str) -> str:
    short = " ".join(str(text).split())[:40]
    return "`" + short.replace("`", "'") + "`"


def _fenced(text: str) -> str:
    """Text between fences longer than any that it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
