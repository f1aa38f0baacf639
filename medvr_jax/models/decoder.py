"""The decoder layer that prefill, decode, extend and scoring share.

In profiles everything of it is either `attention` (with its norm and its products) or `mlp`.

Parameters of the L layers are stacked on a leading axis. The functions take one layer's weights by name.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx

from medvr_jax.models.attention import group_attention, prompt_attention, response_attention
from medvr_jax.models.attention_backend import AttentionBackend
from medvr_jax.models.config import TextConfig
from medvr_jax.models.layers import Initialiser, Weights, project, rms_norm
from medvr_jax.models.packing import Packing, pack, unpack
from medvr_jax.models.partitioning import constrain, constrain_groups
from medvr_jax.models.rope import rotate

Rotary = tuple[jax.Array, jax.Array]  # cos, sin [..., H/2]


class DecoderLayers(nnx.Module):
    """Stacked parameters; no computation."""

    def __init__(self, config: TextConfig, make: Initialiser) -> None:
        L, D, F = config.num_layers, config.hidden_size, config.intermediate_size
        NH, KH = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
        self.attention_norm = make.ones((L, D), ("layers", "embed"))
        self.query_kernel = make.normal((L, D, NH), ("layers", "embed", "heads"))
        self.query_bias = make.zeros((L, NH), ("layers", "heads"))
        self.key_kernel = make.normal((L, D, KH), ("layers", "embed", "kv_heads"))
        self.key_bias = make.zeros((L, KH), ("layers", "kv_heads"))
        self.value_kernel = make.normal((L, D, KH), ("layers", "embed", "kv_heads"))
        self.value_bias = make.zeros((L, KH), ("layers", "kv_heads"))
        self.output_kernel = make.normal((L, NH, D), ("layers", "heads", "embed"))
        self.mlp_norm = make.ones((L, D), ("layers", "embed"))
        self.gate_kernel = make.normal((L, D, F), ("layers", "embed", "mlp"))
        self.up_kernel = make.normal((L, D, F), ("layers", "embed", "mlp"))
        self.down_kernel = make.normal((L, F, D), ("layers", "mlp", "embed"))


def normed(x: jax.Array, layer: Weights, config: TextConfig) -> jax.Array:
    """The layer's input, normalised for its attention."""
    return constrain_groups(residual(rms_norm(x, layer["attention_norm"], config.rms_norm_eps)))


def queries(x: jax.Array, layer: Weights, rotary: Rotary, config: TextConfig) -> jax.Array:
    """Rotated queries [..., N, H] of normalised x [..., D]."""
    y = project(x, layer, "query")
    y = _rotate_heads(y.reshape(*x.shape[:-1], config.num_heads, config.head_width), rotary)
    return _split_heads(y)


def keys_and_values(x: jax.Array, layer: Weights, rotary: Rotary, config: TextConfig) -> tuple[jax.Array, jax.Array]:
    """Rotated keys and values [..., X, K, H] of normalised x [..., X, D]."""
    shape = (*x.shape[:-1], config.num_kv_heads, config.head_width)
    keys = _rotate_heads(project(x, layer, "key").reshape(shape), rotary)
    return keys, project(x, layer, "value").reshape(shape)


