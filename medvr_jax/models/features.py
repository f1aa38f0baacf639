"""Image features of whole batches: the vision tower over images that belong to groups and trajectories."""

from __future__ import annotations

import jax

from medvr_jax.models.backbone import Backbone
from medvr_jax.models.vision import ImageBatch


def image_features(backbone: Backbone, images: ImageBatch, remat: str = "none") -> jax.Array:
    """Features of images `[B, I, ...]`, flattened over a group's images: `[B, I * F, D]`, F = S / merge unit.

    remat: see `layers.REMAT_POLICIES`.
    """
    groups, count = images.valid.shape[:2]
    flat = jax.tree.map(lambda leaf: leaf.reshape(groups * count, *leaf.shape[2:]), images)
    features = backbone.encode_images(flat, remat)
    return features.reshape(groups, -1, features.shape[-1])
