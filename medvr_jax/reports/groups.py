"""Groups of a rollout as HTML: the image, where each trajectory looked, what they agreed on, and their texts."""

from __future__ import annotations

import base64
import functools
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from medvr_jax.reports.text import escape, number, percent, signed
from medvr_jax.rewards.consensus import consensus, rasterise

Trajectory = Mapping[str, Any]

_TAG = re.compile(r"&lt;/?(?:think|tool_call|answer)&gt;|&lt;\|[a-z_]+\|&gt;")


def group_card(shown: tuple[str, tuple[int, int]], records: Sequence[Trajectory], name: str, raster: int) -> str:
    """One group (trajectories of one prompt) as an <article>; `name` is unique on the page, `raster` is the masks'.

    shown: the image's address and size.
    """
    records = sorted(records, key=lambda r: r["slot"])
    first, (picture, size) = records[0], shown
    right = sum(bool(r["correct"]) for r in records)
    zoomed = sum(bool(r["boxes"]) for r in records)
    decisions = [decision for r in records for decision in r["decisions"]]
    asked, granted = (sum(bool(d[key]) for d in decisions) for key in ("asked", "granted"))
    facts = [
        f"Group {first['group']}",
        f"{right} of {len(records)} right",
        f"{zoomed} zoomed",
        f"{granted} of {asked} asked forks granted",
    ]
    agreed = agreement(records, raster)
    facts.append(f"consensus on {percent(float(agreed.mean()))} of the image" if agreed.any() else "no consensus")
    if first["true_boxes"] and agreed.any():
        facts.append(f"it covers {percent(covered(agreed, first['true_boxes']))} of the true place")
    answer = answer_line(first["options"], first["answer"])
    rows = "".join(trajectory_row(record, depth, name, size) for record, depth in family_order(records))
    return (
        f'<article class="group"><svg class="store" aria-hidden="true" width="0" height="0"><defs>'
        f'<image id="{name}" width="{size[0]}" height="{size[1]}" href="{picture}"/></defs></svg>'
        f'<header><h4>{escape(first["question"])}</h4>{answer}<p class="facts">{escape(" · ".join(facts))}</p></header>'
        f'<div class="views">{boxes_view(records, name, size)}{votes_view(records, agreed, name, size)}</div>'
        f'<div class="trajectories">{rows}</div></article>'
    )


def answer_line(options: Sequence[str], answer: str) -> str:
    """The options with the right one marked, or the answer itself if there are none."""
    if not options:
        return f"<p>Answer: <b>{escape(answer)}</b></p>"
    items = ""
    for letter, option in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", options, strict=False):
        marked = ' class="answer"' if letter == answer else ""
        items += f"<li{marked}><b>{letter}</b> {escape(option)}</li>"
    return f'<ul class="options">{items}</ul>'


# ---- the image and what is drawn on it -------------------------------------------------------------------------------


def load_picture(workdir: Path, relative: str | None) -> tuple[str, tuple[int, int]]:
    """An image of the run as a data address, and its size; an empty picture if there is none."""
    path = (workdir / relative).resolve() if relative else None
    if path is None or not path.is_file() or not path.is_relative_to((workdir / "rollouts").resolve()):
        return picture_address(None)
    return picture_address(path.read_bytes())


def picture_address(encoded: bytes | None) -> tuple[str, tuple[int, int]]:
    """The same of an encoded image."""
    if encoded is None:
        return "data:,", (100, 100)
    with Image.open(io.BytesIO(encoded)) as image:
        size = image.size
        smaller = io.BytesIO()
        image.convert("RGB").save(smaller, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(smaller.getvalue()).decode()}", size


def rectangle(box: Sequence[float], size: tuple[int, int]) -> str:
    """A normalised box as an SVG path in pixels of the picture."""
    x1, x2 = (round(min(max(v, 0.0), 1.0) * size[0], 1) for v in (box[0], box[2]))
    y1, y2 = (round(min(max(v, 0.0), 1.0) * size[1], 1) for v in (box[1], box[3]))
    return f"M{x1} {y1}H{x2}V{y2}H{x1}Z"


def boxes_view(records: Sequence[Trajectory], name: str, size: tuple[int, int]) -> str:
    """Every trajectory's zoom boxes over the image."""
    drawn = []
    for record in sorted(records, key=lambda r: bool(r["correct"])):  # right ones on top
        path = "".join(rectangle(box, size) for box in record["boxes"])
        if path:
            kind = "right" if record["correct"] else "wrong"
            drawn.append(f'<path class="box {kind} b{record["slot"]}" d="{path}"/>')
    return view(name, size, "".join(drawn) + true_boxes(records[0], size), "Where they looked")


