"""Reading images for training: speed of a core, and memory over a long stream.

    python tests/benchmarks/reading.py [--runs=5] [--images=200] [--examples=100000] [--floor=300] [--output=DIR]

Speed: encoded images to patches of 448 x 448 pixels in one thread, as `inputs/images.py` does it, beside the image
processor of transformers called on each decoded image. The images are drawn (smooth structures at several scales and
some grain), grey and coloured, as PNG and JPEG; larger ones, which are reduced to that size, have no floor.

Memory: a stream of questions over some of these images, shuffled and endless, read in batches and encoded to prompts on
all cores, in a process of its own.

Asserted: both sides make equal patches, value by value; at least `--floor` images per second and core of every kind of
448 x 448 pixels of which PIL alone decodes so many; the stream's memory grows by at most 32 MiB behind the first tenth
of the examples.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from configs import base  # noqa: E402
from medvr_jax.datasets.source import make_source  # noqa: E402
from medvr_jax.inputs.chat import encode_prompts, load_encoder  # noqa: E402
from medvr_jax.inputs.images import load_image, load_processor, prepare_image  # noqa: E402
from tests.benchmarks import measure, models, tables  # noqa: E402

SIDE = 448
KINDS = {  # name: side, colour, format and its settings
    "PNG, grey, 448": (SIDE, False, "PNG", {}),
    "PNG, colour, 448": (SIDE, True, "PNG", {}),
    "JPEG, grey, 448": (SIDE, False, "JPEG", {"quality": 90}),
    "JPEG, colour, 448": (SIDE, True, "JPEG", {"quality": 90}),
    "JPEG, colour, 1024": (1024, True, "JPEG", {"quality": 90}),
    "PNG, grey, 1024": (1024, False, "PNG", {}),
}
TINY = models.REPOSITORY / "medvr_jax" / "assets" / "tiny"
BATCH = 64  # examples of a step
GROWTH = 32  # MiB


def draw(side: int, colour: bool, seed: int) -> Image.Image:
    """Blurred noise at several scales, and a little grain."""
    rng = np.random.default_rng(seed)
    channels = 3 if colour else 1
    found = np.zeros((side, side, channels), np.float32)
    for cells, strength in ((4, 60), (14, 30), (56, 12)):
        for channel in range(channels):
            noise = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
            found[..., channel] += strength * np.asarray(noise.resize((side, side), Image.BICUBIC))
    found = np.clip(110 + found + rng.normal(0, 1.5, found.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(found if colour else found[..., 0])


def encoded(kind: str, count: int) -> list[bytes]:
    """Different images of a kind."""
    side, colour, form, settings = KINDS[kind]
    files = []
    for seed in range(count):
        file = io.BytesIO()
        draw(side, colour, seed).save(file, form, **settings)
        files.append(file.getvalue())
    return files


def speeds(runs: int, images: int, kinds: tuple[str, ...]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the table, and seconds run by run."""
    processor = load_processor(TINY)
    size = {"longest_edge": SIDE**2, "shortest_edge": SIDE**2}
    rows, seconds = [], {}
    for kind in kinds:
        files = encoded(kind, 8)
        sources = [files[i % len(files)] for i in range(images)]

        def ours(sources: list[bytes] = sources) -> np.ndarray:
            for source in sources:
                found = prepare_image(processor, load_image(source), min_pixels=SIDE**2, max_pixels=SIDE**2)
            return found.patches

        def decoding(sources: list[bytes] = sources) -> None:
            for source in sources:
                load_image(source)

        def theirs(sources: list[bytes] = sources) -> np.ndarray:
            for source in sources:
                found = processor(images=[load_image(source)], size=size, return_tensors="np")
            return found["pixel_values"]

        def check(name: str, patches: np.ndarray | None) -> None:
            side = SIDE // processor.patch_size
            assert patches is None or len(patches) == side**2, f"{len(patches)} patches by {name}"

        for file in files:
            np.testing.assert_array_equal(ours([file]), theirs([file]))
        contenders = {"ours": ours, "decoding alone": decoding, "processor": theirs}
        times = measure.take_turns(contenders, runs, check)
        rate = {name: images / statistics.median(found) for name, found in times.items()}
        rates = {f"{name}, per second": value for name, value in rate.items()}
        size_of_file = sum(map(len, files)) // len(files)
        rows.append({"images": kind, "bytes": size_of_file} | rates)
        seconds[kind] = times
    return rows, seconds


