"""The part of `--config=FILE:VARIANT` behind the colon: words and settings, e.g. `zoom` or `full,gamma=0.25`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from configs import base
from medvr_jax.errors import UserError

Row = tuple[tuple[str, ...], bool, str]  # tools, forks, tool reward
ROWS: dict[str, Row] = {  # the paper's ablation
    "text": ((), False, "none"),
    "zoom": (("image_zoom_in_tool",), False, "conditional"),
    "evr": (("image_zoom_in_tool",), True, "conditional"),
    "cca": (("image_zoom_in_tool",), False, "consensus"),
    "full": (("image_zoom_in_tool",), True, "consensus"),
}
REWARDS = {  # the paper's designs of the tool reward: rewards.tool
    "none": "none",
    "unconditional": "unconditional",
    "conditional": "conditional",
    "cca": "consensus",
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a variant says: at most one word, and settings by name."""

    word: str = ""
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


def parse(text: str, words: Sequence[str], settings: Mapping[str, str]) -> Variant:
    """The parts of `text`, which commas separate: one of `words`, and name=value for names in `settings`.

    Args:
        settings: the names and what their values may be, for messages.

    Raises:
        UserError: for a part that is neither, or that stands there twice.
    """
    word, found = "", {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals and name in words:
            if word:
                raise UserError(f"--config: found variant {text!r} with both {word} and {name}, allowed is one of them")
            word = name
        elif equals and name in settings:
            if name in found:
                raise UserError(f"--config: found variant {text!r} with {name} twice, allowed is once")
            found[name] = value
        else:
            forms = [*words, *(f"{name}={values}" for name, values in settings.items())]
            raise UserError(f"--config: found variant {part.strip()!r}, allowed are {', '.join(forms)}")
    return Variant(word, found)


def split_fields(text: str) -> tuple[str, list[tuple[str, str]]]:
    """What `parse` reads, and the parts FIELD=VALUE, FIELD being one of base.py's, as (field, text)."""
    known = base.get_config()
    parts = [part.strip().partition("=") for part in text.split(",")]
    is_field = [bool(equals) and ("." in name or name in known) for name, equals, _ in parts]
    fields = [(name, value) for (name, _, value), yes in zip(parts, is_field, strict=True) if yes]
    words = ",".join("".join(part) for part, yes in zip(parts, is_field, strict=True) if not yes)
    return words, fields


def faint_lesions(config: ConfigDict) -> None:
    """Synthetic lesions that only a window shows; large enough to be read in the overview, could they be seen."""
    config.data.synthetic.hidden_by = "contrast"
    config.data.synthetic.image_side = 224
    config.data.synthetic.lesion_side = 80
    config.data.synthetic.period = 16.0
    config.data.synthetic.margin = 0.3


def tiny_prompts(config: ConfigDict) -> None:
    """Prompts of the tiny checkpoints."""
    config.prompt.bucket = 96
    config.prompt.patches = 64  # 112 x 112 pixels: 8 x 8 patches, 16 visual tokens
    config.prompt.min_pixels = config.prompt.max_pixels = 112 * 112


def tiny_looks(config: ConfigDict) -> None:
    """One look of the tiny checkpoints, and an answer."""
    config.rollout.max_turns = 2
    config.rollout.observation_length = 48
    config.rollout.crop_patches = 64
    config.rollout.crop_min_pixels = config.rollout.crop_max_pixels = 112 * 112


def apply_medvr(config: ConfigDict, text: str, more: Mapping[str, Row] | None = None) -> str:
    """Sets tools, forks and tool reward of MedVR's variant `text`; returns the ablation's row, or that of `more` rows.

    A row of the ablation (`full` where there is none), `reward=` for the designs of the tool reward and `gamma=` for
    EVR's. They must fit: text has nothing to reward, cca is a reward already, and gamma needs forks.
    """
    rows = ROWS | (more or {})
    variant = parse(text, tuple(rows), {"reward": "|".join(REWARDS), "gamma": "NUMBER"})
    row = variant.word or "full"
    config.rollout.tools, config.evr.enabled, config.rewards.tool = rows[row]
    if "reward" in variant.settings:
        config.rewards.tool = _reward(row, variant.settings["reward"])
    if "gamma" in variant.settings:
        config.evr.gamma = _gamma(row, variant.settings["gamma"], forks=config.evr.enabled)
    return row


def _reward(row: str, value: str) -> str:
    if value not in REWARDS:
        raise UserError(f"--config: found variant 'reward={value}', allowed are {', '.join(REWARDS)}")
    if row in ("text", "cca"):
        why = "has no tool to reward" if row == "text" else "is the reward cca without forks"
        raise UserError(
            f"--config: found variant '{row},reward={value}', but {row} {why}; allowed with zoom, evr, full"
        )
    return REWARDS[value]


def _gamma(row: str, value: str, *, forks: bool) -> float:
    try:
        gamma = float(value)
    except ValueError:
        gamma = math.nan
    if not 0 <= gamma < math.inf:
        raise UserError(f"--config: found variant 'gamma={value}', allowed are numbers from 0 on")
    if not forks:
        raise UserError(
            f"--config: found variant '{row},gamma={value}', but {row} has no forks; allowed with evr, full"
        )
    return gamma
