"""What the short lists of sizes may waste, for every need that can occur, and how many programs they ask for."""

from __future__ import annotations

import dataclasses

import pytest

from medvr_jax.inputs.buckets import bucket, halvings, two_thirds
from medvr_jax.rollout.settings import RolloutSettings
from medvr_jax.training.update import update_sizes


def settings(**changes: object) -> RolloutSettings:
    """The shapes of MedVR's recipe for 7B."""
    seven = RolloutSettings(
        trajectories=16, temperature=1.0, max_turns=5, response_length=4096, observation_length=640,
        prompt_bucket=1024, prompt_images=1, prompt_patches=2048, crop_patches=2048, smallest_crop=16, merge_unit=4,
        tools=True, evr=None,
    )  # fmt: skip
    return dataclasses.replace(seven, **changes)


def worst(sizes: tuple[int, ...]) -> float:
    """The largest share of a size that is padding, over all needs above the smallest size."""
    return max((1 - need / bucket(need, sizes) for need in range(sizes[0] + 1, sizes[-1] + 1)), default=0.0)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 16, 17, 64, 1000])
def test_waste_of_lists(limit: int) -> None:
    halves, thirds = (make(limit, smallest=2, steps=5) for make in (halvings, two_thirds))
    for sizes in (halves, thirds):
        assert sizes == tuple(sorted(set(sizes))) and sizes[-1] == limit and len(sizes) <= 5
        assert sizes[0] >= min(limit, 2)
    assert worst(halves) < 1 / 2 and worst(thirds) < 1 / 3


@pytest.mark.parametrize("slots", range(1, 33))
def test_crops_of_a_call(slots: int) -> None:
    """A third is padding, or there are no more of it than a quarter of the group would be."""
    sizes = settings(trajectories=slots).crop_counts
    assert sizes[-1] == slots and sizes[0] <= max(2, slots / 4 + 1) and len(sizes) <= 5
    assert worst(sizes) < 1 / 3


def test_cache_lengths() -> None:
    assert worst(settings().cache_lengths) < 1 / 2


@pytest.mark.parametrize("shape", [{}, {"trajectories": 16, "response_length": 112, "max_turns": 2}])
def test_tokens_and_crops_of_an_update(shape: dict[str, int]) -> None:
    rollout = settings(**shape)
    sizes = update_sizes(rollout)
    assert len(sizes) <= 16
    for length in rollout.cache_lengths:
        tokens = tuple(size.tokens for size in sizes if size.length == length)
        crops = tuple(size.crops for size in sizes if size.length == length)
        most = rollout.trajectories * length
        assert (tokens[-1], crops[-1]) == (most, rollout.crop_slots) and tokens[0] <= most / 3 + 1
        # A size is rounded up: one more may be padding than a third.
        for kind in (tokens, crops):
            assert all(size - below <= size / 3 + 1 for below, size in zip(kind, kind[1:], strict=False))


@pytest.mark.parametrize(("patches", "tokens"), [(2048, 640), (64, 48), (100, 60), (2048, 200)])
def test_crops_of_a_turn(patches: int, tokens: int) -> None:
    """Each size leaves the observation's text as much room as the largest does."""
    rollout = settings(crop_patches=patches, observation_length=tokens)
    sizes = rollout.observation_sizes
    assert sizes[-1] == (patches, tokens) and len(sizes) <= 3
    assert {room - size // 4 for size, room in sizes} == {tokens - patches // 4}
    assert worst(tuple(size // 4 for size, _ in sizes)) < 1 / 2 and all(room > 0 for _, room in sizes)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_sizes_are_the_largest_ones(count: int) -> None:
    few, all_of_them = settings(sizes=count), settings()
    for name in ("cache_lengths", "crop_counts", "observation_sizes"):
        expected = getattr(all_of_them, name)[-count:]
        assert getattr(few, name) == expected and len(expected) == min(count, len(getattr(all_of_them, name)))
    largest = update_sizes(all_of_them)[-1]
    assert update_sizes(few)[-1] == largest and len(update_sizes(few)) == min(count, 4) * len(few.cache_lengths)
    assert count > 1 or update_sizes(few) == (largest,)


def test_crops_of_one_size_need_one_program() -> None:
    assert settings(crop_patches=64, smallest_crop=64, observation_length=48).observation_sizes == ((64, 48),)
