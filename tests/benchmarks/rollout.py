"""A group's rollout in two turns with crops: our engine against transformers' generate as TRL drives it.

    python tests/benchmarks/rollout.py [--model=tiny,small] [--runs=5] [--output=DIR]

16 trajectories behind one image prompt of about 1,000 tokens: 64 sampled tokens, an observation with a crop (82), again
64 sampled tokens. Both sides sample at temperature 1, cut their crops out of the original image and preprocess them
within the time; encoding the prompt (tokens, patches of its image) is done before. Ours is the real `RolloutEngine`,
with turns of fixed lengths and no forks. The peer is called for each turn again with the whole context of each
trajectory: the prompt 16 times with its patches, for the second turn with the crops too. It is spared what TRL does
besides: preprocessing the prompt's image for each trajectory, and suppressing or looking for ends of turns.

Every trajectory zooms into a box of its own; `same crops` is a second measurement in which all take the same one, which
we encode once. Tokens per second count the sampled tokens of the whole group.

Asserted of every round: each side sampled 16 times 2 x 64 tokens that may be sampled, behind the same prompt and around
the same observation; and transformers gives a whole trajectory of ours, another one in each round, the
log-probabilities that we recorded.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from medvr_jax.inputs.chat import Encoder, Prompt, encode_observation  # noqa: E402
from medvr_jax.inputs.images import load_original  # noqa: E402
from medvr_jax.rollout.trajectories import Rollout  # noqa: E402
from tests.benchmarks import measure, models, peers, tables  # noqa: E402
from tests.benchmarks.fixed_turns import Box, FixedTurnEngine, FixedTurns, make_engine  # noqa: E402
from tests.benchmarks.prompts import make_prompt  # noqa: E402


def own_boxes(slots: int, side: int) -> Any:
    """(trajectory, turn) -> squares of a fifth of the side, each somewhere else."""

    def box(trajectory: int, turn: int) -> Box:
        width = side // 5
        x = (trajectory * (side - width)) // max(slots - 1, 1)
        return float(x), float(side - width - x), float(x + width), float(side - x)

    return box


def same_box(side: int) -> Any:
    """(trajectory, turn) -> one square in the middle."""
    return lambda trajectory, turn: own_boxes(3, side)(1, 0)


class PeerRollout:
    """Two turns with `generate`, each from the whole context, as TRL's trainer does for a model with tools."""

    def __init__(
        self,
        model: torch.nn.Module,
        encoder: Encoder,
        prompt: Prompt,
        turns: FixedTurns,
        slots: int,
        banned: np.ndarray,
    ) -> None:
        self.model, self.encoder, self.prompt, self.turns, self.slots = model, encoder, prompt, turns, slots
        self.dtype = next(model.parameters()).dtype
        self.picture = (prompt.images[0].patches, prompt.images[0].grid)
        self._banned = torch.tensor(banned, device=peers.device())

    def run(self) -> torch.Tensor:
        """Whole sequences `[M, n]`."""
        context = np.tile(self.prompt.token_ids, (self.slots, 1))
        pictures = [[self.picture] for _ in range(self.slots)]
        image = load_original(self.prompt.example.images[0])
        for turn, new in enumerate(self.turns.sampled):
            inputs = peers.make_inputs(context, pictures, self.encoder.image_id, self.dtype)
            tokens = peers.generate(self.model, inputs, new)
            # What is no text (an image placeholder) would not be in its place: it becomes some word.
            tokens[:, -new:] = torch.where(self._banned[tokens[:, -new:]], 100, tokens[:, -new:])
            if turn == len(self.turns.sampled) - 1:
                return tokens
            seen = [
                encode_observation(self.encoder, 0, crop=self.turns.zoom(self.prompt, image, m, turn).image)
                for m in range(self.slots)
            ]
            context = np.concatenate([tokens.cpu().numpy(), np.stack([one.token_ids for one in seen])], axis=1)
            pictures = [[*row, (one.image.patches, one.image.grid)] for row, one in zip(pictures, seen, strict=True)]
        raise AssertionError("no turn was the last")


def check_tokens(rollout: Rollout, model: torch.nn.Module, engine: FixedTurnEngine, row: int) -> float:
    """AssertionError unless transformers gives one whole trajectory our log-probabilities; the largest difference."""
    prompt, host, turns = rollout.prompts[0], rollout.host, engine.turns
    tokens = np.concatenate([prompt.token_ids, host.tokens[0, row, 1:]])[None]
    pictures = [(image.patches, image.grid) for image in prompt.images]
    image = load_original(prompt.example.images[0])
    for turn in range(len(turns.sampled) - 1):
        crop = encode_observation(engine.encoder, 0, crop=turns.zoom(prompt, image, row, turn).image).image
        assert crop is not None
        pictures.append((crop.patches, crop.grid))
    dtype = next(model.parameters()).dtype
    inputs = peers.make_inputs(tokens, [pictures], engine.encoder.image_id, dtype)
    banned = np.asarray(engine.tables.banned)
    expected = peers.log_probabilities(model, inputs, host.tokens.shape[2] - 1, banned)[0]
    sampled = host.sampled[0, row, 1:]
    difference = float(np.abs(host.log_probabilities[0, row, 1:] - expected)[sampled].max())
    assert difference <= (2e-3 if dtype == torch.float32 else 0.3), f"log-probabilities differ by {difference}"
    return difference


