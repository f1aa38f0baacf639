"""The vision tower: patches of many images, one padded row each, to image tokens.

Full attention works inside a row, window attention inside blocks gathered from a row (see vision_geometry.py). The
patches stay in the image processor's order, so features come out in the order of the prompt's image tokens. Towers
differ in their norm, in their MLP and in which blocks see windows, if any; `VisionConfig` says so.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from medvr_jax.models.attention import full_attention, masked_attention
from medvr_jax.models.attention_backend import XLA, AttentionBackend
from medvr_jax.models.config import VisionConfig
from medvr_jax.models.layers import (
    Initialiser,
    Weights,
    axes_of,
    layer_norm,
    linear,
    quick_gelu,
    rms_norm,
    run_stack,
    used,
    weights_of,
)
from medvr_jax.models.partitioning import constrain_groups
from medvr_jax.models.rope import rotate, vision_rotary

NORM_EPSILON = 1e-6
SCAN_FROM = 4  # towers with more blocks of a kind in a row are scanned: one compiled body instead of many


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class ImageBatch:
    """I images, each a row of S patches in the processor's order, padded at the end; a row may be wholly empty.

    patches [I, S, patch_dim] float32; positions [I, S, 2] int32 (row, column); valid [I, S] bool; window_slots
    [I, W, C] int32: the patch in each slot of a window block (S = empty); slot_of_patch [I, S] int32: its inverse, a
    position in the flattened [W*C] (W*C = none). A tower without windows has window_slots [I, 0, 0] and slot_of_patch
    [I, 0]. See `vision_geometry.padded_geometry`.
    """

    patches: jax.Array
    positions: jax.Array
    valid: jax.Array
    window_slots: jax.Array
    slot_of_patch: jax.Array


class VisionBlocks(nnx.Module):
    """Stacked parameters of the tower's blocks; no computation."""

    def __init__(self, config: VisionConfig, make: Initialiser) -> None:
        L, D, F = config.depth, config.hidden_size, config.intermediate_size
        self.attention_norm = make.ones((L, D), ("layers", "vision_embed"))
        self.qkv_kernel = make.normal((L, D, 3, D), ("layers", "vision_embed", None, "vision_heads"))
        self.qkv_bias = make.zeros((L, 3, D), ("layers", None, "vision_heads"))
        self.output_kernel = make.normal((L, D, D), ("layers", "vision_heads", "vision_embed"))
        self.output_bias = make.zeros((L, D), ("layers", "vision_embed"))
        self.mlp_norm = make.ones((L, D), ("layers", "vision_embed"))
        if config.mlp == "gated_silu":
            self.gate_kernel = make.normal((L, D, F), ("layers", "vision_embed", "vision_mlp"))
            self.gate_bias = make.zeros((L, F), ("layers", "vision_mlp"))
        self.up_kernel = make.normal((L, D, F), ("layers", "vision_embed", "vision_mlp"))
        self.up_bias = make.zeros((L, F), ("layers", "vision_mlp"))
        self.down_kernel = make.normal((L, F, D), ("layers", "vision_mlp", "vision_embed"))
        self.down_bias = make.zeros((L, D), ("layers", "vision_embed"))
        if config.norm == "layer":
            self.attention_norm_bias = make.zeros((L, D), ("layers", "vision_embed"))
            self.mlp_norm_bias = make.zeros((L, D), ("layers", "vision_embed"))


