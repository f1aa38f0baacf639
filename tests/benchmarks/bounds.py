"""What a decode step costs at least on this machine: bytes over bandwidth, operations over the rate of products.

A step reads every weight of the decoder and the head once, and the keys and values of prompt and responses; and it
multiplies each of them by a few rows. Both rates are measured here, with jax, on the device that runs the step:

- bandwidth: a += b over arrays of 256 MB (2 GB on a GPU), three transfers an element, or a product of one row with such
  a matrix, whichever is faster, the best of several rounds;
- products: a chain of `[rows, n] @ [n, n]`, float32 (or the model's dtype), the best of several rounds; once over so
  many matrices that together they are as large as the model's weights, or over one wide matrix of that size, whichever
  is faster ("streamed": they are read from where the model's weights are read from), once over a single one that stays
  in the cache ("cached").

The bound of a step is the larger of bytes / bandwidth and operations / rate. With the streamed rate it is what the step
would take if all its work ran as fast as plain products over weights of this size do; with the cached rate it is a
stricter one, which no step can reach whose weights do not fit the cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

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
    bandwidth = _bandwidth(2**28 if on_cpu else 2**31, repeats)
    matrices = max(2, round(weight_bytes / (SIDE * SIDE * size)))
    streamed = max(
        _product_rate(matrices, matrices, rows, dtype, repeats), _wide_product_rate(matrices, rows, dtype, repeats)
    )
    return Rates(bandwidth, streamed, _product_rate(1, max(matrices, 16), rows, dtype, repeats))


def _bandwidth(size: int, repeats: int) -> float:
    """Bytes a second over arrays of `size` bytes: the faster of adding one to another in place (three transfers an
    element) and of multiplying a matrix by a single row (one transfer)."""
    side = int((size // 4) ** 0.5)
    weight, row = jnp.ones((side, side), jnp.float32), jnp.ones((1, side), jnp.float32)
    product = jax.jit(jnp.matmul)
    read = measure.best_of(lambda: product(row, weight).block_until_ready(), repeats)
    add = jax.jit(jnp.add, donate_argnums=0)
    sums = [jnp.ones((side, side), jnp.float32)]

    def add_in_place() -> None:
        sums[0] = add(sums[0], weight).block_until_ready()

    return max(weight.nbytes / read, 3 * weight.nbytes / measure.best_of(add_in_place, repeats))


def _product_rate(matrices: int, products: int, rows: int, dtype: str, repeats: int) -> float:
    """Operations a second of a chain of `products` products over so many matrices in turn, matrix last or first."""
    side = SIDE if matrices > 1 else SIDE // 2  # half a side: one core's share of the cache holds it
    keys = jax.random.split(jax.random.key(0), matrices)
    weights = [jax.random.normal(key, (side, side), dtype) / side**0.5 for key in keys]

    def seconds(x: jax.Array, product: Callable[[jax.Array, jax.Array], jax.Array]) -> float:
        @jax.jit
        def chain(x: jax.Array, weights: list[jax.Array]) -> jax.Array:
            if len(weights) == 1:
                return jax.lax.fori_loop(0, products, lambda _, x: product(x, weights[0]).astype(x.dtype), x)
            for weight in weights:
                x = product(x, weight).astype(x.dtype)
            return x

        return measure.best_of(lambda: chain(x, weights).block_until_ready(), repeats)

    columns = jnp.ones((rows, side), dtype)
    best = min(seconds(columns, jnp.matmul), seconds(columns.T, lambda x, weight: weight @ x))
    return 2 * rows * side * side * products / best


def _wide_product_rate(matrices: int, rows: int, dtype: str, repeats: int) -> float:
    """The same of one product with a matrix as large as all of those together, of the shape of a head."""
    width, columns = SIDE // 2, 2 * SIDE * matrices
    weight = jax.random.normal(jax.random.key(0), (width, columns), dtype)
    x = jnp.ones((rows, width), dtype)
    product = jax.jit(jnp.matmul)
    seconds = measure.best_of(lambda: product(x, weight).block_until_ready(), repeats)
    return 2 * rows * width * columns / seconds


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