def stream(folder: Path, examples: int) -> dict[str, Any]:
    """Reads a stream in this process; its memory in MiB by examples read, and how fast it went."""
    data = base.get_config().data
    data.name, data.train_file, data.image_folder = "jsonl", str(folder / "train.jsonl"), str(folder)
    began = time.perf_counter()
    source = make_source(data, seed=0)
    source.load(["train"])
    opened = time.perf_counter() - began
    encoder = load_encoder(TINY, "Look.", prompt_min_pixels=SIDE**2, prompt_max_pixels=SIDE**2)
    memory, began = {}, time.perf_counter()
    for position in range(0, examples, BATCH):
        prompts = encode_prompts(source.train(position, BATCH), encoder)
        assert len(prompts) == BATCH and all(len(prompt.images[0].patches) == 1024 for prompt in prompts)
        if position // BATCH % 8 == 0:
            memory[position] = resident()
    return {"memory": memory, "opened_s": opened, "per_second": examples / (time.perf_counter() - began)}


def resident() -> float:
    """MiB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def write_stream(folder: Path, lines: int) -> None:
    """A file of so many questions about a few images."""
    names = []
    for kind in ("PNG, grey, 448", "JPEG, colour, 448"):
        for number, content in enumerate(encoded(kind, 32)):
            names.append(f"{KINDS[kind][2]}{number}.{KINDS[kind][2].lower()}")
            (folder / names[-1]).write_bytes(content)
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        for number in range(lines):
            line = {"id": number, "image": names[number % len(names)], "question": f"What is number {number}?"}
            file.write(json.dumps(line | {"options": ["a lesion", "none"], "answer": "AB"[number % 2]}) + "\n")


def memory(examples: int) -> dict[str, Any]:
    """The figures of `stream` in a process of its own, and the most memory in the first tenth and behind it."""
    with tempfile.TemporaryDirectory() as folder:
        write_stream(Path(folder), examples)
        command = [sys.executable, __file__, f"--stream={folder}", f"--examples={examples}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=models.REPOSITORY)
    found = json.loads(done.stdout.splitlines()[-1])
    sizes = {int(position): value for position, value in found["memory"].items()}
    early = max(value for position, value in sizes.items() if position <= examples / 10)
    late = max(value for position, value in sizes.items() if position > examples / 10)
    return found | {"first_tenth_mib": early, "later_mib": late}


def run(
    runs: int, images: int, examples: int, floor: float, output: str | None, kinds: tuple[str, ...] = tuple(KINDS)
) -> dict[str, Any]:
    """Measures, reports and checks, in this order, so that a figure that falls short is seen."""
    rows, seconds = speeds(runs, images, kinds)
    found = memory(examples) if examples else {}
    if found:
        print(
            f"{examples:,} examples: {found['first_tenth_mib']:.0f} MiB at most in the first tenth,"
            f" {found['later_mib']:.0f} MiB behind it; checked in {found['opened_s']:.1f} s,"
            f" read at {found['per_second']:.0f} per second on all cores"
        )
    written = tables.report(
        "reading",
        rows,
        protocol="one thread, by turns; memory in a process of its own",
        sizes={"side": SIDE, "images": images, "examples": examples, "floor": floor},
        seconds=seconds,
        figures=found,
        output=output,
    )
    for row in rows:
        speed, possible = row["ours, per second"], row["decoding alone, per second"] >= floor
        small = KINDS[row["images"]][0] == SIDE
        assert speed >= floor or not (small and possible), f"{row['images']}: {speed:.0f} images per second"
    if found:
        growth = found["later_mib"] - found["first_tenth_mib"]
        assert growth <= GROWTH, f"memory grew by {growth:.0f} MiB behind the first tenth"
    return written


def main() -> None:
    """Reads the command line."""
    parser = tables.parser(__doc__)
    parser.add_argument("--images", type=int, default=200, help="images of a run")
    parser.add_argument("--examples", type=int, default=100_000, help="of the stream; 0 = none")
    parser.add_argument("--floor", type=float, default=300.0, help="images per second and core that are asked for")
    parser.add_argument("--stream", default=None, help="folder with a stream to read, and nothing else")
    arguments = models.start(parser)
    if arguments.stream:
        print(json.dumps(stream(Path(arguments.stream), arguments.examples)))
        return
    run(arguments.runs, arguments.images, arguments.examples, arguments.floor, arguments.output)


if __name__ == "__main__":
    main()
