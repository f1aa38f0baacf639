"""A made-up run in the files' own schema: what the page is tested with, and can be looked at with.

Texts are cut into words and signs, which stand for tokens.

`python -m tests.reports.made_run DIR` writes one and its report.
"""

from __future__ import annotations

import io
import math
import re
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from medvr_jax.reports.metrics import MetricsWriter
from medvr_jax.reports.rollouts import write_rollouts

SIDE = 448
SEEN = 112
NASTY = '<script>alert("x")</script> & </pre></details> \'"> \u202e \x00 \ud800 {{7*7}} <img src=x onerror=alert(1)>'


def picture(rng: np.random.Generator, centre: np.ndarray) -> bytes:
    """A grey disc with texture and a small bright lesion, as PNG."""
    noise = rng.normal(0, 1, (28, 28))
    texture = Image.fromarray(np.uint8(np.clip(128 + 26 * noise, 0, 255))).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    image = Image.new("L", (SIDE, SIDE), 12)
    body = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(body).ellipse([20, 30, SIDE - 20, SIDE - 10], fill=150)
    image.paste(texture, mask=body)
    x, y = centre * SIDE
    ImageDraw.Draw(image).ellipse([x - 14, y - 14, x + 14, y + 14], fill=225)
    buffer = io.BytesIO()
    image.filter(ImageFilter.GaussianBlur(0.7)).save(buffer, "PNG")
    return buffer.getvalue()


def trajectory(rng: np.random.Generator, step: int, group: int, slot: int, skill: float, centre: np.ndarray, **more):
    """One trajectory that finds the lesion with probability `skill`."""
    zoomed = rng.random() < 0.95
    found = bool(zoomed and rng.random() < skill)
    middle = centre + rng.normal(0, 0.02, 2) if found else rng.uniform(0.15, 0.85, 2)
    box = np.clip(np.concatenate([middle - 0.07, middle + 0.07]), 0, 1)
    correct = bool(found or rng.random() < 0.25)
    pixels = [int(v * 112) for v in box]
    call = f'{{"name": "image_zoom_in_tool", "arguments": {{"bbox_2d": {pixels}}}}}'
    turns: list[dict[str, Any]] = []
    if zoomed:
        text = f"<think>The spot needs a closer look.</think>\n<tool_call>\n{call}\n</tool_call><|im_end|>"
        turns.append({"text": text, "call_box": pixels, "observation": "crop"})
    elif rng.random() < 0.5:
        text = "<think>Look.</think><tool_call>[zoom]</tool_call><|im_end|>"
        turns.append({"text": text, "call_box": None, "observation": "Error: the call is not a JSON object."})
    said = "B" if correct else str(rng.choice(["A", "C", "D"]))
    turns.append(
        {
            "text": f"<think>Stripes run upwards.</think>\n<answer>{said}</answer><|im_end|>",
            "call_box": None,
            "observation": None,
        }
    )
    pieces, sampled = tokens(turns)
    entropy = np.abs(rng.normal(0.03, 0.06, len(pieces))) * sampled
    start = coordinates(pieces) if zoomed else 0
    if zoomed:
        entropy[start : start + 11 : 3] += rng.uniform(0.3, 1.6, 4) * (1.2 - skill)
    return {
        "step": step,
        "group": group,
        "prompt_id": f"made-{step}-{group}",
        "slot": slot,
        "origin": "base",
        "parent": None,
        "fork_position": None,
        "question": "What is the orientation of the stripes in the lesion?",
        "options": ["horizontal", "vertical", "rising", "falling"],
        "answer": "B",
        "prediction": said,
        "correct": correct,
        "turns": turns,
        "boxes": [box.tolist()] if zoomed else [],
        "zooms": [zoom(box)] if zoomed else [],
        "true_boxes": [[*(centre - 0.031), *(centre + 0.031)]],
        "resized_size": [SEEN, SEEN],
        "token_ids": [zlib.crc32(piece.encode("utf-8", "replace")) % 50_000 for piece in pieces],
        "pieces": pieces,
        "sampled": sampled,
        "entropy": entropy.round(5).tolist(),
        "log_probabilities": (-rng.exponential(0.7, len(pieces)) * entropy).round(5).tolist(),
        "rewards": {
            "accuracy": float(correct),
            "format": 0.0 if zoomed else -0.2,
            "tool": float(correct and zoomed),
            "total": 2.0 * correct if zoomed else correct - 0.2,
        },
        "advantage": float(rng.normal()),
        "consensus_iou": 0.71 if found else 0.0,
        "decisions": [],
        "ended": "answer",
        "image": None,
    } | more


