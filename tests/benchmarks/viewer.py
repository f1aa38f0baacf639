"""How long a page with many trajectories takes to open in a real browser, and how large it is.

python -m tests.benchmarks.viewer [--groups=125] [--size=16] [--length=300] [--runs=5]

Times are from the navigation to a drawn group, and of what a reader does then; medians, each of fresh browser contexts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from medvr_jax.reports.viewer import groups_page
from tests.reports.browser import launched
from tests.reports.made_run import long_group, picture


def made_page(groups: int, size: int, length: int) -> str:
    """A page of so many groups of so many trajectories of so many tokens, each group with an image of its own."""
    rng = np.random.default_rng(0)
    made = [(long_group(rng, group, size, length), picture(rng, np.array([0.4, 0.6]))) for group in range(groups)]
    return groups_page("Many", f"{groups * size} trajectories", made, raster=64)


ACTS = {
    "next group": "document.querySelector('[aria-label=\"Next group\"]').click()",
    "filter": "document.querySelector('[data-filter=wrong]').click()",
    "order": "change(document.getElementById('order'), 'disagreement')",
    "search, first": "change(document.getElementById('search'), 'w123 ')",
}
CHANGE = "const change = (field, value) => { field.value = value; for (const kind of ['input', 'change'])"
CHANGE += " field.dispatchEvent(new Event(kind)); }"
DRAWN = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"


def timed(page: Any, act: str) -> float:
    """Seconds from an act to the next drawn frame, less the rest that the search waits for after a key."""
    rest = 150 if "search" in act else 0
    wait = f"await new Promise(done => setTimeout(done, {rest}))"
    steps = (
        f"{CHANGE}; const began = performance.now(); {act}; {wait}; await {DRAWN}; return performance.now() - began;"
    )
    return (page.evaluate(f"async () => {{ {steps} }}") - rest) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("groups", 125), ("size", 16), ("length", 300), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    began = time.perf_counter()
    html = made_page(args.groups, args.size, args.length)
    made = time.perf_counter() - began
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        file = Path(folder) / "index.html"
        file.write_text(html, "utf-8")
        print(
            f"{args.groups * args.size} trajectories of {args.length} tokens: {file.stat().st_size / 1e6:.1f} MB,"
            f" made up and written in {made:.1f} s"
        )
        for _ in range(args.runs):
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            began = time.perf_counter()
            page.goto(file.as_uri(), wait_until="commit")
            page.wait_for_selector(".branches path", state="attached")
            page.evaluate(DRAWN)
            times.setdefault("open", []).append(time.perf_counter() - began)
            for name, act in ACTS.items():
                times.setdefault(name, []).append(timed(page, act))
            page.context.close()
    for name, seconds in times.items():
        print(f"{name:14} {statistics.median(seconds):.2f} s (from {min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
