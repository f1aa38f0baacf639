"""Short lists of sizes, so that the number of compiled programs is known and what is padded is bounded."""

from __future__ import annotations

from collections.abc import Sequence


def halvings(limit: int, *, smallest: int, steps: int) -> tuple[int, ...]:
    """`limit` and its halves, rounded up, ascending: at most `steps` of them, none but `limit` below `smallest`."""
    sizes = [limit]
    while len(sizes) < steps and (half := -(-sizes[-1] // 2)) >= smallest and half < sizes[-1]:
        sizes.append(half)
    return tuple(reversed(sizes))


def two_thirds(limit: int, *, smallest: int, steps: int) -> tuple[int, ...]:
    """`limit`, two thirds of it, and so on, rounded up, ascending: at most `steps` of them, none but `limit` below
    `smallest`. What is more than the smallest fills two thirds of the size that holds it."""
    sizes = [limit]
    while len(sizes) < steps and (less := -(-2 * sizes[-1] // 3)) >= smallest and less < sizes[-1]:
        sizes.append(less)
    return tuple(reversed(sizes))


def bucket(needed: int, sizes: Sequence[int]) -> int:
    """The smallest of the ascending sizes that holds `needed`; ValueError if none does."""
    for size in sizes:
        if size >= needed:
            return size
    raise ValueError(f"{needed} does not fit the sizes {tuple(sizes)}")