def votes_view(records: Sequence[Trajectory], agreed: np.ndarray, name: str, size: tuple[int, int]) -> str:
    """How many right trajectories looked where, and the outline of what more than half of them share."""
    voters = [record for record in records if record["correct"] in (True, None)]
    heat = "".join(
        f'<path d="{"".join(rectangle(box, size) for box in record["boxes"])}"/>'
        for record in voters
        if record["boxes"]
    )
    drawn = f'<g class="votes" fill-opacity="{1.6 / max(len(voters), 4):.3f}">{heat}</g>'
    drawn += f'<path class="agreed" d="{outline(agreed, size)}"/>' if agreed.any() else ""
    return view(name, size, drawn + true_boxes(records[0], size), "What the right ones agreed on")


def true_boxes(record: Trajectory, size: tuple[int, int]) -> str:
    path = "".join(rectangle(box, size) for box in record["true_boxes"])
    return f'<path class="truth under" d="{path}"/><path class="truth" d="{path}"/>' if path else ""


def view(name: str, size: tuple[int, int], drawn: str, caption: str) -> str:
    return (
        f'<figure class="view"><svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(caption)}">'
        f'<use href="#{name}"/>{drawn}</svg><figcaption>{escape(caption)}</figcaption></figure>'
    )


def agreement(records: Sequence[Trajectory], raster: int) -> np.ndarray:
    """The group's consensus mask [R, R], R = `raster`, as the reward computes it."""
    most = 8 * math.ceil(max(1, *(len(record["boxes"]) for record in records)) / 8)  # few shapes, few compilations
    boxes, valid = np.zeros((len(records), most, 4), np.float32), np.zeros((len(records), most), bool)
    for m, record in enumerate(records):
        for z, box in enumerate(record["boxes"]):
            boxes[m, z], valid[m, z] = box, True
    correct = np.array([record["correct"] in (True, None) for record in records])
    return np.asarray(_agreed(boxes, valid, correct, raster))


_rasterised = jax.jit(rasterise, static_argnums=2)


@functools.partial(jax.jit, static_argnums=3)
def _agreed(boxes: jax.Array, valid: jax.Array, correct: jax.Array, raster: int) -> jax.Array:
    return consensus(_rasterised(boxes, valid, raster), correct)[0]


def covered(mask: np.ndarray, boxes: Sequence[Sequence[float]]) -> float:
    """The share of the boxes' area that lies inside the mask."""
    true = np.asarray(_rasterised(np.asarray(boxes, np.float32), np.ones(len(boxes), bool), len(mask)))
    return float((mask & true).sum() / max(true.sum(), 1))


def outline(mask: np.ndarray, size: tuple[int, int]) -> str:
    """The border of a mask [R, R] as SVG line segments along its pixels."""
    step_x, step_y = size[0] / mask.shape[1], size[1] / mask.shape[0]
    framed = np.pad(mask, 1).astype(int)
    parts = []
    for row, changes in enumerate(np.diff(framed, axis=0)[:, 1:-1] != 0):
        parts += [f"M{a * step_x:.1f} {row * step_y:.1f}H{b * step_x:.1f}" for a, b in runs(changes)]
    for column, changes in enumerate((np.diff(framed, axis=1)[1:-1] != 0).T):
        parts += [f"M{column * step_x:.1f} {a * step_y:.1f}V{b * step_y:.1f}" for a, b in runs(changes)]
    return "".join(parts)


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Beginnings and ends of the stretches of True in a vector."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


# ---- trajectories ----------------------------------------------------------------------------------------------------


def family_order(records: Sequence[Trajectory]) -> list[tuple[Trajectory, int]]:
    """Trajectories with their depth in the family tree: forks follow their parent, fresh ones come last."""
    known = {record["slot"] for record in records}
    children: dict[int | None, list[Trajectory]] = {}
    for record in records:
        parent = record["parent"] if record["parent"] in known and record["parent"] != record["slot"] else None
        children.setdefault(parent, []).append(record)
    ordered: list[tuple[Trajectory, int]] = []

    def visit(record: Trajectory, depth: int) -> None:
        ordered.append((record, depth))
        for child in children.get(record["slot"], []):
            visit(child, depth + 1)

    for record in sorted(children.get(None, []), key=lambda r: (r["origin"] == "fresh", r["slot"])):
        visit(record, 0)
    return ordered


