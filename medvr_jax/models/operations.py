"""Floating-point operations of the programs from shapes alone: pure functions, a multiply-add counted as two.

XLA's own count takes the body of a loop once, so it cannot serve for scanned layers. Attention is counted as the
reference computes it: every query against every slot. Kernels that skip masked blocks need up to half of that less.

Axis letters: B groups, M trajectories, P prompt tokens, T response tokens, E tokens fed at once, S image patches.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from flax import nnx

from medvr_jax.models import vision_geometry
from medvr_jax.models.config import BackboneConfig


@dataclasses.dataclass(frozen=True)
class Matrices:
    """Entries of the matrices that tokens are multiplied with: the decoder's layers, the head, the vision tower's
    blocks (with the patch embedding) and its merger."""

    decoder: int
    head: int
    vision: int
    merger: int


def matrices(params: nnx.State, config: BackboneConfig) -> Matrices:
    """Counts them in the parameters; norms and biases are left out."""
    counts = dict.fromkeys(("decoder", "vision", "merger"), 0)
    for path, variable in nnx.to_flat_state(params):
        axes = [axis for axis in variable.get_metadata()["axes"] if axis != "layers"]
        part = _part(path)
        if part and len(axes) > 1 and "bias" not in str(path[-1]):
            counts[part] += math.prod(variable.get_value().shape)
    return Matrices(head=config.text.vocab_size * config.text.hidden_size, **counts)


def _part(path: tuple[Any, ...]) -> str | None:
    names = [str(part) for part in path]
    if "vision" in names:
        return "merger" if names[-1].startswith("merger") else "vision"
    return "decoder" if "layers" in names else None


@dataclasses.dataclass(frozen=True)
class Work:
    """What a forward pass has to do, in the counts that its operations are linear in.

    Attributes:
        tokens: fed through the decoder's layers.
        pairs: of a query and a key that it meets, in one layer.
        logits: tokens whose logits over the vocabulary are made.
        patches: fed through the vision tower.
        patch_pairs: of a patch and one that it meets, all of the tower's blocks together.
    """

    tokens: float = 0.0
    pairs: float = 0.0
    logits: float = 0.0
    patches: float = 0.0
    patch_pairs: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(x + y for x, y in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def times(self, count: float) -> Work:
        """As much `count` times."""
        return Work(*(count * x for x in dataclasses.astuple(self)))


def forward(sizes: Matrices, config: BackboneConfig, work: Work) -> float:
    """Operations of a forward pass."""
    vision = config.vision
    products = (
        sizes.decoder * work.tokens
        + sizes.head * work.logits
        + sizes.vision * work.patches
        + sizes.merger * work.patches / vision.merge_unit
    )
    return 2.0 * products + attention(config, work)


def attention(config: BackboneConfig, work: Work) -> float:
    """Operations of a forward pass that no weights take part in: queries by keys, and weights by values."""
    text, vision = config.text, config.vision
    return 4.0 * (
        text.num_layers * text.num_heads * text.head_width * work.pairs + vision.hidden_size * work.patch_pairs
    )


def training(sizes: Matrices, config: BackboneConfig, work: Work, remat: str) -> float:
    """Operations of a forward and a backward pass, which is worth two forward ones, and of what remat repeats.

    remat: see `layers.REMAT_POLICIES`. "block" repeats a whole forward pass (at most: a layer's last product is not
    needed again); "dots" keeps the products with weights and repeats attention's own; norms are counted nowhere.
    """
    once = forward(sizes, config, work)
    return 3.0 * once + {"none": 0.0, "dots": attention(config, work), "block": once}[remat]


def padded_image(config: BackboneConfig, patches: int) -> Work:
    """An image in a bucket of S = `patches`: every block meets all of its slots."""
    vision = config.vision
    full = len(vision.full_attention_blocks)
    slots = 0
    if full < vision.depth:
        slots = vision_geometry.window_blocks(patches, vision) * vision.window_patches
    pairs = full * patches * patches + (vision.depth - full) * slots * vision.window_patches
    return Work(patches=patches, patch_pairs=pairs)


def vision_forward(sizes: Matrices, config: BackboneConfig, patches: int) -> float:
    """One image of S = `patches` through the tower."""
    return forward(sizes, config, padded_image(config, patches))


def prompt_forward(sizes: Matrices, config: BackboneConfig, tokens: int) -> float:
    """One prompt of P = `tokens` through the decoder's layers, without the head."""
    return forward(sizes, config, Work(tokens=tokens, pairs=tokens * tokens))


def response_forward(sizes: Matrices, config: BackboneConfig, tokens: int, keys: int) -> float:
    """`tokens` of trajectories through the decoder's layers, each against `keys` slots, without the head."""
    return forward(sizes, config, Work(tokens=tokens, pairs=tokens * keys))


def head_forward(sizes: Matrices, tokens: int) -> float:
    """Logits of `tokens`."""
    return 2.0 * sizes.head * tokens


def weight_passes(remat: str) -> int:
    """How often forward and backward together go through the weights: backwards twice, and once more to repeat them."""
    return 4 if remat == "block" else 3
