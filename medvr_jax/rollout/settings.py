"""Shapes and rules of a rollout, and the short lists of sizes that follow from them."""

from __future__ import annotations

import dataclasses

from medvr_jax.inputs.buckets import halvings, two_thirds
from medvr_jax.rollout.evr import EvrSettings

SHORTEST_CACHE, CACHE_LENGTHS, CROP_COUNTS, CROP_SIZES = 128, 4, 5, 3


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """Shapes and rules of a rollout; see `configs/base.py`, sections prompt, rollout and evr.

    surveyed_prompts: what a survey of the data found to be good sizes of prompts.
    sizes: at most so many of each kind, the largest of those that there are.
    """

    trajectories: int
    temperature: float
    max_turns: int
    response_length: int
    observation_length: int
    prompt_bucket: int
    prompt_images: int
    prompt_patches: int
    crop_patches: int
    smallest_crop: int
    merge_unit: int
    tools: bool
    evr: EvrSettings | None
    surveyed_prompts: tuple[tuple[int, int], ...] = ()
    sizes: int = CROP_COUNTS

    @property
    def prompt_sizes(self) -> tuple[tuple[int, int], ...]:
        """(tokens, patches of an image) that batches of prompts are padded to, ascending: what a survey of the data
        found, and the most that is allowed."""
        largest = (self.prompt_bucket, self.prompt_patches)
        return self.surveyed_prompts if self.surveyed_prompts[-1:] == (largest,) else (*self.surveyed_prompts, largest)

    def of_prompts(self, tokens: int, patches: int) -> RolloutSettings:
        """The settings with prompts of this size alone."""
        return dataclasses.replace(self, prompt_bucket=tokens, prompt_patches=patches, surveyed_prompts=())

    @property
    def tool_turns(self) -> int:
        """Z: turns after which a crop may come back."""
        return self.max_turns - 1 if self.tools else 0

    @property
    def crop_slots(self) -> int:
        """C: crops that a group may see, all turns together."""
        return self.tool_turns * self.trajectories

    @property
    def crop_features(self) -> int:
        """F: rows of features for each crop."""
        return self.crop_patches // self.merge_unit

    @property
    def cache_lengths(self) -> tuple[int, ...]:
        """Slots of the response cache, which grows from one of these to the next: at most half of a longer one is
        padding, if there are no fewer sizes than these."""
        return halvings(self.response_length, smallest=SHORTEST_CACHE, steps=min(CACHE_LENGTHS, self.sizes))

    @property
    def crop_counts(self) -> tuple[int, ...]:
        """New crops per group that are encoded in one call. Of more than the smallest number, at most a third is
        padding; of 16 the sizes are 4, 6, 8, 11 and 16."""
        return two_thirds(self.trajectories, smallest=2, steps=min(CROP_COUNTS, self.sizes))

    @property
    def observation_sizes(self) -> tuple[tuple[int, int], ...]:
        """(patches of a crop, tokens of an observation) of one call, ascending: the largest, a half and a quarter of
        its patches. Of crops larger than the smallest of these at most half is padding."""
        features = -(-self.smallest_crop // self.merge_unit)
        sizes = halvings(self.crop_features, smallest=max(features, 1), steps=min(CROP_SIZES, self.sizes))
        text = self.observation_length - self.crop_features
        return tuple((size * self.merge_unit, text + size) for size in sizes if text + size > 0)

    @property
    def base_slots(self) -> int:
        """Trajectories that start at once: half of M when there are forks, else all."""
        return self.trajectories // 2 if self.evr else self.trajectories

    @property
    def decision_records(self) -> int:
        """Q: room for every base trajectory's decision in each turn and each pass."""
        return self.base_slots * (self.max_turns + self.evr.max_passes) if self.evr else 0
