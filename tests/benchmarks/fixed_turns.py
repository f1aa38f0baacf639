"""Our rollout engine with turns of fixed lengths: nothing sampled ends a turn, and every turn but the last zooms."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from medvr_jax.inputs.chat import Prompt
from medvr_jax.rollout import loop
from medvr_jax.rollout.engine import RolloutEngine
from medvr_jax.rollout.state import ACTIVE, DONE, TURN_ENDED, RolloutState
from medvr_jax.rollout.tools import ToolCall, ZoomIn, run_tool_call
from medvr_jax.rollout.trajectories import TokenArrays, Turn
from medvr_jax.rollout.turns import Sampled, Serving, TurnServer

Box = tuple[float, float, float, float]


class FixedTurnServer(TurnServer):
    """Serves every row after every turn but the last with a crop of the row's own box."""

    boxes: Callable[[int, int], Box]  # (trajectory, turn) -> box in pixels of the resized image

    def serve(self, sampled: Sampled, *, last_turn: bool) -> Serving:
        """See `TurnServer.serve`; the boxes do not come from what was sampled."""
        serving = self._empty_serving(sampled)
        slots = sampled.length.shape[1]
        images: list[Any] = [None] * sampled.length.size
        for b, m in np.ndindex(*sampled.length.shape):
            turn = len(self._turns[b][m])
            if last_turn:
                serving.status[b, m] = DONE
                self._turns[b][m].append(Turn("", called=False))
                continue
            call = ToolCall(ZoomIn.name, {"bbox_2d": list(self.boxes(m, turn))})
            result = run_tool_call(call, self._tools, self._original(b), self._prompts[b].images[0])
            assert result.image is not None, result.error
            observation = self._observe(b, result, int(sampled.next_position[b, m]))
            count = len(observation.token_ids)
            assert count <= self._observation_length
            self._turns[b][m].append(Turn("", True, result.call_box, result.zoom, "crop"))
            serving.status[b, m] = ACTIVE
            serving.tokens[b, m, :count] = observation.token_ids
            serving.positions[b, m, :count] = observation.positions
            serving.feature_index[b, m, :count] = observation.feature_index
            serving.counts[b, m] = count
            serving.next_position[b, m] = observation.next_position
            images[b * slots + m] = observation.image
        return dataclasses.replace(serving, crops=self._pack(images))


@dataclasses.dataclass
class Decoding:
    """The decode program from one prompt on, again and again."""

    program: Callable[[RolloutState], RolloutState]
    fresh: RolloutState
    read: Callable[[Any], Any]
    state: RolloutState | None = None

    def reset(self) -> None:
        """A copy of the state after prefill; the program takes its buffers over."""
        self.state = jax.block_until_ready(jax.tree.map(lambda x: x.copy(), self.fresh))

    def run(self) -> RolloutState:
        """Samples; the work that is timed."""
        state, self.state = self.state, None
        return jax.block_until_ready(self.program(state))

    def host(self, state: RolloutState) -> TokenArrays:
        """The sampled tokens."""
        return TokenArrays(**self.read({f.name: getattr(state, f.name) for f in dataclasses.fields(TokenArrays)}))


class FixedTurnEngine(RolloutEngine):
    """A rollout engine whose turns end at the response slots `stops`."""

    stops: tuple[int, ...] = ()
    boxes: Callable[[int, int], Box] | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        banned = np.zeros_like(self.tables.banned)
        banned[: len(self.encoder.tokenizer)] = self.tables.banned[: len(self.encoder.tokenizer)]
        banned |= self.tables.end_of_turn
        self.tables = dataclasses.replace(self.tables, banned=banned)

    def start(self, params: nnx.State, prompts: Sequence[Prompt], steps: int) -> Decoding:
        """Prefills; the returned object decodes `steps` tokens from there."""
        from medvr_jax.inputs.batches import batch_prompts

        settings = self.settings
        batch = batch_prompts(
            prompts, settings.prompt_bucket, settings.prompt_images, settings.prompt_patches, self.config.vision
        )
        device_batch = self._put(batch)
        _, cache, state = jax.block_until_ready(self._prefill(params, device_batch))
        key = jax.random.key(0)

        def program(state: RolloutState) -> RolloutState:
            return self._decode(params, cache, state, key, device_batch.prompt_ids, self.tables)

        return Decoding(program, state, self._read)

    def _turn_server(self, prompts: Sequence[Prompt]) -> TurnServer:
        settings = self.settings
        server = FixedTurnServer(
            prompts,
            settings.trajectories,
            self.encoder,
            self.tools,
            observation_length=settings.observation_length,
            response_length=settings.response_length,
            crop_patches=settings.crop_patches,
            vision=self.config.vision,
        )
        server.boxes = self.boxes
        return server


def end_turns_at(stops: Sequence[int]) -> None:
    """Makes the loop end every turn at these slots."""
    original = loop.append

    @functools.wraps(original)
    def append(state: RolloutState, draw: Any, end_of_turn: jax.Array) -> RolloutState:
        new = original(state, draw, end_of_turn)
        here = draw.active & _isin(new.length, stops)
        return new.replace(status=jax.numpy.where(here, TURN_ENDED, new.status))

    loop.append = append


def _isin(length: jax.Array, stops: Sequence[int]) -> jax.Array:
    found = jax.numpy.zeros_like(length, bool)
    for stop in stops:
        found = found | (length == stop)
    return found
