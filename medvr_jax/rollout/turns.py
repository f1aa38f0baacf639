"""Between two turns, on the host: read what was sampled, run the tools, and prepare what the device appends.

Crops belong to groups: one that several trajectories ask for, in whatever turn, is prepared and encoded once.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import threading
from collections.abc import Hashable, Mapping, Sequence

import jax
import numpy as np

from medvr_jax.inputs.chat import Encoder, Observation, Prompt, encode_observation
from medvr_jax.inputs.images import OriginalImage, PreparedImage, load_original
from medvr_jax.inputs.tokenizer import OPEN_CALL_TOKEN
from medvr_jax.rollout.state import ACTIVE, DONE, TURN_ENDED
from medvr_jax.rollout.tools import Tool, ToolResult, parse_tool_call, run_tool_call
from medvr_jax.rollout.trajectories import CROP, IMAGE, ORIGINS, Trajectory, Turn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Serving:
    """What the host hands back after a turn; every leaf starts with `[B, M]`.

    Attributes:
        status: int32, the slots' new status.
        tokens: `[B, M, E]` int32, observation tokens of the served rows.
        positions: `[B, M, E, 3]` int32.
        feature_index: `[B, M, E]` int32 into the group's crops' features `[C * F]`, -1 for text.
        counts: int32, observation tokens per row; 0 = not served.
        next_position: int32, rope position after the observation.
    """

    status: np.ndarray
    tokens: np.ndarray
    positions: np.ndarray
    feature_index: np.ndarray
    counts: np.ndarray
    next_position: np.ndarray

    def cut(self, tokens: int) -> Serving:
        """The same with E = `tokens`, no fewer than the most that a row has."""
        names = ("tokens", "positions", "feature_index")
        return dataclasses.replace(self, **{name: getattr(self, name)[:, :, :tokens] for name in names})


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Host copies of the loop's arrays after a turn: `tokens [B, M, T]`, the others `[B, M]`."""

    tokens: np.ndarray
    length: np.ndarray
    status: np.ndarray
    next_position: np.ndarray
    origin: np.ndarray
    parent: np.ndarray
    fork_position: np.ndarray


@dataclasses.dataclass(frozen=True)
class ReadTurn:
    """A turn as the host reads it: its text, and what its call returned; None where it called nothing."""

    text: str
    result: ToolResult | None


@dataclasses.dataclass
class WaitingRow:
    """A row whose call has been run: what it gets, where it ends, and whether that was a whole turn."""

    group: int
    row: int
    text: str
    result: ToolResult
    end: int
    ended_properly: bool


