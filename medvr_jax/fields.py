"""Dotted names of nested settings: "rollout.temperature" and what it is set to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values; an empty section counts as a value, so that it cannot hide."""
    for key in config:
        value = config[key]
        if isinstance(value, (ConfigDict, dict)) and len(value):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What `leaves` took apart."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, field = name.split(".")
        parent = found
        for part in sections:
            parent = parent.setdefault(part, {})
        parent[field] = value
    return found


def nearest(name: str, names: Iterable[str]) -> str:
    """The name that an unknown one was probably meant to be, by the whole of it or by its last part."""

    def likeness(known: str) -> float:
        pairs = ((name, known), (name.rpartition(".")[2], known.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return max(names, key=lambda known: (likeness(known), -len(known)))
