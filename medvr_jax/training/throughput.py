"""How fast a step was: tokens and operations per second, shares of what the devices can do, and waste by padding.

Pure functions of counts and seconds. Two kinds of counts are kept apart: what is TRUE, tokens and patches that exist,
each one once (a fork's beginning is its parent's, identical crops of a group are one), every query with the keys that
it may see; and what was PROCESSED, padding, masked pairs and idle rows included. Axis letters as everywhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from medvr_jax.devices import Limits
from medvr_jax.models.config import BackboneConfig, VisionConfig
from medvr_jax.models.operations import Matrices, Work, forward, padded_image
from medvr_jax.rollout.trajectories import Calls

ROLLOUT_PHASES = ("vision", "prefill", "decode", "tool", "extend")

# ----------------------------------------------------------------------------------------------------------- counting


def true_counts(
    prompt_tokens: np.ndarray,
    length: np.ndarray,
    sampled: np.ndarray,
    shared: np.ndarray,
    images: Sequence[Sequence[int]],
    crops: Sequence[Sequence[int]],
    vision: VisionConfig,
) -> dict[str, np.ndarray]:
    """What exists in each group of a rollout, as `[B]` float64 arrays that add up over groups.

    Args:
        prompt_tokens: `[B]`, without the last one, which is slot 0 of every response.
        length: `[B, M]`, response slots in use.
        sampled: `[B, M, T]` bool, the response mask.
        shared: `[B, M]`, slots that a trajectory took over from the one it was forked from; 0 for the others.
        images: per group the patches of each of its prompt's images.
        crops: per group the patches of each crop, those that were encoded once counted once.

    Returns:
        `prompt_tokens`; `response_slots` in use; `response_tokens`, fed through the decoder (all but a trajectory's
        last one); `pairs` of a query and a key, prompt and responses; `sampled_tokens`; `sampled_keys`, the response
        keys that sampled tokens met; `prompt_keys`, prompt tokens times the steps that the group needs at the least,
        the most tokens that one trajectory sampled; `images`, `crops` and their `_pairs`.
    """
    prompt = np.asarray(prompt_tokens, np.float64)
    start, end = np.asarray(shared, np.float64), np.maximum(np.asarray(length) - 1, shared).astype(np.float64)
    fed = end - start  # slots start … end - 1; slot t meets the prompt and slots 0 … t
    slots = np.arange(sampled.shape[-1])
    own = np.asarray(sampled) & (slots >= np.asarray(shared)[..., None])
    pairs = prompt * (prompt + 1) / 2 + (fed * prompt[:, None] + fed * (start + 1 + end) / 2).sum(-1)
    return {
        "prompt_tokens": prompt,
        "response_slots": (np.asarray(length, np.float64) - start).sum(-1),
        "response_tokens": fed.sum(-1),
        "pairs": pairs,
        "sampled_tokens": own.sum((-1, -2), dtype=np.float64),
        "sampled_keys": (own * slots).sum((-1, -2), dtype=np.float64),
        "prompt_keys": prompt * own.sum(-1).max(-1),
        "images": np.array([sum(group) for group in images], np.float64),
        "image_pairs": np.array([sum(_patch_pairs(n, vision) for n in group) for group in images], np.float64),
        "crops": np.array([sum(group) for group in crops], np.float64),
        "crop_pairs": np.array([sum(_patch_pairs(n, vision) for n in group) for group in crops], np.float64),
    }


def _patch_pairs(patches: int, vision: VisionConfig) -> float:
    """Pairs of patches that meet in one image, all blocks together; windows count as full ones."""
    full = len(vision.full_attention_blocks)
    windowed = (vision.depth - full) * min(patches, vision.window_patches) if vision.has_windows else 0
    return float(patches * (full * patches + windowed))


def total(counts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Sums over the groups."""
    return {name: float(np.sum(values)) for name, values in counts.items()}


@dataclasses.dataclass(frozen=True)
class Passed:
    """What the devices were given in one step, padding and idle rows included.

    Attributes:
        groups: B.
        prompt: P, slots of a prompt.
        rollout: the calls of the sampler.
        images: (prompts' images, patches of each).
        rows: of responses in the update, B x M, and
        response: the slots of each, all of which attention sees.
        packed: tokens of responses that the update computes, padding included.
        update_crops: (crops, patches of each) that the update encodes if the tower is trained.
    """

    groups: int
    prompt: int
    rollout: Calls
    images: tuple[int, int]
    rows: int
    response: int
    packed: int
    update_crops: tuple[int, int]


def padding(true: Mapping[str, float], passed: Passed) -> dict[str, float]:
    """The share of what was processed that is padding, by kind; kinds that did not occur are left out.

    `decode` counts the rows that wait or are done while others still sample.
    """
    rollout = passed.rollout
    slots = {
        "prompt": (true["prompt_tokens"], passed.groups * passed.prompt),
        "response": (true["response_slots"], passed.packed),
        "images": (true["images"], math.prod(passed.images)),
        "crops": (true["crops"], sum(count * patches for count, patches in rollout.crops)),
        "decode": (true["sampled_tokens"], sum(steps * rows for steps, rows, _ in rollout.decode)),
    }
    return {name: 1.0 - found / made for name, (found, made) in slots.items() if made}


