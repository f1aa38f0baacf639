"""Milliseconds per decode step: ours, transformers' generate, and the least that this machine allows.

    python tests/benchmarks/decode.py [--model=small,130m,wide_vocabulary] [--runs=5] [--steps=64] [--output=DIR]

One group of 16 trajectories behind a text prompt of about 1,000 tokens, 64 sampled tokens each, temperature 1. The peer
generates with the same weights from the same prompt, repeated 16 times, with a dynamic cache and with a static one; its
steps are those after the first token, so that its prefill does not count. The bound is the larger of the memory and the
arithmetic bound, both measured in the same run: see `bounds.py`. For each model also: the head's product alone against
the product with everything that sampling adds to it.

Asserted of every round: 16 times 64 tokens were sampled by each side, and transformers gives the tokens of one of our
rows, another one in each round, the log-probabilities that we recorded.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from medvr_jax.rollout import sampling  # noqa: E402
from tests.benchmarks import bounds, measure, models, peers, tables  # noqa: E402
from tests.benchmarks.fixed_turns import FixedTurns, make_engine  # noqa: E402
from tests.benchmarks.prompts import make_prompt  # noqa: E402

SLOTS = 16


def head_cost(model: models.Model, repeats: int = 7) -> dict[str, float]:
    """Seconds of the head's product for 16 rows, alone and with the draw, its log-probability and its entropy."""
    text = model.config.text
    hidden = jax.random.normal(jax.random.key(1), (1, SLOTS, text.hidden_size), model.dtype)
    banned = jnp.zeros(text.vocab_size, bool)
    keys = sampling.slot_keys(jax.random.key(2), jnp.zeros(1, jnp.uint32), SLOTS)
    weights = jax.jit(lambda params: nnx.merge(model.graphdef, params).sampling_weights())(model.params)

    def logits(hidden: jax.Array, weights: Any) -> jax.Array:
        return nnx.merge(model.graphdef, model.params).logits(hidden, weights)

    @jax.jit
    def product(hidden: jax.Array, weights: Any) -> jax.Array:
        return logits(hidden, weights)

    @jax.jit
    def draw(hidden: jax.Array, weights: Any, keys: jax.Array) -> tuple[jax.Array, ...]:
        uniform = sampling.slot_uniforms(keys, jnp.full((1, SLOTS), 3))
        return sampling.sample(logits(hidden, weights), banned, 1.0, uniform)

    alone = measure.best_of(lambda: jax.block_until_ready(product(hidden, weights)), repeats, calls=10)
    whole = measure.best_of(lambda: jax.block_until_ready(draw(hidden, weights, keys)), repeats, calls=10)
    return {"product": alone, "product_and_sampling": whole, "ratio": whole / alone}


