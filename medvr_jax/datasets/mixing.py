"""Which sets a run learns from, and in what order: a stream that is a pure function of seed and position.

The order is grain's: shuffled anew in every epoch, several sets mixed by weight. A position is all the state there is,
so a run that goes on from position n sees what it would have seen. Nothing is read here: what stands at a position is a
number, counted through all sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medvr_jax.errors import UserError

if TYPE_CHECKING:
    import grain


def parse_sets(entries: Sequence[str]) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """(names, weights) of `data.sets`: "name" or "name:weight", weights for all sets or (None) for none."""
    names, weights = [], []
    for entry in entries:
        if not isinstance(entry, str):
            raise UserError(f"data.sets: found {entry!r}, allowed is text: a set's name, or name:weight")
        name, colon, weight = entry.partition(":")
        name = name.strip()
        if not name or name in names:
            raise UserError(f"data.sets: found {name!r} {'twice' if name else ''}, allowed are names, each once")
        names.append(name)
        if colon:
            weights.append(_weight(weight, entry))
    if weights and len(weights) < len(names):
        raise UserError(f"data.sets: found {len(weights)} weights for {len(names)} sets, allowed is one each, or none")
    return tuple(names), tuple(weights) or None


def _weight(text: str, entry: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"data.sets: found weight {text!r} in {entry!r}, allowed is a number more than 0")
    return weight


def endless_order(sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> grain.MapDataset[int]:
    """Numbers of examples by position, without end. Number n is example n − (sizes before) of a set.

    Args:
        sizes: examples of each set, 1 or more.
        weights: of each set its share of the stream, up to a factor; the sets are shuffled by themselves, so that small
            ones begin again sooner. None: all sets are shuffled as one, and every example comes once in an epoch.
        seed: any whole number; other seeds give other orders.
    """
    import grain  # takes a while, and the synthetic task does without
    import numpy as np

    def shuffled(start: int, stop: int, number: int) -> grain.MapDataset[int]:
        # Epoch e is shuffled with the seed + e, so that seeds in a row would give the same orders one epoch apart.
        (spread,) = np.random.SeedSequence((seed, number)).generate_state(1)
        return grain.MapDataset.range(start, stop).shuffle(seed=int(spread)).repeat()

    ends = np.cumsum(sizes).tolist()
    if weights is None or len(sizes) == 1:
        return shuffled(0, ends[-1], 0)
    parts = [shuffled(end - size, end, number) for number, (size, end) in enumerate(zip(sizes, ends, strict=True))]
    return grain.MapDataset.mix(parts, weights)
