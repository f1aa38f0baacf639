"""Our rollout engine with turns of fixed lengths: nothing sampled ends a turn, and every turn but the last zooms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from medvr_jax.inputs.batches import batch_prompts
from medvr_jax.inputs.chat import Encoder, Prompt
from medvr_jax.rollout.engine import RolloutEngine
from medvr_jax.rollout.settings import RolloutSettings
from medvr_jax.rollout.state import DONE, RolloutState
from medvr_jax.rollout.tools import ToolCall, ToolResult, run_tool_call
from medvr_jax.rollout.tools.zoom import ZoomIn
from medvr_jax.rollout.trajectories import TokenArrays, Turn
from medvr_jax.rollout.turns import Sampled, Serving, TurnServer, WaitingRow
from tests.benchmarks.models import Model

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class FixedTurns:
    """What every trajectory does.

    Attributes:
        sampled: tokens that the policy samples in each turn.
        observation: tokens of the observation after each turn but the last.
        box: (trajectory, turn) -> the box of its zoom, in pixels of the resized image.
    """

    sampled: tuple[int, ...]
    observation: int
    box: Callable[[int, int], Box]

    @property
    def response_length(self) -> int:
        """T: the prompt's last token, then all turns and observations."""
        return 1 + sum(self.sampled) + self.observation * (len(self.sampled) - 1)

    def stop_at(self, turn: int) -> int:
        """Length of a response at the end of this turn."""
        return 1 + sum(self.sampled[: turn + 1]) + self.observation * turn

    def zoom(self, prompt: Prompt, image: Any, trajectory: int, turn: int) -> ToolResult:
        """What the tool returns to this trajectory after this turn."""
        call = ToolCall(ZoomIn.name, {"bbox_2d": list(self.box(trajectory, turn))})
        result = run_tool_call(call, {ZoomIn.name: ZoomIn()}, image, prompt.images[0])
        assert result.image is not None, result.error
        return result


class FixedTurnServer(TurnServer):
    """Serves every row after every turn but the last with a crop of the row's own box."""

    turns: FixedTurns

    def serve(self, sampled: Sampled, *, last_turn: bool) -> Serving:
        """See `TurnServer.serve`; the boxes do not come from what was sampled."""
        serving, waiting = self._empty_serving(sampled), []
        for b, m in np.ndindex(*sampled.length.shape):
            turn = len(self._turns[b][m])
            assert sampled.length[b, m] == self.turns.stop_at(turn)
            if last_turn:
                serving.status[b, m] = DONE
                self._turns[b][m].append(Turn("", called=False))
                continue
            result = self.turns.zoom(self._prompts[b], self._original(b), m, turn)
            waiting.append(WaitingRow(b, m, "", result, int(sampled.length[b, m]), ended_properly=True))
        self.observe(serving, waiting)
        assert last_turn or (serving.counts == self.turns.observation).all()
        return serving


class FixedTurnEngine(RolloutEngine):
    """A rollout engine whose turns have the lengths of `turns`; what would end one is never sampled."""

    turns: FixedTurns

    def stop_at(self, turn: int) -> int:
        """See `RolloutEngine.stop_at`."""
        return self.turns.stop_at(turn)

    def turn_server(self, prompts: Sequence[Prompt]) -> TurnServer:
        """See `RolloutEngine.turn_server`."""
        settings = self.settings
        server = FixedTurnServer(
            prompts,
            settings.trajectories,
            self.encoder,
            self.tools,
            observation_length=settings.observation_length,
            response_length=settings.response_length + 1,  # room for one token after the last observation is not needed
            crop_features=settings.crop_features,
        )
        server.turns = self.turns
        return server

    def start(self, params: nnx.State, prompts: Sequence[Prompt]) -> Decoding:
        """Prefills; the returned object decodes the first turn from there."""
        settings, programs = self.settings, self.programs
        batch = batch_prompts(
            prompts, settings.prompt_bucket, settings.prompt_images, settings.prompt_patches, self.config.vision
        )
        device_batch = self._put(batch)
        features = programs.encode(params, device_batch.images)
        weights = programs.slice(params)
        _, cache, state = jax.block_until_ready(programs.prefill(params, device_batch, features))
        inputs = (weights, cache, jax.random.key(0), device_batch.prompt_ids)

        def program(state: RolloutState) -> RolloutState:
            return self._decode(params, inputs, state, self.stop_at(0))[0]

        return Decoding(program, state, self._read)


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


def make_engine(
    model: Model,
    encoder: Encoder,
    turns: FixedTurns,
    *,
    slots: int,
    prompt_tokens: int,
    images: int = 1,
    response_length: int = 0,
) -> FixedTurnEngine:
    """An engine for groups of M = `slots` trajectories behind prompts of `prompt_tokens` tokens, without forks.

    `response_length`: T, where it is to be longer than the turns are.
    """
    vision = model.config.vision
    settings = RolloutSettings(
        trajectories=slots,
        temperature=1.0,
        max_turns=len(turns.sampled),
        response_length=max(response_length, turns.response_length),
        observation_length=turns.observation,
        prompt_bucket=prompt_tokens - 1,
        prompt_images=max(images, 1),
        prompt_patches=encoder.prompt_patches if images else vision.merge_unit,
        crop_patches=encoder.crop_patches,
        smallest_crop=encoder.crop_patches,
        merge_unit=vision.merge_unit,
        tools=len(turns.sampled) > 1,
        evr=None,
    )
    tools = {ZoomIn.name: ZoomIn()} if settings.tools else {}
    engine = FixedTurnEngine(
        model.graphdef, model.config, encoder, tools, settings, model.put, model.read, model.sampling_layout
    )
    engine.turns = turns
    # Everything may be sampled but image placeholders and what ends a turn: as much as the peer has to choose from.
    known = len(encoder.tokenizer)
    banned = np.asarray(engine.tables.banned) & (np.arange(model.config.text.vocab_size) < known)
    engine.tables = dataclasses.replace(engine.tables, banned=banned | np.asarray(engine.tables.end_of_turn))
    return engine
