"""What a decode step costs at least on this machine: bytes over bandwidth, operations over the rate of products.

A step reads every weight of the decoder and the head once, and the keys and values of prompt and responses; and it
multiplies each of them by a few rows. Both rates are measured here, with jax, on the device that runs the step:

- bandwidth: a = b + c over arrays that no cache holds, three transfers an element, the best of several rounds;
- products: a chain of `[rows, n] @ [n, n]`, float32 (or the model's dtype), the best of several rounds; once over so
  many matrices that together they are as large as the model's weights ("streamed": each is read from where the model's
  weights are read from), once over a single one that stays in the cache ("cached").

The bound of a step is the larger of bytes / bandwidth and operations / rate. With the streamed rate it is what the step
would take if all its work ran as fast as plain products over weights of this size do; with the cached rate it is a
stricter one, which no step can reach whose weights do not fit the cache.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from medvr_jax.models.config import TextConfig
from tests.benchmarks import measure

SIDE = 1024


@dataclasses.dataclass(frozen=True)
class Rates:
    """Bytes and floating-point operations a second."""

    bandwidth: float
    streamed: float
    cached: float


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one decode step: bytes read, and operations (a multiplication and an addition are two)."""

    bytes: float
    operations: float


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds of one step."""

    memory: float
    streamed: float
    cached: float

    @property
    def larger(self) -> float:
        """The larger of the memory bound and the arithmetic bound at the streamed rate."""
        return max(self.memory, self.streamed)

    @property
    def strict(self) -> float:
        """The same at the cached rate."""
        return max(self.memory, self.cached)


def measure_rates(weight_bytes: int, rows: int, dtype: str, repeats: int = 7) -> Rates:
    """The rates for models with so many bytes of weights and so many rows in a step."""
    size = jnp.dtype(dtype).itemsize
    on_cpu = jax.devices()[0].platform == "cpu"
    count = (2**28 if on_cpu else 2**31) // 4
    arrays = [jnp.ones(count, jnp.float32) for _ in range(2)]
    add = jax.jit(jnp.add)
    seconds = measure.best_of(lambda: add(*arrays).block_until_ready(), repeats)
    bandwidth = 3 * 4 * count / seconds
    matrices = max(2, round(weight_bytes / (SIDE * SIDE * size)))
    streamed = _product_rate(matrices, matrices, rows, dtype, repeats)
    return Rates(bandwidth, streamed, _product_rate(1, max(matrices, 16), rows, dtype, repeats))


def _product_rate(matrices: int, products: int, rows: int, dtype: str, repeats: int) -> float:
    """Operations a second of a chain of `products` products over so many matrices in turn."""
    side = SIDE if matrices > 1 else SIDE // 2  # half a side: one core's share of the cache holds it
    keys = jax.random.split(jax.random.key(0), matrices)
    weights = [jax.random.normal(key, (side, side), dtype) / side**0.5 for key in keys]

    @jax.jit
    def chain(x: jax.Array, weights: list[jax.Array]) -> jax.Array:
        if len(weights) == 1:
            return jax.lax.fori_loop(0, products, lambda _, x: (x @ weights[0]).astype(x.dtype), x)
        for weight in weights:
            x = (x @ weight).astype(x.dtype)
        return x

    x = jnp.ones((rows, side), dtype)
    seconds = measure.best_of(lambda: chain(x, weights).block_until_ready(), repeats)
    return 2 * rows * side * side * products / seconds


def weights_read(text: TextConfig) -> int:
    """Numbers of the decoder's matrices and the head: all that a step reads of the weights."""
    width, head = text.hidden_size, text.head_width
    attention = width * head * (2 * text.num_heads + 2 * text.num_kv_heads)
    return text.num_layers * (attention + 3 * width * text.intermediate_size) + width * text.vocab_size


def step_work(text: TextConfig, groups: int, slots: int, prompt: int, response: float, size: int) -> Work:
    """A step of B groups of M slots with P prompt tokens and on average `response` response tokens in the cache.

    Prompt keys and values are read once for a group; each slot reads its own. `size`: bytes of a number.
    """
    rows, per_token = groups * slots, 2 * text.num_kv_heads * text.head_width * text.num_layers
    read = weights_read(text) + per_token * (groups * prompt + rows * response)
    attention = 4 * text.num_heads * text.head_width * text.num_layers * (prompt + response)
    return Work(size * read, rows * (2 * weights_read(text) + attention))


def bound(work: Work, rates: Rates) -> Bound:
    """Seconds of one step."""
    return Bound(work.bytes / rates.bandwidth, work.operations / rates.streamed, work.operations / rates.cached)
