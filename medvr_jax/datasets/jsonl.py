"""Lines of JSON: one object per line, each line read by itself, so that one that is damaged hides no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvr_jax.datasets.faults import Fault


def json_lines(path: str | Path, name: str = "") -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """(number of the line, its object or what is wrong with it) of each line that is not empty.

    `name` is what faults call the file, else by its path.
    """
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # a byte order mark
            if content.strip():
                yield number, _parse_line(content, f"{name or path}:{number}")


def _parse_line(line: bytes, where: str) -> dict[str, Any] | Fault:
    try:
        record = json.loads(line.decode("utf-8").rstrip(), object_pairs_hook=_without_repetition)
    except UnicodeDecodeError as error:
        return Fault(where, "not_utf8", f"not UTF-8 text ({error.reason} at byte {error.start} of the line)")
    except json.JSONDecodeError as error:
        return Fault(where, "not_json", f"not JSON ({error.msg} at column {error.colno})")
    except _RepeatedKeyError as error:
        return Fault(where, "repeated_key", f"found key {error.args[0]!r} twice; allowed: once")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists in lists
        return Fault(where, "not_json", f"not JSON that can be read ({error})")
    if not isinstance(record, dict):
        return Fault(where, "not_object", f"found {type(record).__name__}; allowed: a JSON object")
    return record


class _RepeatedKeyError(Exception):
    """An object has a key twice."""


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return found
