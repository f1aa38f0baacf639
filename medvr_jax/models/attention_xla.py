"""The reference back end: attention in plain XLA operations, with its gradient written out.

Scores never outlive the block of queries that they belong to: the backward pass makes them again out of each query's
log-sum-exp, and needs of the softmax only `sum(gradient * output)` per query. Queries of prompts and images go in
blocks, those of a prompt unrolled, each against the keys up to its end, those of images in a loop, whose scores stay in
the same memory; those of responses one trajectory at a time (of all groups, so that B stays free to be sharded), their
two softmaxes, over the prompt and over their own slots, merged by maxima and sums.

Inside, queries are [B, K, G*X, H] with the G heads of a key/value head in front of the X tokens.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite: a row without any visible key gives numbers that mean nothing, but not NaN
QUERY_BLOCK = 256  # queries whose scores exist at a time


# ------------------------------------------------------------------------------------------- tokens among themselves


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def self_attention(queries: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array, causal: bool) -> jax.Array:
    """Of each token to all valid ones, or to those up to it: the prompt's, or those of a row of images.

    queries [B, P, N, H]; keys [B, K, H, P]; values [B, K, P, H]; valid [B, P]. Returns [B, P, N, H].
    """
    return _self_forward(queries, keys, values, valid, causal)[0]


def _self_forward(
    queries: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array, causal: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    if causal:
        blocks = [
            _block_forward(queries[:, start:end], keys[..., :end], values[:, :, :end], _up_to_own(valid, start, end))
            for start, end in _blocks(queries.shape[1])
        ]
        out, log_sum = (jnp.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True))
    else:
        everyone = valid[:, None, None]
        blocks = jax.lax.map(lambda q: _block_forward(q, keys, values, everyone), _cut(queries))
        out, log_sum = (_join(x, queries.shape[1]) for x in blocks)
    return out, (queries, keys, values, valid, out, log_sum)


def _self_backward(causal: bool, saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    queries, keys, values, valid, out, log_sum = saved
    by_query = (queries, out, log_sum, gradient)
    d_keys, d_values = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
    if causal:
        d_queries = []
        for start, end in _blocks(queries.shape[1]):
            block, visible = (x[:, start:end] for x in by_query), _up_to_own(valid, start, end)
            dq, dk, dv = _block_backward(*block, keys[..., :end], values[:, :, :end], visible)
            d_queries.append(dq)
            d_keys, d_values = d_keys.at[..., :end].add(dk), d_values.at[:, :, :end].add(dv)
        d_queries = jnp.concatenate(d_queries, axis=1)
    else:
        everyone = valid[:, None, None]

        def one_block(totals: tuple[jax.Array, jax.Array], block: tuple[jax.Array, ...]) -> tuple[tuple, jax.Array]:
            dq, dk, dv = _block_backward(*block, keys, values, everyone)
            return (totals[0] + dk, totals[1] + dv), dq

        blocks = tuple(_cut(x) for x in by_query)
        (d_keys, d_values), d_queries = jax.lax.scan(one_block, (d_keys, d_values), blocks)
        d_queries = _join(d_queries, queries.shape[1])
    return d_queries, d_keys.astype(keys.dtype), d_values.astype(values.dtype), None


self_attention.defvjp(_self_forward, _self_backward)


def _blocks(tokens: int) -> list[tuple[int, int]]:
    """Start and end of the blocks of queries."""
    return [(start, min(start + QUERY_BLOCK, tokens)) for start in range(0, tokens, QUERY_BLOCK)]


def _up_to_own(valid: jax.Array, start: int, end: int) -> jax.Array:
    """Which of the first `end` tokens those from `start` on may see: [B, 1, X, end]."""
    earlier = jnp.arange(start, end)[:, None] >= jnp.arange(end)
    return (earlier & valid[:, None, :end])[:, None]


def _cut(x: jax.Array) -> jax.Array:
    """[B, C, N, …] -> blocks [Z, B, X, N, …] of the same size, zeros behind the last token."""
    B, C, *rest = x.shape
    count = -(-C // QUERY_BLOCK)
    size = -(-C // count)
    x = jnp.pad(x, [(0, 0), (0, count * size - C), *[(0, 0)] * len(rest)])
    return jnp.moveaxis(x.reshape(B, count, size, *rest), 1, 0)


def _join(blocks: jax.Array, tokens: int) -> jax.Array:
    """The inverse of `_cut`: [Z, B, X, N, …] -> [B, C = tokens, N, …]."""
    x = jnp.moveaxis(blocks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :tokens]


def _block_forward(
    queries: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Queries [B, X, N, H] to the keys [B, K, H, Y] that are `visible` [B, 1, X or 1, Y]: the output, and the
    log-sum-exp of each query's scores [B, X, N, 1]."""
    X, K = queries.shape[1], keys.shape[1]
    scores = _scores(_head_major(queries, K), keys, _for_heads(visible, queries.shape[2] // K))
    mixed, total, highest = _partial_softmax(scores, values)
    return _token_major((mixed / total).astype(queries.dtype), X), _token_major(highest + jnp.log(total), X)


def _block_backward(
    queries: jax.Array,
    out: jax.Array,
    log_sum: jax.Array,
    gradient: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of `_block_forward`'s queries, and, in float32, keys and values."""
    X, K = queries.shape[1], keys.shape[1]
    q, o, log_sum, d = (_head_major(x, K) for x in (queries, out, log_sum, gradient))
    visible = _for_heads(visible, queries.shape[2] // K)
    dq, dk, dv = _part_backward(q, keys, values, visible, log_sum, _row_sums(o, d), d)
    return _token_major(dq.astype(queries.dtype), X), dk, dv


def _for_heads(visible: jax.Array, G: int) -> jax.Array:
    """[B, 1, X or 1, Y] for the G heads in front of the tokens: [B, 1, G*X or 1, Y]."""
    return visible if visible.shape[2] == 1 else jnp.tile(visible, (1, 1, G, 1))


# ------------------------------------------------------------------------------------------------------- the responses


@jax.custom_vjp
def response_attention(
    queries: jax.Array,
    prompt_keys: jax.Array,
    prompt_values: jax.Array,
    prompt_valid: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    query_slots: jax.Array,
) -> jax.Array:
    """Attention of E tokens of each trajectory to the prompt and to its own slots up to the token's.

    queries [B, M, E, N, H]; prompt_keys [B, K, H, P]; prompt_values [B, K, P, H]; prompt_valid [B, P];
    keys [B, M, K, H, T]; values [B, M, K, T, H]; query_slots [B, M, E]. Returns [B, M, E, N, H].
    """
    return _response_forward(queries, prompt_keys, prompt_values, prompt_valid, keys, values, query_slots)[0]


def _response_forward(*inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    queries, prompt_keys, prompt_values, prompt_valid, keys, values, query_slots = inputs
    K = keys.shape[2]

    def one_trajectory(own: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        queries, keys, values, query_slots = own
        G = queries.shape[2] // K
        q = _head_major(queries, K)
        shared = _partial_softmax(_scores(q, prompt_keys, prompt_valid[:, None, None]), prompt_values)
        mine = _partial_softmax(_scores(q, keys, _up_to(query_slots, keys.shape[-1], G)), values)
        mixed, total, highest = _merged(shared, mine)
        return _token_major((mixed / total).astype(queries.dtype), queries.shape[1]), highest + jnp.log(total)

    by_trajectory = tuple(jnp.moveaxis(x, 1, 0) for x in (queries, keys, values, query_slots))
    out, log_sum = jax.lax.map(one_trajectory, by_trajectory)
    out = jnp.moveaxis(out, 0, 1)
    return out, (*inputs, out, log_sum)


def _response_backward(saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    queries, prompt_keys, prompt_values, prompt_valid, keys, values, query_slots, out, log_sum = saved
    K = keys.shape[2]

    def one_trajectory(
        totals: tuple[jax.Array, jax.Array], own: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
        queries, keys, values, query_slots, out, gradient, log_sum = own
        G = queries.shape[2] // K
        q, o, d = (_head_major(x, K) for x in (queries, out, gradient))
        rest = (log_sum, _row_sums(o, d), d)
        dq, dpk, dpv = _part_backward(q, prompt_keys, prompt_values, prompt_valid[:, None, None], *rest)
        dq_own, dk, dv = _part_backward(q, keys, values, _up_to(query_slots, keys.shape[-1], G), *rest)
        dq = _token_major((dq + dq_own).astype(queries.dtype), queries.shape[1])
        return (totals[0] + dpk, totals[1] + dpv), (dq, dk.astype(keys.dtype), dv.astype(values.dtype))

    arrays = (queries, keys, values, query_slots, out, gradient)
    by_trajectory = (*(jnp.moveaxis(x, 1, 0) for x in arrays), log_sum)
    zeros = (jnp.zeros(prompt_keys.shape, jnp.float32), jnp.zeros(prompt_values.shape, jnp.float32))
    (dpk, dpv), own = jax.lax.scan(one_trajectory, zeros, by_trajectory)
    dq, dk, dv = (jnp.moveaxis(x, 0, 1) for x in own)
    return dq, dpk.astype(prompt_keys.dtype), dpv.astype(prompt_values.dtype), None, dk, dv, None


response_attention.defvjp(_response_forward, _response_backward)


def token_attention(
    queries: jax.Array,
    prompt_keys: jax.Array,
    prompt_values: jax.Array,
    prompt_valid: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    query_slots: jax.Array,
) -> jax.Array:
    """`response_attention` for few tokens (E = 1 in decode): all M at once against the prompt's keys."""
    B, M, E, N, H = queries.shape
    K, T = keys.shape[2], keys.shape[4]
    G = N // K
    grouped = queries.reshape(B, M, E, K, G, H)

    shared = grouped.transpose(0, 3, 1, 4, 2, 5).reshape(B, K, M * G * E, H)
    scores = _scores(shared, prompt_keys, prompt_valid[:, None, None])
    prompt_part = tuple(
        x.reshape(B, K, M, G, E, -1).transpose(0, 2, 1, 3, 4, 5) for x in _partial_softmax(scores, prompt_values)
    )  # each [B, M, K, G, E, H or 1]

    own = grouped.transpose(0, 1, 3, 4, 2, 5).reshape(B, M, K, G * E, H)
    visible = jnp.tile((jnp.arange(T) <= query_slots[..., None])[:, :, None], (1, 1, 1, G, 1))
    own_part = tuple(x.reshape(B, M, K, G, E, -1) for x in _partial_softmax(_scores(own, keys, visible), values))
    mixed, total, _ = _merged(prompt_part, own_part)
    return (mixed / total).transpose(0, 1, 4, 2, 3, 5).reshape(B, M, E, N, H).astype(queries.dtype)


def _up_to(slots: jax.Array, T: int, G: int) -> jax.Array:
    """[B, 1, G*E, T]: the slots up to those of the queries, [B, E]."""
    return jnp.tile((jnp.arange(T) <= slots[..., None])[:, None], (1, 1, G, 1))


# ------------------------------------------------------------------------------------------------ one softmax and less


def scaled(queries: jax.Array) -> jax.Array:
    """Queries divided by the root of their width."""
    return queries * jnp.asarray(queries.shape[-1] ** -0.5, queries.dtype)


def _scores(queries: jax.Array, keys: jax.Array, visible: jax.Array) -> jax.Array:
    """[..., X, H] against keys [..., H, Y], `visible` [..., X or 1, Y]: float32 [..., X, Y]."""
    scores = jnp.matmul(scaled(queries), keys, preferred_element_type=jnp.float32)
    return scores + jnp.where(visible, 0.0, MASKED)  # the sum costs a CPU less than choosing


Part = tuple[jax.Array, jax.Array, jax.Array]


def _partial_softmax(scores: jax.Array, values: jax.Array) -> Part:
    """Of scores [..., X, Y] and values [..., Y, H]: mixed values (not yet divided), sum and maximum, float32."""
    highest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    mixed = jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return mixed, jnp.sum(weights, axis=-1, keepdims=True), highest


def _merged(first: Part, second: Part) -> Part:
    """The partial softmax over the keys of both parts."""
    highest = jnp.maximum(first[2], second[2])
    scale_first, scale_second = jnp.exp(first[2] - highest), jnp.exp(second[2] - highest)
    total = first[1] * scale_first + second[1] * scale_second
    return first[0] * scale_first + second[0] * scale_second, total, highest


def _row_sums(out: jax.Array, gradient: jax.Array) -> jax.Array:
    """sum(gradient * output) of each query, float32 [..., X, 1]: all that its softmax needs of the others."""
    return jnp.sum(out.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1, keepdims=True)


def _part_backward(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    log_sum: jax.Array,
    row_sums: jax.Array,
    gradient: jax.Array,
) -> Part:
    """Gradients, float32, of queries [..., X, H], keys [..., H, Y] and values [..., Y, H] of one part of a softmax.

    log_sum, row_sums: [..., X, 1], over all parts; gradient: of the output [..., X, H].
    """
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    weights = jnp.exp(_scores(queries, keys, visible) - log_sum)
    d_values = product(jnp.swapaxes(weights.astype(values.dtype), -1, -2), gradient)
    d_weights = product(gradient, jnp.swapaxes(values, -1, -2))
    d_scores = (weights * (d_weights - row_sums)).astype(keys.dtype)
    d_queries = product(d_scores, jnp.swapaxes(keys, -1, -2)) * queries.shape[-1] ** -0.5
    return d_queries, product(jnp.swapaxes(scaled(queries), -1, -2), d_scores), d_values


def _head_major(x: jax.Array, K: int) -> jax.Array:
    """[B, X, N, H] -> [B, K, G*X, H]."""
    B, X, N, H = x.shape
    return x.reshape(B, X, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)


def _token_major(x: jax.Array, X: int) -> jax.Array:
    """[B, K, G*X, H] -> [B, X, N, H]."""
    B, K, _, H = x.shape
    return x.reshape(B, K, -1, X, H).transpose(0, 3, 1, 2, 4).reshape(B, X, -1, H)