def measure_model(
    model: models.Model, runs: int, steps: int, prompt_tokens: int, static: bool
) -> tuple[dict[str, Any], dict[str, list[float]], dict[str, Any]]:
    """The table's row, the seconds per step run by run, and the figures behind the bound."""
    encoder = models.make_encoder(model.folder, prompt_side=28, crop_side=28)
    prompt = make_prompt(encoder, prompt_tokens, images=0)
    turns = FixedTurns((steps,), 0, lambda trajectory, turn: (0, 0, 28, 28))
    engine = make_engine(model, encoder, turns, slots=SLOTS, prompt_tokens=prompt_tokens, images=0)
    peer = peers.load_peer(model.folder, model.dtype)
    dtype = next(peer.parameters()).dtype
    repeated = peers.make_inputs(np.tile(prompt.token_ids, (SLOTS, 1)), [], encoder.image_id, dtype)
    decoding = engine.start(model.params, [prompt])
    clocks: dict[str, peers.StepClock] = {}

    def prepare(name: str) -> None:
        clocks[name] = peers.StepClock()
        if name == "ours":
            decoding.reset()

    def generate(name: str, **options: Any) -> Any:
        return peers.generate(peer, repeated, steps + 1, clocks[name], **options)

    contenders = {"ours": decoding.run, "dynamic cache": lambda: generate("dynamic cache")}
    if static:
        contenders["static cache"] = lambda: generate("static cache", cache_implementation="static")
    rounds = itertools.count(3)

    def check(name: str, result: Any) -> float | None:
        if name != "ours":
            assert result.shape == (SLOTS, prompt_tokens + steps + 1)
            return steps * clocks[name].seconds_per_step
        host = decoding.host(result)
        assert host.sampled.sum() == SLOTS * steps and (host.length == steps + 1).all()
        _check_tokens(prompt, host, engine, peer, encoder, dtype, next(rounds) % SLOTS)
        return None

    times = measure.take_turns(contenders, runs, check, prepare)
    per_step = {name: [seconds / steps for seconds in values] for name, values in times.items()}

    size = jnp.dtype(model.dtype).itemsize
    text = model.config.text
    rates = bounds.measure_rates(size * bounds.weights_read(text), SLOTS, model.dtype)
    work = bounds.step_work(text, 1, SLOTS, prompt_tokens - 1, (steps + 1) / 2, size)
    least = bounds.bound(work, rates)
    head = head_cost(model)
    ours = statistics.median(per_step["ours"])
    row: dict[str, Any] = {"model": model.name, "ours, ms": 1e3 * ours}
    for name in list(per_step)[1:]:
        row[f"generate, {name}, ms"] = 1e3 * statistics.median(per_step[name])
        row[f"times faster than {name}"] = statistics.median(per_step[name]) / ours
    row |= {
        "bound, ms": 1e3 * least.larger,
        "ours / bound": ours / least.larger,
        "ours / bound from cache": ours / least.strict,
        "share of bandwidth": least.memory / ours,
        "head and sampling / product": head["ratio"],
    }
    figures = {
        "gigabytes_per_second": rates.bandwidth / 1e9,
        "gigaflops_streamed": rates.streamed / 1e9,
        "gigaflops_cached": rates.cached / 1e9,
        "megabytes_per_step": work.bytes / 1e6,
        "gigaflop_per_step": work.operations / 1e9,
        "bound_ms": {"memory": 1e3 * least.memory, "streamed": 1e3 * least.streamed, "cached": 1e3 * least.cached},
        "head_ms": {"product": 1e3 * head["product"], "with sampling": 1e3 * head["product_and_sampling"]},
        "ratios": {name: measure.ratios(per_step, "ours", name) for name in list(per_step)[1:]},
    }
    return row, per_step, figures


def _check_tokens(prompt: Any, host: Any, engine: Any, peer: Any, encoder: Any, dtype: Any, row: int) -> None:
    """Our record of one trajectory's log-probabilities is transformers'."""
    tokens = np.concatenate([prompt.token_ids, host.tokens[0, row, 1:]])[None]
    count = host.tokens.shape[2] - 1
    inputs = peers.make_inputs(tokens, [], encoder.image_id, dtype)
    expected = peers.log_probabilities(peer, inputs, count, np.asarray(engine.tables.banned))[0]
    difference = np.abs(host.log_probabilities[0, row, 1:] - expected).max()
    assert difference <= (2e-3 if str(dtype).endswith("float32") else 0.3), f"log-probabilities differ by {difference}"


def run(
    names: list[str], runs: int, steps: int, prompt_tokens: int, output: str | None, static: bool = True
) -> dict[str, Any]:
    """Measures, checks and reports."""
    rows, seconds, figures, sizes = [], {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            model = models.load_model(name, Path(folder))
            row, seconds[name], figures[name] = measure_model(model, runs, steps, prompt_tokens, static)
            rows.append(row)
            sizes[name] = model.sizes()
    return tables.report(
        "decode",
        rows,
        protocol="rounds in turn: ours, generate with a dynamic cache, with a static one; the first does not count;"
        " the peer's prefill and first token do not count",
        sizes={"trajectories": SLOTS, "prompt_tokens": prompt_tokens, "steps": steps, "models": sizes},
        seconds=seconds,
        figures=figures,
        output=output,
    )


def main() -> None:
    """Reads the command line."""
    parser = tables.parser(__doc__)
    parser.add_argument("--model", default="small,130m,wide_vocabulary", help=f"of {', '.join(models.NAMES)}")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--prompt_tokens", type=int, default=1001)
    parser.add_argument("--static", action=argparse.BooleanOptionalAction, default=True)
    arguments = models.start(parser)
    run(
        arguments.model.split(","), arguments.runs, arguments.steps, arguments.prompt_tokens, arguments.output,
        arguments.static,
    )  # fmt: skip


if __name__ == "__main__":
    main()