class TurnServer:
    """Follows the trajectories of one rollout from turn to turn; to be closed after it."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        slots: int,
        encoder: Encoder,
        tools: Mapping[str, Tool],
        *,
        observation_length: int,
        response_length: int,
        crop_features: int,
    ) -> None:
        """For B prompts and M slots; the lengths are E and T, `crop_features` is F, rows of features for each crop."""
        self._prompts, self._encoder, self._tools = prompts, encoder, tools
        self._observation_length, self._response_length = observation_length, response_length
        self._crop_features = crop_features
        self._turns: list[list[list[Turn]]] = [[[] for _ in range(slots)] for _ in prompts]
        self._ended = [["truncated"] * slots for _ in prompts]
        self._turn_start = np.ones((len(prompts), slots), np.int64)
        self._threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count())  # images leave the interpreter's lock
        self._originals: list[concurrent.futures.Future[OriginalImage]] = []
        self._read: dict[tuple[int, int], concurrent.futures.Future[ReadTurn]] = {}
        self._observations: dict[tuple[int, Hashable], concurrent.futures.Future[Observation]] = {}
        self._lock = threading.Lock()
        self._places: dict[tuple[int, Hashable], int] = {}
        self._crops: list[list[PreparedImage | None]] = [[] for _ in prompts]
        self._turn_began = 0  # among the groups' crops

    def read_originals(self) -> None:
        """Begins to decode the images that tools will work on, while the device is busy with the first turn."""
        if self._tools:
            self._originals = [self._threads.submit(load_original, p.example.images[0]) for p in self._prompts]

    def begin_serving(self, sampled: Sampled) -> None:
        """Begins to read the turns that have ended by now, and to run and prepare what they call, on threads.

        For turns that are not the last. What it reads of a row is final: a row that has ended its turn waits.
        """
        for b, m in np.argwhere(sampled.status == TURN_ENDED).tolist():
            if (b, m) not in self._read:
                tokens = sampled.tokens[b, m, self._turn_start[b, m] : sampled.length[b, m]]
                self._read[b, m] = self._threads.submit(self._read_turn, b, tokens)

    def serve(self, sampled: Sampled, *, last_turn: bool) -> Serving:
        """Reads the turn that each waiting row has ended; runs its tool and prepares the observation, or ends it.

        Text and image of an observation are appended together or not at all: a trajectory without room for them, and
        for one token after them, ends before them.
        """
        serving, waiting = self._empty_serving(sampled), []
        if self._tools and not last_turn:
            self.begin_serving(sampled)
        for b, m in np.argwhere((sampled.status == TURN_ENDED) | (sampled.status == DONE)).tolist():
            start, end = self._turn_start[b, m], sampled.length[b, m]
            if sampled.status[b, m] == DONE and start == end:
                continue
            self._turn_start[b, m] = end
            if (b, m) in self._read:
                turn = self._read.pop((b, m)).result()
            else:
                turn = ReadTurn(self._text(sampled.tokens[b, m, start:end]), None)
            if sampled.status[b, m] == DONE:  # out of room in the middle of a turn
                self._turns[b][m].append(Turn(turn.text, called=OPEN_CALL_TOKEN in turn.text))
                continue
            serving.status[b, m] = DONE
            if turn.result is not None:
                ended_properly = sampled.tokens[b, m, end - 1] == self._encoder.end_of_turn_id
                waiting.append(WaitingRow(b, m, turn.text, turn.result, int(end), bool(ended_properly)))
            elif self._tools and last_turn and parse_tool_call(turn.text):
                self._turns[b][m].append(Turn(turn.text, called=True))
                self._ended[b][m] = "turn_limit"
            else:
                self._turns[b][m].append(Turn(turn.text, called=OPEN_CALL_TOKEN in turn.text))
                self._ended[b][m] = "answer"
        self.observe(serving, waiting)
        return serving

    def observe(self, serving: Serving, waiting: Sequence[WaitingRow]) -> None:
        """Writes the observations of the rows that wait into `serving`; those without room for theirs end."""
        prepared = [self._prepared(one.group, one.result) for one in waiting]
        for one, future in zip(waiting, prepared, strict=True):
            b, m, result, observation = one.group, one.row, one.result, future.result()
            count = len(observation.token_ids)
            fits = count <= self._observation_length and one.end + count < self._response_length
            if not (fits and one.ended_properly):
                self._turns[b][m].append(Turn(one.text, called=True, call_box=result.call_box))
                continue
            seen = result.error or (CROP if result.zoom else IMAGE)
            draw = result.draw if seen == IMAGE else None
            self._turns[b][m].append(Turn(one.text, True, result.call_box, result.zoom, seen, draw))
            # Positions only ever grow by what came before, text and image alike.
            start = int(serving.next_position[b, m])
            serving.status[b, m] = ACTIVE
            serving.tokens[b, m, :count] = observation.token_ids
            serving.positions[b, m, :count] = observation.positions + start
            serving.counts[b, m] = count
            serving.next_position[b, m] = observation.next_position + start
            if observation.image is not None:
                first = self._place(b, _key(result), observation.image) * self._crop_features
                index = observation.feature_index
                serving.feature_index[b, m, :count] = np.where(index >= 0, index + first, -1)
            self._turn_start[b, m] = one.end + count

    def _read_turn(self, group: int, tokens: np.ndarray) -> ReadTurn:
        """Reads one turn, runs its tool, and has the observation prepared."""
        text = self._text(tokens)
        call = parse_tool_call(text)
        if call is None:
            return ReadTurn(text, None)
        result = run_tool_call(call, self._tools, self._original(group), self._prompts[group].images[0])
        self._prepared(group, result)
        return ReadTurn(text, result)

    def _text(self, tokens: np.ndarray) -> str:
        return self._encoder.tokenizer.decode(tokens.tolist())

    def _prepared(self, group: int, result: ToolResult) -> concurrent.futures.Future[Observation]:
        """The observation of a result, from position 0; made once for all of the group's that look alike."""
        with self._lock:
            if (group, _key(result)) not in self._observations:
                self._observations[group, _key(result)] = self._threads.submit(self._encode, result)
            return self._observations[group, _key(result)]

    def _encode(self, result: ToolResult) -> Observation:
        return encode_observation(self._encoder, 0, crop=result.image, error=result.error or "")

    def _place(self, group: int, key: Hashable, image: PreparedImage) -> int:
        """Where the crop stands among the group's, newly or since an earlier row or turn."""
        if (group, key) not in self._places:
            self._places[group, key] = len(self._crops[group])
            self._crops[group].append(image)
        return self._places[group, key]

    def new_crops(self) -> list[list[PreparedImage]]:
        """The crops `[B][...]` that are new in this turn; they begin at the same place in all groups."""
        return [group[self._turn_began :] for group in self._crops]

    def end_turn(self, width: int) -> None:
        """Goes on to the next turn; every group's crops are filled up to `width` in this one."""
        self._turn_began += width
        for group in self._crops:
            group += [None] * (self._turn_began - len(group))

    @property
    def crops(self) -> list[list[PreparedImage | None]]:
        """All crops `[B][C]` so far; None where a group had fewer than the others in a turn."""
        return self._crops

    def trajectories(self, sampled: Sampled) -> list[list[Trajectory]]:
        """The finished trajectories `[B][M]`."""
        return [
            [
                Trajectory(
                    turns=tuple(turns),
                    ended=self._ended[b][m],
                    origin=ORIGINS[int(sampled.origin[b, m])],
                    parent=int(sampled.parent[b, m]) if sampled.parent[b, m] >= 0 else None,
                    fork_position=int(sampled.fork_position[b, m]) if sampled.parent[b, m] >= 0 else None,
                )
                for m, turns in enumerate(group)
            ]
            for b, group in enumerate(self._turns)
        ]

    def close(self) -> None:
        """Ends the threads; what nobody waits for any more is given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _empty_serving(self, sampled: Sampled) -> Serving:
        shape = (*sampled.length.shape, self._observation_length)
        return Serving(
            status=sampled.status.copy(),
            tokens=np.zeros(shape, np.int32),
            positions=np.zeros((*shape, 3), np.int32),
            feature_index=np.full(shape, -1, np.int32),
            counts=np.zeros(sampled.length.shape, np.int32),
            next_position=sampled.next_position.copy(),
        )

    def _original(self, group: int) -> OriginalImage:
        """The group's first image in full, decoded once per rollout."""
        return self._originals[group].result()


def _key(result: ToolResult) -> Hashable:
    """Equal for results of one original that look alike to the policy."""
    return result.error if result.key is None else result.key
