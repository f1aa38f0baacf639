"""The rollout engine: the device samples until trajectories wait, the host serves their tools, and on it goes.

The engine owns the jitted programs of a rollout for one set of settings. Their shapes come from short lists (cache
lengths, numbers and sizes of crops), so that nothing is compiled once each has been seen or warmed up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from medvr_jax import distributed
from medvr_jax.inputs.batches import batch_prompts
from medvr_jax.inputs.buckets import bucket
from medvr_jax.inputs.chat import Encoder, Prompt
from medvr_jax.inputs.images import PreparedImage, pack_image_rows
from medvr_jax.inputs.tokenizer import make_token_tables
from medvr_jax.models.backbone import PromptCache, SamplingWeights
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.partitioning import Layout
from medvr_jax.rollout import loop
from medvr_jax.rollout.programs import cache_length, rollout_programs
from medvr_jax.rollout.settings import RolloutSettings
from medvr_jax.rollout.state import RolloutState
from medvr_jax.rollout.tools import Tool
from medvr_jax.rollout.trajectories import Calls, Rollout, TokenArrays, read_decisions
from medvr_jax.rollout.turns import Sampled, Serving, TurnServer

# Shares of the rows that have ended their turn at which the host begins to serve them, while the others go on.
SERVE_AHEAD_AT, NEVER = (0.5, 0.75, 0.875), 2.0


class RolloutEngine:
    """Rolls out groups of prompts. Weights are an argument of `run`: the engine keeps none."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        config: BackboneConfig,
        encoder: Encoder,
        tools: Mapping[str, Tool],
        settings: RolloutSettings,
        put: Callable[[Any], Any],
        read: Callable[[Any], Any],
        layout: Layout,
    ) -> None:
        """Prepares the programs; they are compiled at the first `run`.

        Args:
            graphdef: structure of the backbone.
            config: its shapes.
            encoder: tokenizer and image processor.
            tools: tools by name; with none, the first turn is the last.
            settings: static shapes and rules.
            put: takes a tree of host arrays, this process's rows of the leading axis B, to the devices.
            read: brings a tree of device arrays back, this process's rows of them.
            layout: that of sampling.
        """
        self.settings, self.config, self.encoder, self.tools = settings, config, encoder, tools
        self._put, self._read = put, read
        tables = make_token_tables(encoder.tokenizer, config.text.vocab_size)
        self.tables = loop.VocabularyTables.from_tokenizer(tables)
        self.programs = rollout_programs(graphdef, settings, layout)

    def run(
        self, params: nnx.State, prompts: Sequence[Prompt], key: jax.Array, size: tuple[int, int] | None = None
    ) -> Rollout:
        """One group of M trajectories for each of the B prompts.

        Args:
            params: the backbone's parameters in the sampling layout.
            prompts: this process's share of the B prompts (all, when it is the only one).
            key: random key of this step.
            size: tokens and patches to pad to; the smallest of the settings' sizes that holds all prompts by default.
        """
        with contextlib.closing(self.turn_server(prompts)) as server:
            return self._roll_out(params, prompts, key, size, server)

    def _roll_out(
        self,
        params: nnx.State,
        prompts: Sequence[Prompt],
        key: jax.Array,
        size: tuple[int, int] | None,
        server: TurnServer,
    ) -> Rollout:
        """`run` with what serves its turns."""
        settings, programs, clock = self.settings, self.programs, PhaseClock()
        tokens, patches = size or self.prompt_size(prompts)
        with distributed.together():
            batch = batch_prompts(prompts, tokens, settings.prompt_images, patches, self.config.vision)
        device_batch = self._put(batch)
        clock.lap("preprocess")
        features = jax.block_until_ready(programs.encode(params, device_batch.images))
        clock.lap("vision")
        weights = programs.slice(params)
        prompt_inputs, cache, state = jax.block_until_ready(programs.prefill(params, device_batch, features))
        clock.lap("prefill")

        server.read_originals()  # decode leaves the host's cores free; on a CPU, encoding images does not
        inputs = (weights, cache, key, device_batch.prompt_ids)
        crops, placed, calls = programs.no_crops(features), 0, Calls()
        groups, rows = state.length.shape[0], state.length.size
        for turn in range(settings.tool_turns + 1):
            last_turn = turn == settings.tool_turns
            begin_serving = None if last_turn else server.begin_serving
            state, more = self._decode(params, inputs, state, self.stop_at(turn), begin_serving)
            calls += more
            sampled = Sampled(**self._read(_fields(state, Sampled)))
            clock.lap("decode")
            serving = server.serve(sampled, last_turn=last_turn)
            needs = Needs.of(sampled, serving, server.new_crops())
            clock.lap("tool")
            if not needs.tokens:
                break
            patches, tokens = next(size for size in settings.observation_sizes if needs.fit(*size))
            if needs.crops:
                count = bucket(needs.crops, settings.crop_counts)
                images = pack_image_rows(server.new_crops(), count, patches, self.config.vision)
                clock.lap("tool")
                crops = jax.block_until_ready(programs.encode_crops(params, crops, self._put(images), np.int32(placed)))
                placed += needs.crops
                calls += Calls(crops=((groups * count, patches),))
                clock.lap("vision")
            server.end_turn(needs.crops)
            state = self._grow(state, needs.slots)
            state = jax.block_until_ready(
                programs.extend(params, weights, cache, state, self._put(serving.cut(tokens)), crops)
            )
            calls += Calls(extend=((rows * (tokens + 1), cache_length(state)),))
            clock.lap("extend")

        rollout = Rollout(
            prompts=list(prompts),
            trajectories=server.trajectories(sampled),
            host=TokenArrays(**self._read(_fields(state, TokenArrays))),
            decisions=self._decisions(state, len(prompts)),
            prompt_inputs=prompt_inputs,
            prompt_batch=batch,
            tokens=state.tokens,
            positions=state.positions,
            feature_index=state.feature_index,
            crop_features=crops,
            crops=server.crops,
            seconds=clock.seconds,
            calls=calls,
        )
        clock.lap("tool")
        return rollout

    def forbid_calls(self) -> None:
        """From now on the token that begins a call is never sampled."""
        self.tables = dataclasses.replace(self.tables, banned=self.tables.banned | self.tables.opens_call)

    def prompt_size(self, prompts: Sequence[Prompt]) -> tuple[int, int]:
        """The smallest size that holds the prompts of all processes, or the largest there is."""
        tokens = max(len(prompt.token_ids) - 1 for prompt in prompts)
        patches = max((len(image.patches) for prompt in prompts for image in prompt.images), default=0)
        tokens, patches = distributed.largest(tokens, patches)
        sizes = self.settings.prompt_sizes
        return next((size for size in sizes if tokens <= size[0] and patches <= size[1]), sizes[-1])

    def stop_at(self, turn: int) -> int:
        """Length at which a trajectory is left waiting although its turn goes on; T is never reached by one."""
        return self.settings.response_length

    def _decode(
        self,
        params: nnx.State,
        inputs: tuple[SamplingWeights, PromptCache, jax.Array, jax.Array],
        state: RolloutState,
        stop_at: int,
        begin_serving: Callable[[Sampled], None] | None = None,
    ) -> tuple[RolloutState, Calls]:
        """Samples until the host is needed; in between only for longer caches, and for `begin_serving`.

        inputs: weights as decode reads them, the prompts' caches, the random key and the prompts' ids.
        """
        weights, cache, key, prompt_ids = inputs
        fixed = (key, prompt_ids, self.tables, np.int32(stop_at))
        shares = iter(SERVE_AHEAD_AT if begin_serving else ())
        share = next(shares, NEVER)
        calls, before = Calls(), int(state.steps)
        ended: Sampled | None = None
        while True:
            state, pause = self.programs.decode(params, weights, cache, state, *fixed, np.float32(share))
            if ended is not None:
                begin_serving(ended)  # while the devices go on
            after = int(state.steps)
            calls += Calls(decode=((after - before, state.length.size, cache_length(state)),))
            before, ended = after, None
            if pause.early:
                ended, share = Sampled(**self._read(_fields(state, Sampled))), next(shares, NEVER)
            elif pause.wants_room:
                state = self._grow(state, cache_length(state) + 1)
            else:
                return state, calls

    def _grow(self, state: RolloutState, slots: int) -> RolloutState:
        """The state with a cache of at least so many slots."""
        if cache_length(state) >= slots:
            return state
        return self.programs.grow(state, bucket(slots, self.settings.cache_lengths))

    def _decisions(self, state: RolloutState, groups: int) -> list[list[dict[str, Any]]]:
        if state.forks is None:
            return [[] for _ in range(groups)]
        records, counts = self._read((state.forks.decisions, state.forks.decision_count))
        return [read_decisions(record, int(count)) for record, count in zip(records, counts, strict=True)]

    def turn_server(self, prompts: Sequence[Prompt]) -> TurnServer:
        """What follows the trajectories of one rollout on the host."""
        settings = self.settings
        return TurnServer(
            prompts,
            settings.trajectories,
            self.encoder,
            self.tools,
            observation_length=settings.observation_length,
            response_length=settings.response_length,
            crop_features=settings.crop_features,
        )


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the next calls must have room for, over all processes: new crops of a group, their patches, tokens of an
    observation, slots of the cache. Nothing waits where there are no tokens."""

    crops: int
    patches: int
    tokens: int
    slots: int

    @classmethod
    def of(cls, sampled: Sampled, serving: Serving, new_crops: Sequence[Sequence[PreparedImage]]) -> Needs:
        """The needs of what this process's rows are served."""
        patches = [len(image.patches) for group in new_crops for image in group]
        slots = np.where(serving.counts > 0, sampled.length + serving.counts, 0)
        crops = max(map(len, new_crops), default=0)
        return cls(*distributed.largest(crops, max(patches, default=0), int(serving.counts.max()), int(slots.max())))

    def fit(self, patches: int, tokens: int) -> bool:
        """Whether crops of so many patches and observations of so many tokens hold them."""
        return self.patches <= patches and self.tokens <= tokens


def _fields(state: RolloutState, kind: type[Sampled] | type[TokenArrays]) -> dict[str, jax.Array]:
    """The state's arrays that `kind` holds host copies of."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(kind)}


class PhaseClock:
    """Seconds by phase; `lap(name)` books the time since the last lap under that name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends a phase."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