def trajectory_row(record: Trajectory, depth: int, name: str, size: tuple[int, int]) -> str:
    """One trajectory: a line that says how it went, and behind it texts, crops, entropies and fork decisions."""
    known = record["correct"] is not None
    mark, verdict = (("✓", "right") if record["correct"] else ("✗", "wrong")) if known else ("·", "unknown")
    said = escape(record["prediction"]) if record["prediction"] is not None else "<i>no answer</i>"
    origin = record["origin"]
    if origin == "fork" and record["parent"] is not None:
        origin = f"fork of {record['parent']}"
    rewards = record["rewards"] or dict.fromkeys(("accuracy", "format", "tool", "total"))
    scores = (
        ("total reward", f"R {number(rewards['total'])}"),
        ("advantage within the group", f"A {signed(record['advantage'])}"),
        ("overlap with the consensus", f"IoU {number(record['consensus_iou'], 2)}"),
    )
    shown = "".join(f'<span title="{what}">{score}</span>' for what, score in scores)
    summary = (
        f'<span class="slot">{record["slot"]}</span>'
        f'<span class="verdict {verdict}" title="{verdict}">{mark}<span class="hidden"> {verdict}</span></span>'
        f'<span class="said">{said}</span><span class="origin">{escape(origin)}</span>'
        f'<span class="scores">{shown}</span>'
    )
    terms = ", ".join(f"{term} {number(rewards[term])}" for term in ("accuracy", "format", "tool"))
    body = "".join(turns(record, name, size)) + entropy_bars(record) + decisions_table(record["decisions"])
    body += (
        f'<p class="facts">Rewards: {terms}; total {number(rewards["total"])}. Ended: {escape(record["ended"])}.</p>'
    )
    return (
        f'<details class="t t{record["slot"]}" style="--depth:{min(depth, 4)}"><summary>{summary}</summary>'
        f'<div class="body">{body}</div></details>'
    )


def turns(record: Trajectory, name: str, size: tuple[int, int]) -> list[str]:
    """What the policy wrote, turn by turn, and what came back."""
    crops, parts = iter(record["boxes"]), []
    for turn in record["turns"]:
        text = _TAG.sub(lambda found: f'<span class="tag">{found[0]}</span>', escape(turn["text"]))
        parts.append(f'<pre class="turn">{text}</pre>')
        if turn["observation"] == "crop":
            box = next(crops, None)
            parts.append(crop_view(box, name, size) if box else "")
        elif turn["observation"]:
            parts.append(f'<p class="error">{escape(turn["observation"])}</p>')
    return parts


def crop_view(box: Sequence[float], name: str, size: tuple[int, int]) -> str:
    """The crop that came back, shown through a window on the image that the page already holds."""
    x1, y1, x2, y2 = (v * size[i % 2] for i, v in enumerate(box))
    width, height = max(x2 - x1, 0.01), max(y2 - y1, 0.01)
    window = f"{x1:.2f} {y1:.2f} {width:.2f} {height:.2f}"
    where = ", ".join(f"{v:.2f}" for v in box)
    return (
        f'<figure class="crop"><svg viewBox="{window}" style="aspect-ratio:{width / height:.3f}" role="img"'
        f' aria-label="crop"><use href="#{name}"/></svg>'
        f"<figcaption>crop of [{where}]</figcaption></figure>"
    )


def entropy_bars(record: Trajectory) -> str:
    """The entropy of every sampled token as a bar; what a fork shares with its parent is shaded."""
    values = [max(v or 0.0, 0.0) if s else None for v, s in zip(record["entropy"], record["sampled"], strict=False)]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    top, length = max(*known, 0.1), len(values)
    bars = "".join(f"M{i + 0.5} 10V{10 - 10 * v / top:.2f}" for i, v in enumerate(values) if v)
    shared, fork = "", record["fork_position"]
    if fork is not None and 0 < fork < length:
        shared = f'<rect class="shared" width="{fork}" height="10"/>'
    caption = f"Entropy of each token: mean {number(sum(known) / len(known))}, largest {number(max(known))} nats"
    caption += "; shaded: shared with its parent" if shared else ""
    return (
        f'<figure class="entropy"><svg viewBox="0 0 {length} 10" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(caption)}">{shared}<path class="bars" d="{bars}"/></svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


_COLUMNS = (
    ("position", "at token"),
    ("pass", "pass"),
    ("h_base", "H base"),
    ("h_tool", "H tool"),
    ("delta_h", "ΔH"),
    ("probability", "P"),
    ("u", "u"),
)


def decision_outcome(decision: Mapping[str, Any]) -> str:
    """In words: too certain, or u ≥ P, or no free slot, or a fork."""
    if not decision["eligible"]:
        return "ΔH too small"
    if not decision["asked"]:
        return "lost the draw"
    return "granted" if decision["granted"] else "no free slot"


def decisions_table(decisions: Sequence[Mapping[str, Any]]) -> str:
    """Every fork decision of a trajectory, with the numbers it rests on."""
    if not decisions:
        return ""
    head = "".join(f'<th scope="col">{label}</th>' for _, label in _COLUMNS)
    rows = ""
    for decision in decisions:
        cells = "".join(f"<td>{number(decision.get(key))}</td>" for key, _ in _COLUMNS)
        child = decision.get("child")
        fate = decision_outcome(decision)
        fate += f": slot {int(child)}" if decision["granted"] and child is not None else ""
        rows += f"<tr>{cells}<td>{escape(fate)}</td></tr>"
    return (
        f'<div class="wide"><table><caption>Fork decisions</caption><thead><tr>{head}<th scope="col">outcome</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )
