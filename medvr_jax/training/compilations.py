"""Counts XLA compilations: a run whose count grows after its first steps has a shape that is not static."""

from __future__ import annotations

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_durations: list[float] = []


def _listen(event: str, duration: float, **_: object) -> None:
    if event == _EVENT:
        _durations.append(duration)


jax.monitoring.register_event_duration_secs_listener(_listen)


def count() -> int:
    """Programs compiled by this process so far."""
    return len(_durations)
