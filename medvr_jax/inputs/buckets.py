"""Static shapes come from short lists of buckets; this chooses one."""

from __future__ import annotations

from collections.abc import Sequence

from medvr_jax.errors import UserError


def choose_bucket(n: int, buckets: Sequence[int], *, what: str = "length") -> int:
    """The smallest bucket that holds n; a UserError that names `what` when none does."""
    fitting = [bucket for bucket in buckets if bucket >= n]
    if not fitting:
        raise UserError(f"{what}: {n} does not fit the largest bucket, {max(buckets)}; allowed: at most that")
    return min(fitting)
