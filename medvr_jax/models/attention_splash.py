"""Splash attention on TPU: blocks of scores in on-chip memory, none where the static mask hides the whole block.

A group is one sequence `[prompt | response 1 | … | response M]` of P + M*T tokens. Its mask is a function of two token
numbers, evaluated in the kernel; the host only looks at which blocks it leaves empty. What differs from group to
group, the prompt's padding, is a segment of its own. Softmax in float32, whatever the inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

LANES = 128
PADDING, REAL = 0, 1  # segments


class GroupMask(masks.Mask):
    """Token k is visible to token q if k ≤ q and k is of the prompt or of q's response.

    Rows are the tokens from `first_query` on, columns those from 0 on; tokens from P + M*T on are padding behind
    everything. With M = 0 this is the causal mask of a prompt alone. The kernel reads `q_sequence` and
    `mask_function`; `__getitem__` gives one block at a time to the host.
    """

    def __init__(self, P: int, T: int, *, queries: int, keys: int, first_query: int = 0) -> None:
        self._identity = (P, T, queries, keys, first_query)
        self._P, self._T, self._shape = P, T, (queries, keys)
        self.q_sequence = first_query + np.arange(queries, dtype=np.int32)

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and keys."""
        return self._shape

    def mask_function(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """Visibility of token k to token q, int32 arrays that broadcast; of numpy or jax."""
        return (k <= q) & ((k < self._P) | (k >= self._response_start(q)))

    def _response_start(self, q: jax.Array) -> jax.Array:
        """First token of the response of token q; meaningless but ≤ P for a token of the prompt.

        Multiplied in float32 and cut: the vector unit has no integer division. Exact for fewer than 2**20 tokens.
        """
        response = ((q - self._P).astype(np.float32) + np.float32(0.5)) * np.float32(1 / self._T)
        return self._P + self._T * response.astype(np.int32)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows = self.q_sequence[index[0]]
        first, last, _ = index[1].indices(self._shape[1])
        low, high = self._response_start(rows[[0, -1]])
        block = (len(rows), last - first)
        if first > rows[-1] or (first >= self._P and last <= low and rows[0] >= self._P):
            return _constant(block, False)
        if last - 1 <= rows[0] and (last <= self._P or first >= high):
            return _constant(block, True)
        return self.mask_function(rows[:, None], np.arange(first, last, dtype=np.int32)[None])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupMask) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)


@functools.lru_cache(maxsize=8)
def _constant(block: tuple[int, int], value: bool) -> np.ndarray:
    return np.full(block, value)


