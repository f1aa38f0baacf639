"""The fused kernels of `jax.nn.dot_product_attention` on NVIDIA GPUs.

They take 16-bit inputs with heads of a multiple of 8 up to 128 wide, a causal mask, and lengths where padding starts.
That covers the prompt and the whole rows of images. A response attends to its prompt and to itself, with the prompt's
padding between them: no length says that, and a mask given as an array would be quadratic. Responses stay with XLA.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def fits(queries: jax.Array) -> bool:
    """Whether the kernels take these inputs; attention goes through XLA where they do not."""
    width = queries.shape[-1]
    return queries.dtype in (jnp.bfloat16, jnp.float16) and width % 8 == 0 and width <= 128


def prompt(
    queries: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array, *, implementation: str
) -> tuple[jax.Array]:
    """Causal self-attention of prompts, on one device; shapes as in `attention.prompt_attention`."""
    keys, values = keys.transpose(0, 3, 1, 2), values.swapaxes(1, 2)
    return (_run(queries, keys, values, valid, causal=True, implementation=implementation),)


def full(
    queries: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array, *, implementation: str
) -> tuple[jax.Array]:
    """Attention of all to all valid tokens, on one device; shapes as in `attention.full_attention`."""
    return (_run(queries, keys, values, valid, causal=False, implementation=implementation),)


def _run(
    queries: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array, *, causal: bool, implementation: str
) -> jax.Array:
    """queries [B, X, N, H], keys and values [B, X, K, H], valid [B, X] with its padding at the end → [B, X, N, H].

    A row without any valid token is given one, so that its softmax is defined.
    """
    lengths = jnp.maximum(jnp.sum(valid, axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        queries, keys, values, is_causal=causal, key_value_seq_lengths=lengths, implementation=implementation
    )