def measure_model(
    model: models.Model,
    peer: torch.nn.Module,
    runs: int,
    turns: FixedTurns,
    *,
    slots: int,
    prompt_tokens: int,
    image_side: int,
    crop_side: int,
) -> tuple[measure.Times, dict[str, Any]]:
    """Seconds of both sides, and what else was seen."""
    encoder = models.make_encoder(model.folder, prompt_side=image_side, crop_side=crop_side)
    prompt = make_prompt(encoder, prompt_tokens, images=1, image_side=2 * image_side)
    engine = make_engine(model, encoder, turns, slots=slots, prompt_tokens=prompt_tokens)
    special = np.asarray(engine.tables.banned)
    observed = observation(encoder, crop_side)
    other = PeerRollout(peer, encoder, prompt, turns, slots, special)
    phases: list[dict[str, float]] = []
    differences: list[float] = []
    crops: list[int] = []

    def check(name: str, result: Any) -> None:
        if name == "ours":
            host = result.host
            check_sequences(np.concatenate([np.tile(prompt.token_ids[:-1], (slots, 1)), host.tokens[0]], axis=1))
            assert host.sampled.sum() == slots * sum(turns.sampled) and (host.length == turns.response_length).all()
            assert np.isfinite(host.log_probabilities).all() and (host.log_probabilities[host.sampled] < 0).all()
            assert all(len(t.zooms) == len(turns.sampled) - 1 for t in result.trajectories[0])
            differences.append(check_tokens(result, peer, engine, (slots // 2 + len(phases)) % slots))
            crops.append(len(result.crops[0]))
            phases.append(result.seconds)
        else:
            check_sequences(result.cpu().numpy())

    def check_sequences(tokens: np.ndarray) -> None:
        """Whole sequences `[M, n]`, of either side."""
        assert tokens.shape == (slots, prompt_tokens - 1 + turns.response_length)
        assert (tokens[:, :prompt_tokens] == prompt.token_ids).all(), "not this prompt"
        end = prompt_tokens
        for new in turns.sampled:
            assert not special[tokens[:, end : end + new]].any(), "sampled what may not be sampled"
            end += new + turns.observation
            seen = tokens[:, end - turns.observation : end]
            assert (seen == observed[: seen.shape[1]]).all(), "not the observation of a crop"

    contenders = {
        "ours": lambda: engine.run(model.params, [prompt], jax.random.key(len(phases))),
        "generate": other.run,
    }
    times = measure.take_turns(contenders, runs, check)
    seen: dict[str, Any] = {
        "largest differences of a log-probability": differences, "crops encoded": sorted(set(crops)),
    }  # fmt: skip
    seen["seconds by phase"] = {name: statistics.median(p[name] for p in phases[1:]) for name in phases[-1]}
    return times, seen


def run(
    names: list[str],
    runs: int,
    output: str | None,
    *,
    slots: int = 16,
    prompt_tokens: int = 1001,
    image_side: int = 728,
    crop_side: int = 224,
    sampled: int = 64,
    variants: tuple[str, ...] = ("own crops", "same crops"),
) -> dict[str, Any]:
    """Measures, checks and reports."""
    rows, seconds, figures, sizes = [], {}, {}, {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            model = models.load_model(name, Path(folder))
            peer = peers.load_peer(model.folder, model.dtype)
            encoder = models.make_encoder(model.folder, prompt_side=image_side, crop_side=crop_side)
            for variant in variants:
                box = own_boxes(slots, image_side) if variant == "own crops" else same_box(image_side)
                turns = FixedTurns((sampled, sampled), observation_tokens(encoder, crop_side), box)
                key = f"{name}, {variant}"
                seconds[key], figures[key] = measure_model(
                    model, peer, runs, turns, slots=slots, prompt_tokens=prompt_tokens, image_side=image_side,
                    crop_side=crop_side,
                )  # fmt: skip
                tokens = slots * sum(turns.sampled)
                medians = {side: statistics.median(values) for side, values in seconds[key].items()}
                figures[key]["ratios"] = measure.ratios(seconds[key], "ours", "generate")
                rows.append(
                    {
                        "model": name,
                        "crops": variant,
                        "ours, s": medians["ours"],
                        "generate, s": medians["generate"],
                        "ours, tokens/s": tokens / medians["ours"],
                        "generate, tokens/s": tokens / medians["generate"],
                        "times faster": medians["generate"] / medians["ours"],
                    }
                )
            sizes[name] = model.sizes()
    return tables.report(
        "rollout",
        rows,
        protocol="whole rollouts in turn: ours, generate; the first round does not count",
        sizes={
            "trajectories": slots, "prompt_tokens": prompt_tokens, "image_side": image_side, "crop_side": crop_side,
            "sampled_per_turn": sampled, "models": sizes,
        },
        seconds=seconds,
        figures=figures,
        output=output,
    )  # fmt: skip


def observation_tokens(encoder: Encoder, crop_side: int) -> int:
    """Tokens of an observation with a square crop."""
    return len(observation(encoder, crop_side))


def observation(encoder: Encoder, crop_side: int) -> np.ndarray:
    """Token ids of an observation with a square crop, whatever is to be seen in it."""
    return np.asarray(encode_observation(encoder, 0, crop=Image.new("RGB", (crop_side, crop_side))).token_ids)


def main() -> None:
    """Reads the command line."""
    parser = tables.parser(__doc__)
    parser.add_argument("--model", default="tiny,small", help=f"of {', '.join(models.NAMES)}")
    parser.add_argument("--prompt_tokens", type=int, default=1001, help="P + 1")
    parser.add_argument("--trajectories", type=int, default=16, help="M")
    parser.add_argument("--sampled", type=int, default=64, help="tokens of each turn")
    arguments = models.start(parser)
    run(
        arguments.model.split(","), arguments.runs, arguments.output, slots=arguments.trajectories,
        prompt_tokens=arguments.prompt_tokens, sampled=arguments.sampled,
    )  # fmt: skip


if __name__ == "__main__":
    main()
