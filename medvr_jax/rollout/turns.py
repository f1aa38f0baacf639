"""Between two turns, on the host: read what was sampled, run the tools, and prepare what the device appends."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import jax
import numpy as np
from PIL import Image

from medvr_jax.inputs.chat import Encoder, Observation, Prompt, encode_observation
from medvr_jax.inputs.images import PreparedImage, load_image, pack_images
from medvr_jax.models.config import VisionConfig
from medvr_jax.models.vision import ImageBatch
from medvr_jax.rollout.state import ACTIVE, DONE, TURN_ENDED
from medvr_jax.rollout.tools import Tool, ToolResult, parse_tool_call, run_tool_call
from medvr_jax.rollout.trajectories import ORIGINS, Trajectory, Turn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Serving:
    """What the host hands back after a turn; every leaf starts with `[B, M]`.

    Attributes:
        status: int32, the slots' new status.
        tokens: `[B, M, E]` int32, observation tokens of the served rows.
        positions: `[B, M, E, 3]` int32.
        feature_index: `[B, M, E]` int32 into that row's crop alone, -1 for text.
        counts: int32, observation tokens per row; 0 = not served.
        next_position: int32, rope position after the observation.
        crops: image batch `[B, M, ...]`; rows without a crop are empty.
    """

    status: np.ndarray
    tokens: np.ndarray
    positions: np.ndarray
    feature_index: np.ndarray
    counts: np.ndarray
    next_position: np.ndarray
    crops: ImageBatch


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


class TurnServer:
    """Follows the trajectories of one rollout from turn to turn."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        slots: int,
        encoder: Encoder,
        tools: Mapping[str, Tool],
        *,
        observation_length: int,
        response_length: int,
        crop_patches: int,
        vision: VisionConfig,
    ) -> None:
        """For B prompts and M slots; the lengths are E and T, `crop_patches` is the bucket S of a crop."""
        self._prompts, self._encoder, self._tools = prompts, encoder, tools
        self._observation_length, self._response_length = observation_length, response_length
        self._crop_patches, self._vision = crop_patches, vision
        self._turns: list[list[list[Turn]]] = [[[] for _ in range(slots)] for _ in prompts]
        self._ended = [["truncated"] * slots for _ in prompts]
        self._turn_start = np.ones((len(prompts), slots), np.int64)
        self._originals: dict[int, Image.Image] = {}
        self._observations: dict[tuple[int, Hashable], Observation] = {}

    def serve(self, sampled: Sampled, *, last_turn: bool) -> Serving:
        """Reads the turn that each waiting row has ended; runs its tool and prepares the observation, or ends it.

        Text and image of an observation are appended together or not at all: a trajectory without room for them, and
        for one token after them, ends before them.
        """
        slots = sampled.length.shape[1]
        serving = self._empty_serving(sampled)
        images: list[PreparedImage | None] = [None] * sampled.length.size
        for b, m in np.argwhere((sampled.status == TURN_ENDED) | (sampled.status == DONE)).tolist():
            start, end = self._turn_start[b, m], sampled.length[b, m]
            if sampled.status[b, m] == DONE and start == end:
                continue
            text = self._encoder.tokenizer.decode(sampled.tokens[b, m, start:end].tolist())
            self._turn_start[b, m] = end
            if sampled.status[b, m] == DONE:  # out of room in the middle of a turn
                self._turns[b][m].append(Turn(text, called="<tool_call>" in text))
                continue
            serving.status[b, m] = DONE
            call = parse_tool_call(text) if self._tools else None
            if call is None:
                self._turns[b][m].append(Turn(text, called="<tool_call>" in text))
                self._ended[b][m] = "answer"
                continue
            if last_turn:
                self._turns[b][m].append(Turn(text, called=True))
                self._ended[b][m] = "turn_limit"
                continue
            result = run_tool_call(call, self._tools, self._original(b), self._prompts[b].images[0])
            observation = self._observe(b, result, int(sampled.next_position[b, m]))
            count = len(observation.token_ids)
            ended_properly = sampled.tokens[b, m, end - 1] == self._encoder.end_of_turn_id
            fits = count <= self._observation_length and end + count < self._response_length
            if not (fits and ended_properly):
                self._turns[b][m].append(Turn(text, called=True, call_box=result.call_box))
                continue
            self._turns[b][m].append(
                Turn(text, True, result.call_box, result.zoom, "crop" if result.image else result.error)
            )
            serving.status[b, m] = ACTIVE
            serving.tokens[b, m, :count] = observation.token_ids
            serving.positions[b, m, :count] = observation.positions
            serving.feature_index[b, m, :count] = observation.feature_index
            serving.counts[b, m] = count
            serving.next_position[b, m] = observation.next_position
            images[b * slots + m] = observation.image
            self._turn_start[b, m] = end + count
        return dataclasses.replace(serving, crops=self._pack(images))

    def no_crops(self) -> ImageBatch:
        """An image batch `[B, M, ...]` without any image."""
        return self._pack([None] * (len(self._turns) * len(self._turns[0])))

    def _pack(self, images: Sequence[PreparedImage | None]) -> ImageBatch:
        crops = pack_images(images, self._crop_patches, self._vision)
        groups, slots = len(self._turns), len(self._turns[0])
        return jax.tree.map(lambda leaf: leaf.reshape(groups, slots, *leaf.shape[1:]), crops)

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

    def _empty_serving(self, sampled: Sampled) -> Serving:
        shape = (*sampled.length.shape, self._observation_length)
        return Serving(
            status=sampled.status.copy(),
            tokens=np.zeros(shape, np.int32),
            positions=np.zeros((*shape, 3), np.int32),
            feature_index=np.full(shape, -1, np.int32),
            counts=np.zeros(sampled.length.shape, np.int32),
            next_position=sampled.next_position.copy(),
            crops=pack_images([], self._crop_patches, self._vision),
        )

    def _original(self, group: int) -> Image.Image:
        """The group's first image in full, decoded once per rollout."""
        if group not in self._originals:
            self._originals[group] = load_image(self._prompts[group].example.images[0])
        return self._originals[group]

    def _observe(self, group: int, result: ToolResult, start: int) -> Observation:
        """The observation of a tool's result from position `start`; the same one of a group is prepared once."""
        key = (group, result.zoom.original if result.zoom else result.error)
        if key not in self._observations:
            self._observations[key] = encode_observation(self._encoder, 0, crop=result.image, error=result.error or "")
        # Positions only ever grow by what came before, text and image alike.
        first = self._observations[key]
        return dataclasses.replace(first, positions=first.positions + start, next_position=first.next_position + start)
