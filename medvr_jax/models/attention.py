"""The attention of a group: response tokens see their group's prompt, and their own response causally.

One function per use, behind which stand the back ends of `attention_backend.py`; XLA is the reference. There: two
parts, two softmaxes merged by their maxima and sums, so the prompt's keys are never repeated for the M trajectories
and no score array changes its layout. Head-major caches with the batch axes first, which XLA multiplies without copies.

- `group_attention` (score): splash in one kernel over P + M*T tokens; fused for the prompt, XLA for its responses.
- `prompt_attention` (prefill), `full_attention` (whole rows of images): splash, or fused where `attention_fused.fits`.
- `response_attention` (decode, extend): XLA always.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp

from medvr_jax.models import attention_fused as fused
from medvr_jax.models import attention_xla as xla
from medvr_jax.models.attention_backend import XLA, AttentionBackend, over_devices


def group_attention(
    prompt_queries: jax.Array | None,
    prompt_keys: jax.Array,
    prompt_values: jax.Array,
    prompt_valid: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    backend: AttentionBackend = XLA,
) -> tuple[jax.Array | None, jax.Array]:
    """Attention of whole groups: the prompt to itself and T tokens of each response to both, all causally.

    prompt_queries [B, P, N, H], or None where nobody reads the prompt's output; prompt_keys [B, K, H, P]; prompt_values
    [B, K, P, H]; prompt_valid [B, P]; queries [B, M, T, N, H]; keys [B, M, K, H, T]; values [B, M, K, T, H].
    Returns [B, P, N, H] or None, and [B, M, T, N, H]; rows of the prompt's padding mean nothing.
    """
    if backend.kind == "splash":
        arrays = (prompt_keys, prompt_values, prompt_valid, queries, keys, values)
        head_axis, out_head_axis = (1, 1, None, 3, 2, 2), (3,)
        kernel = functools.partial(_splash().group, None, interpret=backend.interpreted)
        if prompt_queries is not None:
            arrays, head_axis, out_head_axis = (prompt_queries, *arrays), (2, *head_axis), (2, 3)
            kernel = functools.partial(_splash().group, interpret=backend.interpreted)
        results = over_devices(kernel, arrays, head_axis, out_head_axis, heads=queries.shape[3])
        return (None, *results) if prompt_queries is None else results
    slots = jnp.broadcast_to(jnp.arange(queries.shape[2], dtype=jnp.int32), queries.shape[:3])
    prompt = None
    if prompt_queries is not None:
        prompt = prompt_attention(prompt_queries, prompt_keys, prompt_values, prompt_valid, backend)
    mixed = response_attention(queries, prompt_keys, prompt_values, prompt_valid, keys, values, slots)
    return prompt, mixed


def prompt_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array, backend: AttentionBackend = XLA
) -> jax.Array:
    """Causal self-attention of the prompt.

    queries [B, P, N, H]; keys [B, K, H, P]; values [B, K, P, H]; valid [B, P], padding at the end.
    Returns [B, P, N, H]; rows of padding mean nothing.
    """
    kernel = _kernel("prompt", queries, backend)
    if kernel is not None:
        arrays, heads = (queries, keys, values, valid), queries.shape[2]
        return over_devices(kernel, arrays, (2, 1, 1, None), (2,), heads=heads)[0]
    return xla.self_attention(queries, keys, values, valid, True)


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
    attend = xla.token_attention if queries.shape[2] == 1 else xla.response_attention
    return attend(queries, prompt_keys, prompt_values, prompt_valid, keys, values, query_slots)


def full_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array, backend: AttentionBackend = XLA
) -> jax.Array:
    """Attention of every token of a row to all valid ones: queries, keys, values [A, C, N, H]; valid [A, C].

    Padding is at the end. Returns [A, C, N, H]; rows of padding mean nothing.
    """
    kernel = _kernel("full", queries, backend)
    if kernel is not None:
        arrays, heads = (queries, keys, values, valid), queries.shape[2]
        return over_devices(kernel, arrays, (2, 2, 2, None), (2,), heads=heads)[0]
    keys, values = keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)
    return xla.self_attention(queries, keys, values, valid, False)


def masked_attention(queries: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array) -> jax.Array:
    """queries, keys, values [A, C, N, H], visible [A, C or 1, C] → [A, C, N, H], in XLA."""
    q, k, v = queries.transpose(0, 2, 1, 3), keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)
    scores = jnp.matmul(xla.scaled(q), k, preferred_element_type=jnp.float32)
    scores = jnp.where(visible[:, None], scores, xla.MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.matmul(weights, v).transpose(0, 2, 1, 3)


def _kernel(use: str, queries: jax.Array, backend: AttentionBackend) -> Callable[..., tuple[jax.Array]] | None:
    """The kernel for the prompt or for whole rows, on one device; None = XLA."""
    if backend.kind == "splash":
        return functools.partial(getattr(_splash(), use), interpret=backend.interpreted)
    if backend.kind == "fused" and (backend.interpreted or fused.fits(queries)):
        implementation = "xla" if backend.interpreted else "cudnn"
        return functools.partial(getattr(fused, use), implementation=implementation)
    return None


def _splash() -> ModuleType:
    """Imported on use: Pallas' TPU kernels are slow to import, and most runs have no TPU."""
    from medvr_jax.models import attention_splash

    return attention_splash