# --------------------------------------------------------------------------------------------------------- operations


@dataclasses.dataclass(frozen=True)
class Policy:
    """The model and what an update does with it.

    Attributes:
        sizes, backbone: its matrices and shapes.
        width: bytes of a number while sampling.
        vision_trained: the tower runs in the update, forwards and backwards; else its features are used again.
        head_trained: the head's weights have gradients.
        updates: optimiser steps on one batch; from two on, a pass before them supplies the old log-probabilities.
        reference: a reference policy is scored in every update.
    """

    sizes: Matrices
    backbone: BackboneConfig
    width: int
    vision_trained: bool
    head_trained: bool
    updates: int
    reference: bool

    def operations(self, text: Work, images: Work) -> tuple[float, float]:
        """Of a step's rollout and of its updates, whose text and images are these; remat is not counted."""
        words, pictures = (forward(self.sizes, self.backbone, work) for work in (text, images))
        head = forward(self.sizes, self.backbone, Work(logits=text.logits))
        one = words + (pictures if self.vision_trained else 0.0)
        # The backward pass takes a product for the input and one for the weights where the forward pass takes one.
        trained = 3 * one - (0.0 if self.head_trained else head)
        passes = self.updates * (trained + (one if self.reference else 0.0)) + (one if self.updates > 1 else 0.0)
        return words + pictures, passes

    def true_operations(self, true: Mapping[str, float]) -> tuple[float, float]:
        """Model FLOPs of the rollout and of the updates: what tokens that exist need."""
        text = Work(
            tokens=true["prompt_tokens"] + true["response_tokens"], pairs=true["pairs"], logits=true["sampled_tokens"]
        )
        patches, pairs = true["images"] + true["crops"], true["image_pairs"] + true["crop_pairs"]
        return self.operations(text, Work(patches=patches, patch_pairs=pairs))

    def passed_operations(self, passed: Passed, true: Mapping[str, float]) -> tuple[float, float]:
        """What the devices computed, or were given to compute where kernels skip what is masked."""

        def pictures(*calls: tuple[int, int]) -> Work:
            each = (padded_image(self.backbone, patches).times(count) for count, patches in calls)
            return sum(each, Work())

        prompts = Work(tokens=passed.groups * passed.prompt, pairs=passed.groups * passed.prompt**2)
        rollout = prompts
        for steps, rows, slots in passed.rollout.decode:
            tokens = steps * rows
            rollout += Work(tokens=tokens, pairs=tokens * (passed.prompt + slots), logits=tokens)
        for tokens, slots in passed.rollout.extend:
            rollout += Work(tokens=tokens, pairs=tokens * (passed.prompt + slots))
        met = passed.rows * passed.response * (passed.prompt + passed.response)
        # Chunks of logits in which nothing was sampled are passed over.
        update = prompts + Work(tokens=passed.packed, pairs=met, logits=true["sampled_tokens"])
        return (
            self.operations(rollout, pictures(passed.images, *passed.rollout.crops))[0],
            self.operations(update, pictures(passed.images, passed.update_crops))[1],
        )

    def decode_bytes(self, true: Mapping[str, float], steps: int, copies: int) -> float:
        """Bytes that decoding has to read at the least: in every step each copy of the weights, and each key and value
        of the prompts, once per group that still samples, and of the responses."""
        text = self.backbone.text
        slot = 2 * self.width * text.num_layers * text.num_kv_heads * text.head_width
        weights = copies * steps * self.width * (self.sizes.decoder + self.sizes.head)
        return weights + slot * (true["prompt_keys"] + true["sampled_keys"])


# ------------------------------------------------------------------------------------------------------------ figures


def speeds(
    true: Mapping[str, float],
    passed: Passed,
    policy: Policy,
    seconds: Mapping[str, float],
    limits: Limits | None,
    copies: int = 1,
) -> dict[str, float]:
    """Figures of one step for `metrics.jsonl`, without their prefix `speed/`.

    Args:
        true: totals of `true_counts`.
        seconds: by phase, as `metrics.jsonl` has them; the rollout is all of `ROLLOUT_PHASES`.
        limits: of all devices; without them there are no shares.
        copies: of the weights, over all devices.
    """
    rolling = sum(seconds.get(name, 0.0) for name in ROLLOUT_PHASES)
    sampled, trained = true["sampled_tokens"], true["prompt_tokens"] + true["response_tokens"]
    rollout, update = policy.true_operations(true)
    passed_rollout, passed_update = policy.passed_operations(passed, true)
    found = {
        "sampled_tokens_per_second": sampled / rolling,
        "trained_tokens_per_second": policy.updates * trained / seconds["update"],
        "model_flops_rollout": rollout,
        "model_flops_update": update,
        "processed_flops_rollout": passed_rollout,
        "processed_flops_update": passed_update,
    }
    if limits:
        reading = policy.decode_bytes(true, passed.rollout.steps, copies) / limits.bandwidth
        found |= {
            "utilisation_rollout": rollout / rolling / limits.peak,
            "utilisation_update": update / seconds["update"] / limits.peak,
            "decode_bandwidth_share": reading / seconds["decode"],
        }
    return found
