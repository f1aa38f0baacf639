"""Image features of whole batches: the vision tower over images that belong to groups and trajectories."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvr_jax.models.backbone import Backbone
from medvr_jax.models.vision import ImageBatch


def image_features(backbone: Backbone, images: ImageBatch, remat: str = "none") -> jax.Array:
    """Features of images `[B, I, ...]`, flattened over a group's images: `[B, I * F, D]`, F = S / merge unit.

    The tower sees `backbone.images_at_once` images of each group at a time, and with remat keeps of the others nothing
    but their patches.

    remat: see `layers.REMAT_POLICIES`.
    """
    groups, count = images.valid.shape[:2]
    if not count:
        return jnp.zeros((groups, 0, backbone.config.text.hidden_size), backbone.compute_dtype)
    at_once = backbone.images_at_once or count

    def some(part: ImageBatch) -> jax.Array:
        rows = part.valid.shape[0] * part.valid.shape[1]
        flat = jax.tree.map(lambda leaf: leaf.reshape(rows, *leaf.shape[2:]), part)
        features = backbone.encode_images(flat, remat)
        return features.reshape(groups, -1, *features.shape[1:])

    if at_once >= count:
        return some(images).reshape(groups, -1, backbone.config.text.hidden_size)
    parts = -(-count // at_once)

    def cut(leaf: jax.Array) -> jax.Array:
        """[B, I, ...] → [parts, B, at_once, ...], padded with images of zeros, of which no patch is valid."""
        padded = jnp.pad(leaf, [(0, 0), (0, parts * at_once - count), *[(0, 0)] * (leaf.ndim - 2)])
        return jnp.moveaxis(padded.reshape(groups, parts, at_once, *leaf.shape[2:]), 1, 0)

    one_part = some if remat == "none" else jax.checkpoint(some, prevent_cse=False)
    features = jax.lax.map(one_part, jax.tree.map(cut, images))  # [parts, B, at_once, F, D]
    features = jnp.moveaxis(features, 0, 1).reshape(groups, parts * at_once, *features.shape[3:])
    return features[:, :count].reshape(groups, -1, features.shape[-1])
