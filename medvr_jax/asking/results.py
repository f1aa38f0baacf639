"""What an answered question leaves: answer.json, which replays, the pictures, and the page."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from medvr_jax.asking import drawing
from medvr_jax.asking.agreement import LEVEL, MEANING, Agreement, Consensus
from medvr_jax.asking.request import NOTICE, Request
from medvr_jax.datasets.example import LETTERS
from medvr_jax.reports.viewer import groups_page
from medvr_jax.workdir import write_atomically

ANSWER, ANNOTATED, CONSENSUS, PAGE = "answer.json", "annotated.png", "consensus.png", "index.html"
_PAGE_SIDE = 2048  # pixels of the page's copy of the image

Record = Mapping[str, Any]


def new_folder(workdir: str | Path) -> Path:
    """`ask/<time>` in the workdir, made; with a number behind it where a second holds several questions."""
    parent, time = Path(workdir) / "ask", datetime.now().strftime("%Y%m%d-%H%M%S")
    names = (time, *(f"{time}-{number}" for number in range(2, 1000)))
    for name in names:
        try:
            (parent / name).mkdir(parents=True)
        except FileExistsError:
            continue
        return parent / name
    raise RuntimeError(f"{parent} holds a thousand answers of this second")


def shown_answer(answer: str | None, options: Sequence[str]) -> str | None:
    """An answer for a reader: a letter with its option's text."""
    if answer is not None and answer in LETTERS[: len(options)]:
        return f"{answer}. {options[LETTERS.index(answer)]}"
    return answer


def agreement_json(agreement: Agreement, consensus: Consensus, options: Sequence[str]) -> dict[str, Any]:
    """What the samples agree on, as plain JSON."""
    return {
        "samples": len(agreement.keys),
        "answers": [
            {"answer": key, "text": shown_answer(key, options), "samples": count, "share": count / len(agreement.keys)}
            for key, count in agreement.counts.items()
        ],
        "no_answer": agreement.keys.count(None),
        "majority": agreement.majority,
        "tie": agreement.tie,
        "confidence": agreement.confidence,
        "confidence_interval": list(agreement.interval),
        "confidence_level": LEVEL,
        "meaning": MEANING,
        "consensus": {
            "of": "the samples that gave the most frequent answer, since the right one is not known",
            "samples": consensus.voters,
            "raster": len(consensus.mask),
            "counts": consensus.counts.tolist(),
            "mask": consensus.mask.astype(int).tolist(),
        },
    }


def write_results(
    folder: Path,
    request: Request,
    image: Image.Image,
    answer: Mapping[str, Any],
    agreement: Agreement | None,
    consensus: Consensus | None,
    raster: int,
) -> list[str]:
    """All files; their names. answer: what answer.json holds, its trajectories among it; image: the original."""
    records = answer["trajectories"]
    agrees = [True] * len(records) if agreement is None else agreement.agrees.tolist()
    _write_picture(folder / ANNOTATED, drawing.annotate(image, _labelled(records, agrees)))
    names = [ANSWER, ANNOTATED]
    if consensus is not None:
        heat = drawing.heat_map(image, consensus.counts, consensus.voters, consensus.mask)
        _write_picture(folder / CONSENSUS, heat)
        names.append(CONSENSUS)
    write_atomically(folder / PAGE, _page(request, image, answer, raster))
    write_atomically(folder / ANSWER, _json(answer))
    return [*names, PAGE]


def _json(answer: Mapping[str, Any]) -> str:
    """One key a line: short enough to look at, and token ids do not take a line each."""
    lines = (f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False, allow_nan=False)}" for k, v in answer.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _labelled(
    records: Sequence[Record], agrees: Sequence[bool]
) -> list[tuple[tuple[float, float, float, float], str, tuple[int, int, int]]]:
    """Normalised boxes with label and colour, the most frequent answer's on top.

    One trajectory's boxes are counted from 1; of many samples' only the colours can be told apart.
    """
    order = sorted(range(len(records)), key=lambda index: agrees[index])
    return [
        (tuple(box), str(number) if len(records) == 1 else "", drawing.AGREEING if agrees[i] else drawing.OTHERS)
        for i in order
        for number, box in enumerate(records[i]["boxes"], start=1)
    ]


def _write_picture(path: Path, image: Image.Image) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("Comment", NOTICE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=about)
    write_atomically(path, buffer.getvalue())


def _origin(answer: Mapping[str, Any]) -> str:
    """Which image was asked about, what was done to it, and who answered."""
    image, model = answer["image"], answer["model"]
    width, height = image["size"]
    parts = [f"{image['file']} ({image['format']}, {width} x {height})"]
    if image["frames"] > 1:
        parts.append(f"frame {image['frame']} of {image['frames']}")
    if image["window"]:
        parts.append("window with centre {:g}, width {:g}".format(*image["window"]))
    parts += image["notes"]
    step = model["checkpoint_step"]
    policy = model["folder"] if step is None else f"{model['run']} after {step} updates"
    return f"Image: {', '.join(parts)}. Policy: {policy}."


def _page(request: Request, image: Image.Image, answer: Mapping[str, Any], raster: int) -> str:
    """The page. Nobody knows who is right; of several samples those that `agree` vote on where to look."""
    notice, lead = NOTICE, f"Answer: {answer['answer_text'] or 'none'}"
    if found := answer["agreement"]:
        low, high = found["confidence_interval"]
        lead = (
            f"Most frequent answer: {answer['answer_text'] or 'none'}, {found['confidence']:.0%} of"
            f" {found['samples']} samples (95 % interval {low:.0%} to {high:.0%})"
        )
        notice += f" {MEANING} Heat map and consensus are of {found['consensus']['of']}."
    lead += f". {_origin(answer)}"
    small = image.copy()
    small.thumbnail((_PAGE_SIDE, _PAGE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    groups = [(answer["trajectories"], buffer.getvalue())]
    return groups_page(request.question, lead, groups, raster=raster, notice=notice)