def tokens(turns: list[dict[str, Any]]) -> tuple[list[str], list[bool]]:
    """The pieces of a trajectory, and which of them the policy sampled."""
    pieces, sampled = [], []
    for turn in turns:
        own = re.findall(r"</?\w+>|<\|\w+\|>| ?\w+|\s+|.", turn["text"], re.DOTALL)
        given = []
        if turn["observation"] is not None:
            crop = turn["observation"] == "crop"
            content = ["<|vision_start|>", *[""] * 16, "<|vision_end|>"] if crop else [turn["observation"]]
            given = ["\n", "<|im_start|>", "user", "\n", "<tool_response>", *content, "</tool_response>"]
            given += ["<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]
        pieces += own + given
        sampled += [True] * len(own) + [False] * len(given)
    return pieces, sampled


def coordinates(pieces: list[str]) -> int:
    """The place of the first token inside the box that a call names."""
    return pieces.index("[") + 1


def zoom(box: np.ndarray) -> dict[str, Any]:
    """A zoom in all three spaces."""
    spaces = {name: (box * side).tolist() for name, side in (("normalised", 1), ("original", SIDE), ("resized", SEEN))}
    return {"turn": 0, "tool": "image_zoom_in_tool"} | spaces


def made_group(rng: np.random.Generator, step: int, group: int, size: int, skill: float, centre: np.ndarray):
    """A group of `size`: half base, some forks of them, the rest fresh. A fork shares its parent's tokens up to the
    box."""
    records = [trajectory(rng, step, group, m, skill, centre) for m in range(size)]
    parents = [m for m in range(size // 2) if records[m]["boxes"]]
    forks = int(rng.integers(1, size // 2)) if parents else 0
    for slot in range(size // 2, size):
        if slot < size // 2 + forks and records[slot]["boxes"]:
            fork(rng, records, parents[int(rng.integers(len(parents)))], slot)
        else:
            records[slot]["origin"] = "fresh"
    return records


def fork(rng: np.random.Generator, records: list[dict[str, Any]], parent: int, slot: int) -> None:
    """Makes one trajectory the fork of another, with the decision that led to it."""
    child, of = records[slot], records[parent]
    place = coordinates(of["pieces"])
    assert child["pieces"][:place] == of["pieces"][:place]
    child |= {"origin": "fork", "parent": parent, "fork_position": place}
    for name in ("entropy", "log_probabilities"):
        child[name] = of[name][:place] + child[name][place:]
    h_base, h_tool = 0.12, float(rng.uniform(0.3, 1.4))
    of["decisions"].append(
        {
            "position": place,
            "pass": 0,
            "h_base": h_base,
            "h_tool": h_tool,
            "delta_h": h_tool - h_base,
            "probability": min(0.5 + 0.5 * (h_tool - h_base), 1.0),
            "u": 0.2,
            "eligible": True,
            "asked": True,
            "granted": True,
            "child": slot,
        }
    )


def make_run(workdir: Path, steps: int = 40, groups: int = 8, size: int = 16, nasty: bool = False) -> Path:
    """Writes metrics, rollouts of the first and the last step, and their images."""
    rng = np.random.default_rng(0)
    with MetricsWriter(workdir) as metrics:
        for step in range(steps + 1):
            skill = 0.25 + 0.6 / (1 + math.exp(-(step - steps * 0.4) / max(steps * 0.09, 1e-3)))
            row: dict[str, Any] = {"step": step}
            if step % 10 == 0 or step == steps:
                row |= {"eval/accuracy": 0.25 + 0.75 * skill, "eval/hit_rate": skill, "eval/mean_iou": 0.55 * skill}
                row |= {"eval/examples": 512, "time/evaluate": 4.2}
            if step < steps:
                noise = rng.normal(0, 0.03, 12)
                accuracy = 0.25 + 0.7 * skill + noise[0]
                asked = rng.poisson(60 * (1.1 - skill))
                row |= {
                    "reward/total": 2 * accuracy - 0.1,
                    "reward/accuracy": accuracy,
                    "reward/tool": 0.9 * accuracy,
                    "reward/format": -0.01 + noise[1] * 0.1,
                    "base/right_rate": accuracy - 0.02,
                    "fork/right_rate": accuracy + 0.05,
                    "reward/purity": 0.4 + 0.5 * skill,
                    "audit/purity": 0.3 + 0.6 * skill,
                    "audit/consensus_elsewhere": 0.4 - 0.3 * skill,
                    "reward/consensus_iou": 0.3 + 0.5 * skill,
                    "rollout/right_rate": accuracy,
                    "rollout/answered_rate": 0.98,
                    "rollout/format_rate": 0.95,
                    "rollout/truncated_rate": 0.02,
                    "rollout/sampled_tokens": 57 + 9 * noise[11],
                    "rollout/sampled_tokens_max": 80 + 90 * noise[10],
                    "rollout/entropy": 0.35 - 0.2 * skill + noise[6] * 0.2,
                    "rollout/tool_rate": 0.97 + 0.2 * noise[2],
                    "rollout/valid_call_rate": 0.96 + 0.2 * noise[3],
                    "rollout/forks_asked": int(asked),
                    "rollout/forks_granted": int(min(asked, 50)),
                    "train/loss": noise[4],
                    "train/kl": 0.02 * step / steps + abs(noise[5]) * 0.05,
                    "train/entropy": 0.35 - 0.2 * skill + noise[6] * 0.2,
                    "train/grad_norm": 0.5 + abs(noise[7]) * 5 if step != 13 else float("nan"),
                    "train/sampler_drift": 2e-6 + abs(noise[8]) * 1e-5,
                    "train/zero_spread_groups": int(rng.integers(0, 5)),
                    "time/rollout": 1.2 + noise[9] + 15 * (step == 0),
                    "time/update": 0.6 + noise[10] * 0.3 + 12 * (step == 0),
                    "time/reward": 0.02,
                    "time/preprocess": 0.11,
                    "time/step": 2.0 + noise[11] + 27 * (step == 0),
                }
            row["compilations"] = 9 + 3 * (step > 0)
            metrics.write(row)
    for step, skill in ((0, 0.25), (steps - 1, 0.85)):
        records, images = [], {}
        for group in range(groups):
            centre = rng.uniform(0.25, 0.75, 2)
            images[f"made-{step}-{group}"] = picture(rng, centre)
            records += made_group(rng, step, group, size, skill, centre)
        if nasty:
            records[0] |= {"question": NASTY, "options": [NASTY, "B"], "prediction": NASTY, "ended": NASTY}
            records[0] |= hostile_text(NASTY)
        write_rollouts(workdir, step, records, images)
    return workdir


def hostile_text(text: str) -> dict[str, Any]:
    """What changes in a record whose policy wrote this text as one token, and whose tool returned it."""
    return {
        "turns": [{"text": text, "call_box": None, "observation": text}],
        "token_ids": [1, 2],
        "pieces": [text, text],
        "sampled": [True, False],
        "entropy": [0.7, 0.0],
        "log_probabilities": [-1.0, 0.0],
        "decisions": [],
        "zooms": [],
        "boxes": [],
    }


def long_group(rng: np.random.Generator, group: int, size: int, length: int) -> list[dict[str, Any]]:
    """A group whose trajectories have `length` tokens each, of a vocabulary as large as a language's."""
    records = made_group(rng, 0, group, size, 0.5, rng.uniform(0.25, 0.75, 2))
    for record in records:
        more = length - len(record["pieces"])
        words = rng.zipf(1.3, more) % 30_000
        own = record["turns"][-1]["text"]
        pieces = [f" w{word}" for word in words]
        record["turns"][-1]["text"] = own + "".join(pieces)
        record["pieces"] += pieces
        record["token_ids"] += (words + 50_000).tolist()
        record["sampled"] += [True] * more
        record["entropy"] += np.abs(rng.normal(0, 0.4, more)).round(5).tolist()
        record["log_probabilities"] += (-np.abs(rng.normal(0, 0.4, more))).round(5).tolist()
    return records


if __name__ == "__main__":
    from medvr_jax.reports.page import write_report

    print(write_report(make_run(Path(sys.argv[1]))))
