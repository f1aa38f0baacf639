"""The text of a rollout while it is sampled: the loop on the device is left every few tokens, and entered again.

Nothing of what is sampled changes: the loop keeps no state but what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from medvr_jax.inputs.chat import Prompt
from medvr_jax.rollout.engine import RolloutEngine
from medvr_jax.rollout.state import ACTIVE, RolloutState
from medvr_jax.rollout.trajectories import Turn
from medvr_jax.rollout.turns import Sampled, Serving, TurnServer

CHUNK = 4  # tokens
_HALF = "\ufffd"  # how a tokenizer writes bytes that are no character, or not yet one


class Listener(Protocol):
    """Who hears of the first trajectory of the first group."""

    def begin(self, length: int) -> None:
        """The loop is entered when the trajectory has so many tokens."""

    def sampled(self, tokens: np.ndarray) -> None:
        """All its tokens so far `[n]` int32, of all turns and observations."""

    def served(self, turns: Sequence[Turn]) -> None:
        """A turn has ended and its tool has run; all turns so far."""


def let_hear(engine: RolloutEngine, listener: Listener, chunk: int = CHUNK) -> None:
    """From now on the listener hears of the engine's rollouts, every `chunk` tokens."""
    decode, turn_server = engine.programs.decode, engine.turn_server

    def decode_in_chunks(
        params: Any, weights: Any, cache: Any, state: RolloutState, key: Any, ids: Any, tables: Any, stop_at: Any, *more
    ) -> tuple[RolloutState, Any]:
        """As `RolloutPrograms.decode`."""
        tokens, length, status = _seen(state)
        listener.begin(int(length[0, 0]))
        while True:
            going = length[status == ACTIVE]
            soon = np.int32(min(int(stop_at), int(going.max()) + chunk)) if going.size else np.int32(stop_at)
            state, why = decode(params, weights, cache, state, key, ids, tables, soon, *more)
            tokens, length, status = _seen(state)
            listener.sampled(tokens[0, 0, : length[0, 0]])
            for_the_host = any(bool(flag) for flag in jax.tree.leaves(jax.device_get(why)))
            if for_the_host or soon >= stop_at or not (status == ACTIVE).any():
                return state, why

    def heard_turn_server(prompts: Sequence[Prompt]) -> TurnServer:
        server = turn_server(prompts)
        serve: Callable[..., Serving] = server.serve

        def heard_serve(sampled: Sampled, *, last_turn: bool) -> Serving:
            serving = serve(sampled, last_turn=last_turn)
            listener.served(server.trajectories(sampled)[0][0].turns)
            return serving

        server.serve = heard_serve
        return server

    engine.programs = engine.programs._replace(decode=decode_in_chunks)
    engine.turn_server = heard_turn_server


def _seen(state: RolloutState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens `[B, M, T]`, length and status `[B, M]` on the host."""
    return jax.device_get((state.tokens, state.length, state.status))


class Storyteller:
    """Tells a trajectory's text as it comes, and after each turn what its tool did.

    A character whose bytes are spread over tokens is held back until it is whole, or the turn is over.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        silent: Sequence[int],
        write: Callable[[str], None],
        describe: Callable[[int, Turn], str],
    ) -> None:
        """
        Args:
            tokenizer: turns ids into text.
            silent: ids that are not told, such as the ends of turns.
            write: takes pieces of text.
            describe: says in a line what came back after a turn, by its number from 0; empty for nothing.
        """
        self._tokenizer, self._silent, self._write, self._describe = tokenizer, frozenset(silent), write, describe
        self._start: int | None = None  # of the turn
        self._turn: list[int] = []  # its tokens
        self._told = 0  # characters of it
        self._turns = 0

    def begin(self, length: int) -> None:
        """See `Listener`."""
        if self._start is None:
            self._start, self._turn, self._told = length, [], 0

    def sampled(self, tokens: np.ndarray) -> None:
        """See `Listener`."""
        self._turn = [token for token in tokens[self._start :].tolist() if token not in self._silent]
        self._tell(self._text().rstrip(_HALF))

    def served(self, turns: Sequence[Turn]) -> None:
        """See `Listener`."""
        if len(turns) == self._turns:  # it is over already; others go on
            return
        text = self._text()
        self._tell(text)
        if not text.endswith("\n"):
            self._write("\n")
        for number in range(self._turns, len(turns)):
            if line := self._describe(number, turns[number]):
                self._write(f"{line}\n")
        self._turns, self._start = len(turns), None

    def _text(self) -> str:
        return self._tokenizer.decode(self._turn)

    def _tell(self, text: str) -> None:
        new = text[self._told :]
        if new:
            self._write(printable(new))
        self._told = max(self._told, len(text))


def printable(text: str) -> str:
    """Text without what could steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else _HALF for c in text)