def group(
    prompt_queries: jax.Array | None,
    prompt_keys: jax.Array,
    prompt_values: jax.Array,
    valid: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """Attention of a whole group in one kernel, on one device.

    prompt_queries [B, P, N, H] or None; prompt_keys [B, K, H, P]; prompt_values [B, K, P, H]; valid [B, P]; queries
    [B, M, T, N, H]; keys [B, M, K, H, T]; values [B, M, K, T, H]. Returns the prompt's [B, P, N, H], unless it has no
    queries, and the responses' [B, M, T, N, H]. Rows of the prompt's padding are finite and mean nothing.
    """
    B, M, T, N, H = queries.shape
    K, P = prompt_values.shape[1:3]
    own = queries.reshape(B, M * T, N, H)
    packed_queries = own if prompt_queries is None else jnp.concatenate([prompt_queries, own], axis=1)
    own_keys = keys.transpose(0, 2, 1, 4, 3).reshape(B, K, M * T, H)
    own_values = values.transpose(0, 2, 1, 3, 4).reshape(B, K, M * T, H)
    segments = jnp.where(valid, REAL, PADDING)
    segments = jnp.pad(segments, ((0, 0), (0, M * T)), constant_values=REAL)
    first_query = P if prompt_queries is None else 0
    mixed = _run(
        packed_queries,
        jnp.concatenate([prompt_keys.swapaxes(2, 3), own_keys], axis=2),
        jnp.concatenate([prompt_values, own_values], axis=2),
        segments[:, first_query:],
        segments,
        functools.partial(_group_kernel, P, T, first_query),
        interpret=interpret,
    )
    responses = mixed[:, P - first_query :].reshape(B, M, T, N, H)
    return (responses,) if prompt_queries is None else (mixed[:, :P], responses)


def prompt(
    queries: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array, *, interpret: bool
) -> tuple[jax.Array]:
    """Causal self-attention of prompts, on one device; shapes as in `attention.prompt_attention`."""
    segments = jnp.where(valid, REAL, PADDING)
    make_kernel = functools.partial(_group_kernel, queries.shape[1], 1, 0)
    return (_run(queries, keys.swapaxes(2, 3), values, segments, segments, make_kernel, interpret=interpret),)


def full(
    queries: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array, *, interpret: bool
) -> tuple[jax.Array]:
    """Attention of all to all valid tokens, on one device; shapes as in `attention.full_attention`."""
    segments = jnp.where(valid, REAL, PADDING)
    keys, values = keys.swapaxes(1, 2), values.swapaxes(1, 2)
    return (_run(queries, keys, values, segments, segments, _full_kernel, interpret=interpret),)


MakeKernel = Callable[..., splash.SplashAttentionKernel]


def _run(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    make_kernel: MakeKernel,
    *,
    interpret: bool,
) -> jax.Array:
    """queries [B, X, N, H], keys and values [B, K, Y, H], segments [B, X] and [B, Y] → [B, X, N, H].

    X and Y are padded to whole blocks with tokens behind everything, in the segment of padding.
    """
    X, N, Y = queries.shape[1], queries.shape[2], keys.shape[2]
    block_x, block_y = _block(X), _block(Y)
    queries = queries.swapaxes(1, 2) * jnp.asarray(queries.shape[-1] ** -0.5, queries.dtype)
    queries, query_segments = _pad(queries, block_x, 2), _pad(query_segments, block_x, 1)
    keys, values, key_segments = _pad(keys, block_y, 2), _pad(values, block_y, 2), _pad(key_segments, block_y, 1)
    kernel = make_kernel(N, queries.shape[2], keys.shape[2], _block_sizes(block_x, block_y), interpret)
    mixed = jax.vmap(kernel)(queries, keys, values, splash.SegmentIds(query_segments, key_segments))
    return mixed[:, :, :X].swapaxes(1, 2)


def _pad(x: jax.Array, block: int, axis: int) -> jax.Array:
    missing = -x.shape[axis] % block
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)]) if missing else x


def _block(length: int) -> int:
    """Tokens of a block: large ones for long sequences, where padding to a whole block costs at most a quarter."""
    return next((block for block in (1024, 512, 256) if length >= 4 * block), LANES)


def _block_sizes(queries: int, keys: int) -> splash.BlockSizes:
    """Blocks of the forward pass and of the two backward passes."""
    return splash.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=min(keys, 512),
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_kv_dkv_compute=min(keys, 512),
        block_q_dq=min(queries, 512),
        block_kv_dq=keys,
    )


def _group_kernel(
    P: int, T: int, first_query: int, heads: int, X: int, Y: int, blocks: splash.BlockSizes, interpret: bool
) -> splash.SplashAttentionKernel:
    return _kernel(GroupMask(P, T, queries=X, keys=Y, first_query=first_query), heads, blocks, interpret)


def _full_kernel(
    heads: int, X: int, Y: int, blocks: splash.BlockSizes, interpret: bool
) -> splash.SplashAttentionKernel:
    return _kernel(masks.FullMask((X, Y)), heads, blocks, interpret)


def _kernel(mask: masks.Mask, heads: int, blocks: splash.BlockSizes, interpret: bool) -> splash.SplashAttentionKernel:
    return splash.make_splash_mha(
        mask=masks.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=1, block_sizes=blocks, interpret=interpret
    )
