"""Groups of trajectories as small JSON: what the page's own script reads, one piece for each group.

All texts of tokens stand once, in a vocabulary of (text, id); arrays are base64 of little-endian numbers. The script
opens a group's piece when somebody looks at it, and until then knows the group by its entry in the index.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medvr_jax.reports.agreement import Agreement
from medvr_jax.reports.pictures import Picture

Record = Mapping[str, Any]

UNKNOWN = 65535  # stands for an entropy or log-probability that is not known
_SCALE = 1000.0  # thousandths of a nat, up to 65.5
_DECISION = (
    "position", "pass", "h_base", "h_tool", "delta_h", "probability", "u", "eligible", "asked", "granted", "child",
)  # fmt: skip
_PICTURE = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/=]*")


class Vocabulary:
    """Numbers the (text, id) pairs of tokens in the order in which they are first met."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, int], int] = {}

    def number(self, pieces: Sequence[str], token_ids: Sequence[int]) -> np.ndarray:
        """The numbers of a text's tokens, uint32."""
        known = self._numbers
        pairs = zip(pieces, token_ids, strict=True)
        return np.fromiter((known.setdefault(pair, len(known)) for pair in pairs), np.uint32, len(pieces))

    def packed(self) -> dict[str, Any]:
        """All pairs, column by column."""
        return {"pieces": [piece for piece, _ in self._numbers], "ids": [number for _, number in self._numbers]}


def script_json(value: Any) -> str:
    """JSON that is safe between <script> tags, whatever its texts say."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be written as UTF-8
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def index_entry(records: Sequence[Record], agreement: Agreement) -> dict[str, Any]:
    """What lists, filters and orders need to know of a group."""
    first = records[0]
    return {
        "step": first.get("step", 0),
        "group": first.get("group", 0),
        "question": first["question"],
        "disagreement": rounded(disagreement(records)),
        "entropy": rounded(_mean_entropy(records)),
        "elsewhere": agreement.elsewhere,
        "trajectories": [_index_row(record) for record in records],
    }


def _index_row(record: Record) -> dict[str, Any]:
    looked = bool(record["boxes"]) or any(turn["observation"] in ("crop", "image") for turn in record["turns"])
    return {
        "slot": record["slot"],
        "correct": record["correct"],
        "forked": record["origin"] == "fork" or any(decision["granted"] for decision in record["decisions"]),
        "looked": looked,
        "truncated": record["ended"] == "truncated",
        "reward": rounded(record["rewards"]["total"]) if record["rewards"] else None,
    }


def disagreement(records: Sequence[Record]) -> float:
    """How likely two trajectories of the group, drawn with replacement, are to answer differently."""
    counts = Counter(record["prediction"] for record in records)
    return 1.0 - sum((count / len(records)) ** 2 for count in counts.values())


def _mean_entropy(records: Sequence[Record]) -> float:
    values = [v for r in records for v, own in zip(r["entropy"], r["sampled"], strict=False) if own and v is not None]
    return sum(values) / max(len(values), 1)


def group_piece(
    records: Sequence[Record], picture: Picture | None, agreement: Agreement, vocabulary: Vocabulary
) -> dict[str, Any]:
    """All that is shown of one group."""
    first = records[0]
    return {
        "question": first["question"],
        "options": list(first["options"]),
        "answer": first["answer"],
        "prompt": first.get("prompt_id"),
        "image": picture.address if picture else None,
        "size": list(picture.size if picture else (first.get("resized_size") or (100, 100))),
        "resized": first.get("resized_size"),
        "truth": [[rounded(v, 5) for v in box] for box in first["true_boxes"]],
        "covered": rounded(agreement.covered),
        "overlap": rounded(agreement.iou),
        "voters": agreement.voters,
        "counts": base64.b64encode(agreement.counts.clip(max=255).astype(np.uint8).tobytes()).decode(),
        "mask": base64.b64encode(np.packbits(agreement.mask, bitorder="little").tobytes()).decode(),
        "trajectories": [_trajectory(record, vocabulary) for record in records],
    }


def _trajectory(record: Record, vocabulary: Vocabulary) -> dict[str, Any]:
    pieces, count = record.get("pieces"), len(record["token_ids"])
    texts = pieces is not None and len(pieces) == count
    result = {
        "slot": record["slot"],
        "origin": record["origin"],
        "parent": record["parent"],
        "fork": record["fork_position"],
        "prediction": record["prediction"],
        "correct": record["correct"],
        "ended": record["ended"],
        "rewards": {name: rounded(value) for name, value in record["rewards"].items()} if record["rewards"] else None,
        "advantage": rounded(record["advantage"]),
        "iou": rounded(record["consensus_iou"]),
        "turns": [_turn(turn, texts) for turn in record["turns"]],
        "zooms": _zooms(record),
        "decisions": [[_plain(decision.get(name)) for name in _DECISION] for decision in record["decisions"]],
        "sampled": [len(list(run)) for run in _runs(record["sampled"])],
        "entropy": _numbers(record["entropy"]),
        "surprise": _numbers([None if v is None else -v for v in record["log_probabilities"]]),
    }
    if texts:
        numbers = vocabulary.number(pieces, record["token_ids"])
        wide = bool(numbers.size and numbers.max() > 0xFFFF)
        result["tokens"] = base64.b64encode(numbers.astype("<u4" if wide else "<u2").tobytes()).decode()
        result["wide"] = wide
    return result


def _turn(turn: Mapping[str, Any], known_by_tokens: bool) -> dict[str, Any]:
    """A turn's text is left out where its tokens tell it."""
    picture = turn.get("picture")
    return {
        "text": None if known_by_tokens else turn["text"],
        "asked": turn["call_box"],
        "observation": turn["observation"],
        "picture": picture if isinstance(picture, str) and _PICTURE.fullmatch(picture) else None,
    }


def _zooms(record: Record) -> list[dict[str, Any]]:
    """The record's zooms; of a run that had none yet, its boxes with the turns that crops came back in."""
    if "zooms" in record:
        return [
            {"turn": zoom["turn"], "tool": zoom["tool"]}
            | {space: zoom[space] and [rounded(v, 5) for v in zoom[space]] for space in _SPACES}
            for zoom in record["zooms"]
        ]
    places = [number for number, turn in enumerate(record["turns"]) if turn["observation"] == "crop"]
    return [
        {"turn": place, "tool": None, "normalised": [rounded(v, 5) for v in box], "original": None, "resized": None}
        for place, box in zip(places, record["boxes"], strict=False)
    ]


_SPACES = ("normalised", "original", "resized")


def _runs(sampled: Sequence[bool]) -> list[list[bool]]:
    """Stretches of tokens that were sampled, and that were not, in turn; the first may be empty."""
    runs = [list(run) for _, run in itertools.groupby(map(bool, sampled))]
    return runs if not runs or runs[0][0] else [[], *runs]


def _numbers(values: Sequence[float | None]) -> str:
    """Nats as uint16 thousandths."""
    array = np.array([np.nan if value is None else value for value in values], np.float64)
    scaled = np.clip(np.round(array * _SCALE), 0, UNKNOWN - 1)
    return base64.b64encode(np.where(np.isnan(array), UNKNOWN, scaled).astype("<u2").tobytes()).decode()


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Short enough to be written often."""
    return None if value is None else round(float(value), digits)


def _plain(value: Any) -> Any:
    return rounded(value) if isinstance(value, float) else value
