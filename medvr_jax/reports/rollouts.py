"""`rollouts/`: the trajectories of a step as JSON Lines, and the images that a viewer needs to show them."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvr_jax.reports.metrics import json_line, replace_file
from medvr_jax.reports.pictures import small_copy


def write_rollouts(
    workdir: str | Path,
    step: int,
    records: Sequence[Mapping[str, Any]],
    images: Mapping[str, bytes | str | Path] | None = None,
) -> Path:
    """Writes `rollouts/step_<step>.jsonl`, one trajectory a line, and returns its path.

    images: prompt id -> encoded image (bytes or path), for the prompts that a viewer should be able to show; their
    records get the image's path, relative to the run's folder, as `image`.
    """
    workdir = Path(workdir)
    images = images or {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # images leave the interpreter's lock
        saved = pool.map(lambda name: _save_image(workdir, name, images[name]), images)
        paths = dict(zip(images, saved, strict=True))
    lines = [json_line({**record, "image": paths.get(record["prompt_id"])}) for record in records]
    path = workdir / "rollouts" / f"step_{step:06d}.jsonl"
    replace_file(path, "".join(lines))
    return path


def rollout_steps(workdir: str | Path) -> dict[int, Path]:
    """The recorded steps in order, and their files."""
    found = {}
    for path in Path(workdir).glob("rollouts/step_*.jsonl"):
        number = path.stem.removeprefix("step_")
        if number.isdigit():
            found[int(number)] = path
    return dict(sorted(found.items()))


def _save_image(workdir: Path, name: str, source: bytes | str | Path) -> str:
    """Saves a small copy under a name made from the prompt's id, which may hold any character."""
    relative = f"rollouts/images/{hashlib.sha256(name.encode()).hexdigest()[:16]}.jpg"
    path = workdir / relative
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        beside.write_bytes(small_copy(source, name)[0])
        os.replace(beside, path)
    return relative
