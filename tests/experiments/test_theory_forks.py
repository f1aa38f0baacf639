"""The closed forms of forking: against the real sampling loop, against each other, and in the cases one can think
through."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from medvr_jax.experiments import theory
from medvr_jax.experiments.theory import Prefixes
from medvr_jax.rollout.state import BASE, EMPTY, FORK, FRESH, TURN_ENDED, RolloutState
from tests.experiments.scripted import BASE_TOKENS, FIRST, WORDS, Case, Z, roll_out

CASES = (
    Case((0.75, 0.25), (0.02, 0.3), (1, 1), (1, 2)),  # a habit and a search, EVR's defaults
    Case((0.4, 0.35, 0.25), (0.3, 0.15, 0.05), (2, 5, 7), (1, 2, 8), 0.2, 0.5, 0.3, 3),  # the uncertain ones are worse
    Case((0.1, 0.3, 0.2, 0.4), (0.4, 0.3, 0.2, 0.01), (7, 4, 2, 1), (8, 3, 2, 1), 0.4, 0.0, -9.0, 1),  # no gate, no γ
    Case((0.25, 0.25, 0.25, 0.25), (0.5, 0.25, 0.1, 0.05), (6, 7, 3, 1), (5, 2, 2, 1), 0.3, 2.0, 0.1, 1),  # P = 1 twice
    Case((0.5, 0.3, 0.2), (0.05, 0.2, 0.4), (1, 7, 7), (1, 3, 5), 0.2, 0.05, 0.2, 2),  # budget is left
    Case((0.6, 0.4), (0.2, 0.35), (1, 6), (1, 8), 0.35, 0.25, 0.4),
)
GROUPS = {7: 3000, 16: 1500}
SCALE = {7: 0.7, 16: 0.3}  # of the successes, so that groups without one are neither rare nor all
SPENDINGS = [(m, repeated) for m in GROUPS for repeated in (False, True)]


def cases(trajectories: int) -> tuple[Case, ...]:
    scale = SCALE[trajectories]
    return tuple(dataclasses.replace(case, success=tuple(scale * s for s in case.success)) for case in CASES)


def prefixes(case: Case) -> Prefixes:
    """From the distributions that the backbone is given to P_z, in float64."""
    first, coordinates = case.distributions()
    h_tool = theory.entropy(coordinates[: len(case.chance)]).mean(1)
    delta_h = h_tool - theory.entropy(first) / BASE_TOKENS
    fork = theory.fork_chance(delta_h, case.p_base, case.gamma, case.threshold)
    return Prefixes.of(case.chance, case.success, fork)


@functools.cache
def rolled(trajectories: int, repeated: bool) -> RolloutState:
    return roll_out(cases(trajectories), trajectories, repeated, GROUPS[trajectories])


def by_case(state: RolloutState) -> tuple[np.ndarray, np.ndarray]:
    """Of every trajectory its prefix, and whether its first coordinate is the lesion's: `[cases, groups, M]`."""
    prefix = state.tokens[:, :, 1] - FIRST
    coordinate = np.take_along_axis(state.tokens, (4 + WORDS[prefix])[..., None], axis=2)[..., 0]
    shape = (len(CASES), -1, prefix.shape[1])
    return prefix.reshape(shape), (coordinate == FIRST).reshape(shape)


def exact(prefixes: Prefixes, trajectories: int, repeated: bool, max_passes: int) -> float:
    if repeated:
        return theory.no_success_repeated(prefixes, trajectories, max_passes)
    return theory.no_success_one_pass(prefixes, trajectories)


@pytest.mark.parametrize(("trajectories", "repeated"), SPENDINGS)
def test_the_loop_fails_as_often_as_the_closed_form_says(trajectories: int, repeated: bool) -> None:
    """6 settings each, 24 in all: groups without a success are counted."""
    state = rolled(trajectories, repeated)
    _, success = by_case(state)
    for case, hits in zip(cases(trajectories), success, strict=True):
        expected = exact(prefixes(case), trajectories, repeated, case.max_passes)
        error = np.sqrt(expected * (1 - expected) / len(hits))
        assert abs((~hits.any(1)).mean() - expected) < 3 * error, (case, expected)