def head_major(keys: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values [..., X, K, H] in the caches' layouts: [..., K, H, X] and [..., K, X, H]."""
    batch = tuple(range(keys.ndim - 3))
    a, b, c = (keys.ndim - 3 + i for i in range(3))  # the axes X, K, H
    keys, values = keys.transpose(*batch, b, c, a), values.transpose(*batch, b, a, c)
    names = ("groups", *(None,) * (len(batch) - 1), "kv_heads", None, None)
    return constrain(keys, *names), constrain(values, *names)


def finish(x: jax.Array, mixed: jax.Array, layer: Weights, config: TextConfig) -> jax.Array:
    """Adds attention's output and the MLP to the residual stream x [..., D]; mixed [..., N, H]."""
    with jax.named_scope("attention"):
        x = residual(x + project(mixed.reshape(*mixed.shape[:-2], -1), layer, "output"))
    with jax.named_scope("mlp"):
        y = constrain_groups(residual(rms_norm(x, layer["mlp_norm"], config.rms_norm_eps)))
        gate, up = (_split_width(project(y, layer, name)) for name in ("gate", "up"))
        return residual(x + project(_split_width(jax.nn.silu(gate) * up), layer, "down"))


def residual(x: jax.Array) -> jax.Array:
    """The residual stream between two products: [B, X, D] of a prompt or of packed responses, or [B, M, E, D].

    Where training splits it over devices, so are the norms' float32 arrays and what the backward pass keeps.
    """
    return constrain(x, "groups", "residual_tokens" if x.ndim == 3 else None, *(None,) * (x.ndim - 2))


def _split_heads(x: jax.Array) -> jax.Array:
    """Queries, or what attention made of them, [B, ..., N, H]."""
    return constrain(x, "groups", *(None,) * (x.ndim - 3), "heads", None)


def _split_width(x: jax.Array) -> jax.Array:
    """The MLP's hidden values [B, ..., F]."""
    return constrain(x, "groups", *(None,) * (x.ndim - 2), "mlp")


def prompt_layer(
    x: jax.Array,
    layer: Weights,
    rotary: Rotary,
    valid: jax.Array,
    config: TextConfig,
    backend: AttentionBackend,
    *,
    last: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x [B, P, D] → its next value, keys [B, K, H, P], values [B, K, P, H].

    In the last layer nobody reads the prompt's output: only its keys and values are computed.
    """
    with jax.named_scope("attention"):
        y = normed(x, layer, config)
        keys, values = head_major(*keys_and_values(y, layer, rotary, config))
        if last:
            return x, keys, values
        mixed = prompt_attention(queries(y, layer, rotary, config), keys, values, valid, backend)
    return finish(x, mixed, layer, config), keys, values


def group_layer(
    prompt: jax.Array,
    responses: jax.Array,
    packing: Packing,
    layer: Weights,
    rotaries: tuple[Rotary, Rotary],
    valid: jax.Array,
    config: TextConfig,
    backend: AttentionBackend,
    *,
    last: bool,
) -> tuple[jax.Array, jax.Array]:
    """Next values of a whole group: prompt [B, P, D] and packed responses [B, N, D], without a cache.

    rotaries: of the prompt and of the responses; valid [B, P]. As in `prompt_layer`, the last layer leaves the prompt.
    """
    with jax.named_scope("attention"):
        x, y = normed(prompt, layer, config), normed(responses, layer, config)
        prompt_queries = None if last else queries(x, layer, rotaries[0], config)
        prompt_mixed, mixed = group_attention(
            prompt_queries,
            *head_major(*keys_and_values(x, layer, rotaries[0], config)),
            valid,
            _split_heads(unpack(queries(y, layer, rotaries[1], config), packing)),
            *head_major(*(unpack(part, packing) for part in keys_and_values(y, layer, rotaries[1], config))),
            backend,
        )
        mixed = _split_heads(pack(_split_heads(mixed), packing))
    if prompt_mixed is not None:
        prompt = finish(prompt, prompt_mixed, layer, config)
    return prompt, finish(responses, mixed, layer, config)


def response_layer(
    x: jax.Array,
    layer: Weights,
    rotary: Rotary,
    prompt: tuple[jax.Array, jax.Array, jax.Array],
    slots: jax.Array,
    config: TextConfig,
    write: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x [B, M, E, D] at slots [B, M, E] → its next value and the response's keys and values after `write`.

    prompt: the prompt's keys, values and valid; write(keys, values) places the E new tokens' keys [B, M, K, H, E] and
    values [B, M, K, E, H] among the T slots.
    """
    with jax.named_scope("attention"):
        y = normed(x, layer, config)
        keys, values = write(*head_major(*keys_and_values(y, layer, rotary, config)))
        mixed = response_attention(queries(y, layer, rotary, config), *prompt, keys, values, slots)
    return finish(x, mixed, layer, config), keys, values


def _rotate_heads(x: jax.Array, rotary: Rotary) -> jax.Array:
    """x [..., X, heads, H] by cos, sin [..., X, H/2]."""
    return rotate(x, rotary[0][..., None, :], rotary[1][..., None, :])
