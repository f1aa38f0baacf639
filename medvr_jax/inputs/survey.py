"""How much room prompts need, without decoding a pixel: from it the sizes that batches of prompts are padded to."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Sequence

import numpy as np

from medvr_jax.datasets.example import Example
from medvr_jax.inputs.chat import Encoder, image_name, prompt_ids
from medvr_jax.inputs.images import image_header, resized_size

STEP = 16  # sizes are multiples of this many tokens


def room_for(example: Example, encoder: Encoder) -> tuple[int, int]:
    """Tokens that the example's prompt takes of its bucket, and patches of its largest image."""
    sizes = []
    for i, source in enumerate(example.images):
        name = image_name(example, i)
        size = image_header(source, name).size
        sizes.append(
            resized_size(
                encoder.processor,
                size,
                max_pixels=encoder.prompt_max_pixels,
                min_pixels=encoder.prompt_min_pixels,
                max_patches=encoder.prompt_patches,
                name=name,
            )
        )
    patches = [width * height // encoder.processor.patch_size**2 for width, height in sizes]
    text = len(prompt_ids(example, encoder)) - len(patches)  # one placeholder each
    return text + sum(count // encoder.merge_size**2 for count in patches) - 1, max(patches, default=0)


def rooms(examples: Sequence[Example], encoder: Encoder) -> np.ndarray:
    """`room_for` of each, `[n, 2]` int64."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda example: room_for(example, encoder), examples))
    return np.array(found, np.int64).reshape(-1, 2)


def prompt_sizes(
    needed: np.ndarray, largest: tuple[int, int], *, count: int, merge_unit: int
) -> tuple[tuple[int, int], ...]:
    """At most `count` sizes (tokens, patches), ascending, that hold these batches with the least padding.

    Args:
        needed: `[n, 2]`, tokens and patches that the batches need, each the most of its prompts.
        largest: what no prompt may exceed; the only size where there is nothing to choose.
        count: sizes at most.
        merge_unit: patches of an image token; sizes are multiples of it.
    """
    if count < 2 or not len(needed):
        return (largest,)
    steps = np.array([STEP, merge_unit])
    rounded = np.minimum(-(-needed // steps) * steps, largest)
    # In the order of tokens; a size that ends at batch j holds every batch before it.
    rounded = rounded[np.argsort(rounded[:, 0], kind="stable")]
    ends = np.flatnonzero(np.r_[np.diff(rounded[:, 0]) > 0, True])
    tokens, patches = rounded[ends, 0], np.maximum.accumulate(rounded[:, 1])[ends]
    batches = np.diff(np.r_[-1, ends])
    covered = np.cumsum(batches)

    # best[j][k]: the least padded tokens of the first j + 1 groups of batches with k sizes, and where they end.
    best: list[dict[int, tuple[float, tuple[int, ...]]]] = []
    for j in range(len(ends)):
        choices = {1: (float(tokens[j] * covered[j]), (j,))}
        for i in range(j):
            for used, (cost, chosen) in best[i].items():
                total = cost + float(tokens[j] * (covered[j] - covered[i]))
                if used < count and total < choices.get(used + 1, (np.inf, ()))[0]:
                    choices[used + 1] = (total, (*chosen, j))
        best.append(choices)
    _, chosen = min(best[-1].values())
    return tuple((int(tokens[j]), int(patches[j])) for j in chosen)