@pytest.mark.parametrize(("trajectories", "repeated"), SPENDINGS)
def test_the_loop_forks_whom_the_closed_form_forks(trajectories: int, repeated: bool) -> None:
    """The same with the boxes' own luck averaged out: Π (1 - s_z) over a group's trajectories, a far sharper measure.
    The formula of the other spending, one more or one fewer pass, or no forks, would be seen in it."""
    state = rolled(trajectories, repeated)
    prefix, _ = by_case(state)
    wrong = 0
    for case, kinds in zip(cases(trajectories), prefix, strict=True):
        failure = np.prod(1 - np.array([*case.success, 0, 0])[kinds], axis=1)
        error = failure.std() / np.sqrt(len(failure))

        def deviation(expected: float, mean: float = failure.mean(), error: float = error) -> float:
            return abs(mean - expected) / error

        known = prefixes(case)
        assert deviation(exact(known, trajectories, repeated, case.max_passes)) < 3, case
        wrong += deviation(exact(known, trajectories, not repeated, case.max_passes)) > 3
        wrong += deviation(theory.no_success_fresh(known, trajectories)) > 3
        wrong += repeated and deviation(exact(known, trajectories, True, case.max_passes + 1)) > 3
    assert wrong >= 7


@pytest.mark.parametrize(("trajectories", "repeated"), SPENDINGS)
def test_what_the_closed_forms_stand_on_happened(trajectories: int, repeated: bool) -> None:
    """Every slot is used, children have their parent's prefix, and all ways of spending occur."""
    state = rolled(trajectories, repeated)
    assert (state.status == TURN_ENDED).all() and not (state.status == EMPTY).any()
    prefix = state.tokens[:, :, 1]
    child = state.origin == FORK
    parents = np.take_along_axis(prefix, np.maximum(state.parent, 0), axis=1)
    assert (prefix == parents)[child].all()
    assert (state.origin[:, : trajectories // 2] == BASE).all()
    shares = [(state.origin == origin).mean() for origin in (FORK, FRESH)]
    assert min(shares) > 0.05, shares
    # Repeated spending runs out of slots in the middle of a pass: some parents have one child more than later ones.
    children = np.stack([(child & (state.parent == m)).sum(1) for m in range(trajectories // 2)], axis=1)
    assert (children.max() > 1) == repeated


@pytest.mark.parametrize("repeated", [False, True])
def test_random_forks_fail_as_often_as_one_chance_for_all_says(repeated: bool) -> None:
    """The control: every box is eligible, with P_base, though the loop sees the same entropies as above."""
    state, wrong = roll_out(cases(7), 7, repeated, GROUPS[7], gate="random"), 0
    for case, kinds, hits in zip(cases(7), *by_case(state), strict=True):
        blind = Prefixes.of(case.chance, case.success, case.p_base)
        expected = exact(blind, 7, repeated, case.max_passes)
        failed = ~hits.any(1)
        failure = np.prod(1 - np.array([*case.success, 0, 0])[kinds], axis=1)
        error = failure.std() / np.sqrt(len(failure))
        assert abs(failed.mean() - expected) < 3 * np.sqrt(expected * (1 - expected) / len(failed)), case
        assert abs(failure.mean() - expected) < 3 * error, case
        gated = exact(prefixes(case), 7, repeated, case.max_passes)
        wrong += abs(failure.mean() - gated) > 3 * error
    assert wrong >= 3


def test_uncertain_forks_begin_at_the_coordinate_of_the_highest_entropy() -> None:
    """At the first of the two or at the second, whose parent's first is then kept; asked at once or in a later pass."""
    groups = 300
    state = roll_out(cases(7), 7, True, groups, position="uncertain")
    highest = np.zeros((len(CASES), Z), int)
    for i, case in enumerate(cases(7)):
        highest[i] = np.argmax(theory.entropy(case.distributions()[1]), axis=1)
    prefix = np.asarray(state.tokens)[:, :, 1] - FIRST
    which = highest[np.repeat(np.arange(len(CASES)), groups)[:, None], prefix]
    first = 4 + WORDS[prefix]
    child, parent = state.origin == FORK, np.maximum(state.parent, 0)
    np.testing.assert_array_equal(state.fork_position[child], (first + which)[child])
    own = np.take_along_axis(state.tokens, first[..., None], axis=2)[..., 0]
    kept = own == np.take_along_axis(own, parent, axis=1)
    assert kept[child & (which == 1)].all() and not kept[child & (which == 0)].all()
    assert min((child & (which == k)).sum() for k in (0, 1)) > 100


def brute_force(known: Prefixes, trajectories: int, max_passes: int) -> float:
    """All prefixes of all base slots, all sets of askers, slots handed out one by one in slot order."""
    p, s, fork = known
    base, fresh = trajectories // 2, 1 - known.mean_success

    def spend(kinds: tuple[int, ...], free: int, passes: int) -> float:
        if passes < 0 or not free:
            return fresh**free
        total = 0.0
        for asks in itertools.product((False, True), repeat=base):
            chance = np.prod([fork[z] if a else 1 - fork[z] for z, a in zip(kinds, asks, strict=True)])
            if chance:
                served = [z for z, a in zip(kinds, asks, strict=True) if a][:free]
                failed = np.prod([1 - s[z] for z in served])
                total += chance * failed * spend(kinds, free - len(served), passes - 1)
        return total

    return sum(
        np.prod([p[z] * (1 - s[z]) for z in kinds]) * spend(kinds, trajectories - base, max_passes)
        for kinds in itertools.product(range(len(p)), repeat=base)
    )


MIXED = Prefixes.of([0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.7, 0.0, 0.4])
ALL_OPEN = Prefixes.of([0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.9, 0.2, 1.0])


@pytest.mark.parametrize("known", [MIXED, ALL_OPEN])
@pytest.mark.parametrize("trajectories", [2, 3, 6, 7])
def test_repeated_spending_is_the_sum_over_everything_that_can_happen(known: Prefixes, trajectories: int) -> None:
    for passes in (0, 1, 2):
        expected = brute_force(known, trajectories, passes)
        assert theory.no_success_repeated(known, trajectories, passes) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("trajectories", [1, 2, 7, 16])
def test_no_further_pass_is_one_pass(trajectories: int) -> None:
    for known in (MIXED, ALL_OPEN):
        one = theory.no_success_one_pass(known, trajectories)
        assert theory.no_success_repeated(known, trajectories, 0) == pytest.approx(one, abs=1e-13)


def test_passes_without_a_limit_use_the_whole_budget() -> None:
    for s in (0.05, 0.4, 0.9):
        known = Prefixes.of([0.3, 0.5, 0.2], [0.1, s, 0.3], [0.0, 0.35, 0.0])
        limit = theory.no_success_until_used(known, 16)
        assert theory.no_success_repeated(known, 16, 200) == pytest.approx(limit, abs=1e-13)


def random_prefixes(seed: int) -> Prefixes:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 5))
    return Prefixes.of(rng.dirichlet(np.ones(count)), rng.random(count), rng.random(count) * (rng.random(count) < 0.7))


@pytest.mark.parametrize("seed", range(40))
def test_one_fork_each_helps_if_and_only_if_the_condition_holds(seed: int) -> None:
    known = random_prefixes(seed)
    pair = theory.no_success_fresh(known, 2) - theory.no_success_one_pass(known, 2)
    assert pair == pytest.approx(theory.pair_gain(known), abs=1e-14)
    gain = theory.no_success_fresh(known, 16) - theory.no_success_one_pass(known, 16)
    assert abs(pair) < 1e-12 or np.sign(gain) == np.sign(pair)


@pytest.mark.parametrize("seed", range(20))
def test_forks_without_information_never_help(seed: int) -> None:
    """One P for all prefixes: the pair loses P Var(s), and repeated spending loses more."""
    known = random_prefixes(seed)
    blind = Prefixes.of(known.chance, known.success, 0.6)
    variance = known.chance @ (known.success - known.mean_success) ** 2
    assert theory.pair_gain(blind) == pytest.approx(-0.6 * variance, abs=1e-14)
    fresh = theory.no_success_fresh(blind, 12)
    one, repeated = theory.no_success_one_pass(blind, 12), theory.no_success_repeated(blind, 12)
    assert fresh <= one + 1e-14 and one <= repeated + 1e-14


def test_one_prefix_makes_forks_fresh_samples() -> None:
    known = Prefixes.of([1.0], [0.13], [0.6])
    assert theory.pair_gain(known) == pytest.approx(0, abs=1e-16)
    for spent in (theory.no_success_one_pass(known, 16), theory.no_success_repeated(known, 16)):
        assert spent == pytest.approx(theory.no_success_fresh(known, 16), abs=1e-14)


@pytest.mark.parametrize(("uncertain", "sign"), [(0.1, -1), (0.3, 0), (0.5, 1)])
def test_a_gate_helps_if_and_only_if_the_uncertain_are_better(uncertain: float, sign: int) -> None:
    """And repeated spending gives more of it, gain or loss, than one fork each."""
    known = Prefixes.of([0.7, 0.3], [0.3, uncertain], [0.0, 0.6])
    fresh = theory.no_success_fresh(known, 8)
    one, repeated = fresh - theory.no_success_one_pass(known, 8), fresh - theory.no_success_repeated(known, 8)
    assert [int(np.sign(round(x, 14))) for x in (theory.pair_gain(known), one, repeated)] == [sign] * 3
    assert abs(repeated) > abs(one) or not sign


def test_a_habit_repeats_itself_and_a_search_does_not() -> None:
    """A habit's box hits on a share of the images always, on the others never; a search hits with that chance each
    time. Their averages are equal: a pair gains nothing, every larger group does."""
    share, search = 0.3, 0.25

    def over_images(trajectories: int, forked: bool) -> float:
        images = [(share, Prefixes.of([1 - search, search], [1.0, share], [0.0, 0.6]))]
        images += [(1 - share, Prefixes.of([1 - search, search], [0.0, share], [0.0, 0.6]))]
        formula = theory.no_success_one_pass if forked else theory.no_success_fresh
        return sum(weight * formula(known, trajectories) for weight, known in images)

    gains = [over_images(m, False) - over_images(m, True) for m in (2, 4, 8, 16)]
    assert gains[0] == pytest.approx(0, abs=1e-15)
    assert min(gains[1:]) > 0.01


def test_gamma_matters_less_than_the_gate() -> None:
    """The toy task's P of .50 to .63 against a gate that lets everybody through."""

    def gain(fork: list[float]) -> float:
        known = Prefixes.of([0.75, 0.25], [0.0, 0.12], fork)
        return theory.no_success_fresh(known, 16) - theory.no_success_repeated(known, 16)

    assert abs(gain([0, 0.63]) - gain([0, 0.5])) < 0.1 * gain([0, 0.5])
    assert gain([0.5, 0.63]) < 0.1 * gain([0, 0.5])


def test_the_gate_and_the_clip() -> None:
    chance = theory.fork_chance([-1.0, 0.0, 0.2, 3.0], 0.5, 0.5, 0.0)
    np.testing.assert_allclose(chance, [0, 0, 0.6, 1.0])
