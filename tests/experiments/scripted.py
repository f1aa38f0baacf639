"""A backbone whose logits are prescribed, so that the real sampling loop can be held against closed forms.

A trajectory is a prefix, some words, and a call with two coordinates: `z w* <call> [ x y ] </call> <end>`. The prefix
is read from the response cache, as attention would: a fork knows it only if the loop copied its parent's cache.

Axis letters: B groups, M trajectories, T response slots, Z prefixes, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from medvr_jax.models.backbone import PromptCache, ResponseCache, ResponseInputs, SamplingWeights
from medvr_jax.rollout import loop
from medvr_jax.rollout.evr import EvrSettings
from medvr_jax.rollout.state import RolloutState, initial_fork_state, initial_state

V, Z, T = 16, 4, 12
WORD, CALL, OPEN, CLOSE, CALL_END, END, FIRST = 1, 2, 3, 4, 5, 6, 8  # ids from FIRST on: prefixes, and coordinates
PLACES = V - FIRST
WORDS = np.array([0, 2, 1, 0])  # per prefix, so that boxes close at different steps
BASE_TOKENS = 2  # the prefix and the certain token after it
_SCRIPT = (CALL, OPEN, WORD, WORD, CLOSE, CALL_END, END)  # the coordinates are the third and the fourth


@dataclasses.dataclass(frozen=True)
class Case:
    """One setting: per prefix p_z, s_z, over how many other places a miss spreads, and over how many the second
    coordinate; then EVR's."""

    chance: tuple[float, ...]
    success: tuple[float, ...]
    misses: tuple[int, ...]
    second: tuple[int, ...]
    p_base: float = 0.5
    gamma: float = 0.5
    threshold: float = 0.0
    max_passes: int = 8

    def distributions(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the first sampled token `[V]`, and of both coordinates `[Z, 2, V]`; place FIRST is the lesion's."""
        first, coordinates = np.zeros(V), np.zeros((Z, 2, V))
        first[FIRST : FIRST + len(self.chance)] = self.chance
        coordinates[:, :, FIRST] = 1
        for z, success in enumerate(self.success):
            coordinates[z, 0, FIRST] = success
            coordinates[z, 0, FIRST + 1 : FIRST + 1 + self.misses[z]] = (1 - success) / self.misses[z]
            coordinates[z, 1, FIRST : FIRST + self.second[z]] = 1 / self.second[z]
        return first, coordinates


class ScriptedBackbone:
    """What `loop.decode` asks of a backbone: `extend`, `logits`, and the width of a hidden value, here V."""

    config = SimpleNamespace(text=SimpleNamespace(hidden_size=V))

    def __init__(self, first: jax.Array, coordinates: jax.Array) -> None:
        """Logits `[B, V]` and `[B, Z, 2, V]`."""
        self.first, self.coordinates = first, coordinates

    def extend(
        self,
        prompt_cache: PromptCache,
        cache: ResponseCache,
        new: ResponseInputs,
        starts: jax.Array,
        counts: jax.Array,
        weights: SamplingWeights,
    ) -> tuple[jax.Array, ResponseCache]:
        """Remembers the token and tells the logits of the next as its hidden value."""
        (values,) = cache.values
        here = jnp.arange(T) == starts[..., None]
        values = jnp.where(here[:, :, None, :, None], new.tokens[:, :, None, :, None].astype(values.dtype), values)
        prefix = jnp.clip(values[:, :, 0, 1, 0].astype(jnp.int32) - FIRST, 0, Z - 1)
        place = starts - 1 - jnp.asarray(WORDS)[prefix]  # in the script
        certain = jnp.where(place < 0, WORD, jnp.asarray(_SCRIPT)[jnp.clip(place, 0, len(_SCRIPT) - 1)])
        logits = jnp.where(jnp.arange(V) == certain[..., None], 0.0, -1e9)
        rows = jnp.arange(prefix.shape[0])[:, None]
        drawn = self.coordinates[rows, prefix, jnp.clip(place - 2, 0, 1)]
        logits = jnp.where(((place == 2) | (place == 3))[..., None], drawn, logits)
        logits = jnp.where((starts == 0)[..., None], self.first[:, None], logits)
        return logits[:, :, None], ResponseCache(cache.keys, (values,))

    def logits(self, hidden: jax.Array, weights: SamplingWeights) -> jax.Array:
        return hidden


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _decode(
    trajectories: int,
    repeated: bool,
    gate: str,
    position: str,
    first: jax.Array,
    coordinates: jax.Array,
    numbers: dict[str, jax.Array],
) -> RolloutState:
    groups, base = first.shape[0], trajectories // 2
    zeros = jnp.zeros(groups, jnp.int32)
    cache = ResponseCache((jnp.zeros((groups, trajectories, 1, 1, T)),), (jnp.zeros((groups, trajectories, 1, T, 1)),))
    state = initial_state(
        zeros, zeros, zeros + 1, cache,
        slots=trajectories, length=T, base_slots=base, forks=initial_fork_state(groups, trajectories, 4, 1),
    )  # fmt: skip
    # EVR's numbers as arrays: every group has its own, and one program serves many settings.
    evr = EvrSettings(base_tokens=BASE_TOKENS, window=4, repeated=repeated, gate=gate, position=position, **numbers)
    ids = jnp.arange(V)
    tables = loop.VocabularyTables(ids < 0, ids == END, ids == CALL, ids == CALL_END, ids == OPEN, ids == CLOSE)
    prompts = jnp.arange(groups, dtype=jnp.uint32)
    never = jnp.float32(2.0)
    state, _ = loop.decode(
        ScriptedBackbone(first, coordinates), None, None, state, jax.random.key(trajectories), prompts, tables,
        jnp.int32(2 * T), never, loop.LoopSettings(1.0, base, evr),
    )  # fmt: skip
    return state


def roll_out(
    cases: tuple[Case, ...],
    trajectories: int,
    repeated: bool,
    groups: int,
    *,
    gate: str = "entropy",
    position: str = "first",
) -> RolloutState:
    """`groups` groups of each case through `loop.decode`; leaves start with `[cases * groups, M]`."""
    pairs = [case.distributions() for case in cases]
    with np.errstate(divide="ignore"):
        logits = [np.maximum(np.log(np.repeat(np.stack(part), groups, 0)), -1e9) for part in zip(*pairs, strict=True)]
    numbers = {
        name: np.repeat([getattr(case, name) for case in cases], groups)
        for name in ("p_base", "gamma", "threshold", "max_passes")
    }
    numbers = {name: x if name == "max_passes" else x[:, None].astype(np.float32) for name, x in numbers.items()}
    first, coordinates = (x.astype(np.float32) for x in logits)
    return jax.device_get(_decode(trajectories, repeated, gate, position, first, coordinates, numbers))
