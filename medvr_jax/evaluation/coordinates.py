"""How sure the policy was of each box: the mean entropy of its coordinates' tokens, on the host.

Which tokens are coordinates is the rule of the sampling loop (`rollout/loop.py`, `track_coordinates`): those between
the token that opens a call's first list and the one that closes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvr_jax.rollout.loop import VocabularyTables

_DIGITS = 5  # enough to read; the same rounding as in rollouts/


def box_entropies(
    tokens: np.ndarray, sampled: np.ndarray, entropy: np.ndarray, zoomed: Sequence[bool], tables: VocabularyTables
) -> list[float | None]:
    """Of each turn that brought a crop the mean entropy in nats, None where its call has no list of tokens.

    Args:
        tokens: `[T]` int32 of one trajectory.
        sampled: `[T]` bool; each run of true is one turn.
        entropy: `[T]` float32.
        zoomed: for each turn whether a crop came back.
    """
    found = []
    for (start, end), cut in zip(_runs(sampled), zoomed, strict=True):
        if cut:
            places = [start + place for place in _coordinates(tokens[start:end], tables)]
            found.append(round(float(np.mean(entropy[places])), _DIGITS) if places else None)
    return found


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of each run of true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _coordinates(tokens: np.ndarray, tables: VocabularyTables) -> list[int]:
    """Places of the coordinates' tokens in a turn with one call."""
    found, in_call, in_list = [], False, False
    for place, token in enumerate(tokens.tolist()):
        if in_list and tables.closes_list[token]:
            return found
        if in_list:
            found.append(place)
        elif in_call:
            in_list = bool(tables.opens_list[token] and not tables.closes_list[token])
        in_call = in_call or bool(tables.opens_call[token])
    return []