class VisionTower(nnx.Module):
    """Patch embedding, blocks, and the merger that makes one image token of merge² patches."""

    def __init__(self, config: VisionConfig, make: Initialiser, dtype: jnp.dtype) -> None:
        self.config, self.dtype = config, dtype
        D, wide = config.hidden_size, config.hidden_size * config.merge_unit
        self.patch_kernel = make.normal((config.patch_dim, D), ("patch", "vision_embed"))
        self.blocks = VisionBlocks(config, make)
        self.merger_norm = make.ones((D,), ("vision_embed",))
        if config.norm == "layer":
            self.merger_norm_bias = make.zeros((D,), ("vision_embed",))
        self.merger_in_kernel = make.normal((wide, wide), ("vision_embed", "vision_mlp"))
        self.merger_in_bias = make.zeros((wide,), ("vision_mlp",))
        self.merger_out_kernel = make.normal((wide, config.out_hidden_size), ("vision_mlp", "embed"))
        self.merger_out_bias = make.zeros((config.out_hidden_size,), ("embed",))

    def __call__(self, images: ImageBatch, remat: str = "none", attention: AttentionBackend = XLA) -> jax.Array:
        """Features [I, S // merge², D] in the processor's order; rows of padding are finite and mean nothing."""
        config = self.config
        x = linear(images.patches.astype(self.dtype), used(self.patch_kernel))
        views = {True: _whole_rows(images, config)}
        if config.has_windows:
            views[False] = _windows(images, config)
        stack, axes = weights_of(self.blocks), axes_of(self.blocks)
        first = 0
        for full, run in itertools.groupby(range(config.depth), lambda block: block in config.full_attention_blocks):
            count = len(list(run))
            x = run_stack(
                lambda x, weights, view=views[full]: vision_block(x, weights, view, config, attention),
                x,
                {name: value[first : first + count] for name, value in stack.items()},
                axes,
                unroll=count < SCAN_FROM and remat == "none",
                remat=remat,
            )
            first += count
        return self.merge(x)

    def merge(self, x: jax.Array) -> jax.Array:
        """x [I, S, vision width] → [I, S // merge², D]."""
        images, patches, width = x.shape
        unit = self.config.merge_unit
        x = _norm(x, weights_of(self), "merger_norm", self.config).reshape(images, patches // unit, unit * width)
        x = jax.nn.gelu(linear(x, used(self.merger_in_kernel), used(self.merger_in_bias)), approximate=False)
        return linear(x, used(self.merger_out_kernel), used(self.merger_out_bias))


@dataclasses.dataclass(frozen=True)
class _View:
    """How attention sees the patches: as A pieces of C patches each (rows, or window blocks).

    cos, sin [A, C, 1, H/2]; visible [A, C or 1, C]; source [I, W*C] and inverse [I, S] move rows into pieces and back
    (None where the pieces are the rows).
    """

    cos: jax.Array
    sin: jax.Array
    visible: jax.Array
    source: jax.Array | None = None
    inverse: jax.Array | None = None


def _whole_rows(images: ImageBatch, config: VisionConfig) -> _View:
    cos, sin = vision_rotary(images.positions, head_width=config.head_width, theta=config.rope_theta)
    return _View(cos[:, :, None], sin[:, :, None], images.valid[:, None, :])


def _windows(images: ImageBatch, config: VisionConfig) -> _View:
    rows, S = images.valid.shape
    W, C = images.window_slots.shape[1:]
    source = images.window_slots.reshape(rows, W * C)
    taken = jax.vmap(lambda positions, source: positions.at[source].get(mode="fill", fill_value=-1))
    positions = taken(images.positions, source).reshape(rows * W, C, 2)
    cos, sin = vision_rotary(positions, head_width=config.head_width, theta=config.rope_theta)
    cells = positions // (config.window_side * config.spatial_merge_size)  # -1 where the slot is empty
    window = cells[..., 0] * S + cells[..., 1]  # a row holds fewer than S columns of windows
    visible = (window[:, :, None] == window[:, None, :]) & (window >= 0)[:, None, :]
    return _View(cos[:, :, None], sin[:, :, None], visible, source, images.slot_of_patch)


def vision_block(
    x: jax.Array, block: Weights, view: _View, config: VisionConfig, attention: AttentionBackend = XLA
) -> jax.Array:
    """One block: x [I, S, D] → [I, S, D]."""
    rows, S, D = x.shape
    A, C = view.cos.shape[:2]
    y = _norm(x, block, "attention_norm", config)
    y = linear(y, block["qkv_kernel"].reshape(D, 3 * D), block["qkv_bias"].reshape(3 * D))
    if view.source is not None:
        y = jax.vmap(_permute)(y, view.source, view.inverse)
    y = y.reshape(A, C, 3, config.num_heads, config.head_width)
    q, k = (rotate(y[:, :, part], view.cos, view.sin) for part in (0, 1))
    y = _attend(q, k, y[:, :, 2], view.visible, attention)
    if view.source is not None:
        y = jax.vmap(_permute)(y.reshape(rows, -1, D), view.inverse, view.source)
    x = constrain_groups(x + linear(y.reshape(rows, S, D), block["output_kernel"], block["output_bias"]))
    y = _norm(x, block, "mlp_norm", config)
    up = linear(y, block["up_kernel"], block["up_bias"])
    if config.mlp == "gated_silu":
        y = jax.nn.silu(linear(y, block["gate_kernel"], block["gate_bias"])) * up
    else:
        y = quick_gelu(up)
    return constrain_groups(x + linear(y, block["down_kernel"], block["down_bias"]))


def _norm(x: jax.Array, weights: Weights, name: str, config: VisionConfig) -> jax.Array:
    """x [..., D] normalised with the weights of this name."""
    if config.norm == "rms":
        return rms_norm(x, weights[name], NORM_EPSILON)
    return layer_norm(x, weights[name], weights[f"{name}_bias"], NORM_EPSILON)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array, attention: AttentionBackend) -> jax.Array:
    """q, k, v [A, C, N, H], visible [A, C or 1, C] → [A, C, N, H]; softmax in float32.

    Whole rows ([A, 1, C]) go to the back end; windows are small blocks, which XLA batches.
    """
    if visible.shape[1] == 1:
        return full_attention(q, k, v, visible[:, 0], attention)
    return masked_attention(q, k, v, visible)


@jax.custom_vjp
def _permute(x: jax.Array, source: jax.Array, inverse: jax.Array) -> jax.Array:
    """Rows of x [X, D] in the order `source` [Y] (X = a row of zeros); `inverse` [X] points back (Y = none).

    The gradient is the inverse gather: no scatter.
    """
    return x.at[source].get(mode="fill", fill_value=0)


def _permute_forward(x: jax.Array, source: jax.Array, inverse: jax.Array) -> tuple[jax.Array, tuple]:
    return _permute(x, source, inverse), (source, inverse)


def _permute_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, None, None]:
    source, inverse = saved
    return _permute(gradient, inverse, source), None, None


_permute.defvjp(_permute_forward, _permute_backward)
