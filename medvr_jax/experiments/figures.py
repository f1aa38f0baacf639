"""The figures of `docs/theory.md`: `python -m medvr_jax.experiments.figures --output=docs/theory`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from medvr_jax.experiments import theory
from medvr_jax.experiments.plots import Line, Plot, draw
from medvr_jax.experiments.theory import BoxKinds, Prefixes

_OUTPUT = flags.DEFINE_string("output", "docs/theory", "Folder for the SVG files; made if it does not exist.")

# A policy with a habit: three of four trajectories name it and then write its box; one in four searches.
HABIT, SEARCH = 0.75, 0.25
HABIT_SUCCESS, SEARCH_SUCCESS = 0.02, 0.12
SEARCH_DELTA_H, HABIT_DELTA_H = 0.26, -0.3  # P = .63 at γ = .5
TRAJECTORIES, P_BASE, GAMMA = 16, 0.5, 0.5
CORRECT = 8  # n of the consensus figures

Spending = Callable[[Prefixes, int], float]


def policy(fork: Sequence[float] | float, search_success: float = SEARCH_SUCCESS) -> Prefixes:
    """The policy with a habit, its searches that good, forked with P (habit, search)."""
    return Prefixes.of([HABIT, SEARCH], [HABIT_SUCCESS, search_success], fork)


def gain(known: Prefixes, spending: Spending, trajectories: int = TRAJECTORIES) -> float:
    """Of the chance of a success in a group, forks against as many fresh samples."""
    return theory.no_success_fresh(known, trajectories) - spending(known, trajectories)


def curve(name: str, xs: Sequence[float] | np.ndarray, function: Callable[[float], float]) -> Line:
    """A line of a function."""
    return Line(name, [(float(x), function(x)) for x in xs])


def when_forks_help() -> Plot:
    """Against how good the searches are."""
    xs = np.linspace(0, 0.3, 61)
    gated = theory.fork_chance([HABIT_DELTA_H, SEARCH_DELTA_H], P_BASE, GAMMA, 0.0)
    one, repeated = theory.no_success_one_pass, theory.no_success_repeated
    return Plot(
        "Forks help where the uncertain prefix is the better one",
        "s of the uncertain prefix (the habit's is .02)",
        "gain in P(at least one success)",
        [
            curve("entropy gate, repeated passes", xs, lambda s: gain(policy(gated, s), repeated)),
            curve("entropy gate, one pass", xs, lambda s: gain(policy(gated, s), one)),
            curve("no gate, one P for all, one pass", xs, lambda s: gain(policy(gated[1], s), one)),
            curve("no gate, one P for all, repeated passes", xs, lambda s: gain(policy(gated[1], s), repeated)),
        ],
    )


def gamma_and_the_gate() -> Plot:
    """Against γ, with the gate and without."""
    xs = np.linspace(0, 3, 61)

    def fork(gamma: float, threshold: float) -> np.ndarray:
        return theory.fork_chance([HABIT_DELTA_H, SEARCH_DELTA_H], P_BASE, gamma, threshold)

    one, repeated = theory.no_success_one_pass, theory.no_success_repeated
    return Plot(
        "The gate does the work, γ adds little to it",
        "γ, at ΔH = .26 of the search and −.3 of the habit",
        "gain in P(at least one success)",
        [
            curve("gate ΔH > 0, repeated passes", xs, lambda g: gain(policy(fork(g, 0.0)), repeated)),
            curve("gate ΔH > 0, one pass", xs, lambda g: gain(policy(fork(g, 0.0)), one)),
            curve("no gate, one pass", xs, lambda g: gain(policy(fork(g, -np.inf)), one)),
            curve("no gate, repeated passes", xs, lambda g: gain(policy(fork(g, -np.inf)), repeated)),
        ],
    )


def size_of_the_group() -> Plot:
    """The chance of a success against M."""
    xs = range(2, 33, 2)
    known = policy(theory.fork_chance([HABIT_DELTA_H, SEARCH_DELTA_H], P_BASE, GAMMA, 0.0))
    spendings = {
        "forks, repeated passes": theory.no_success_repeated,
        "forks, one pass": theory.no_success_one_pass,
        "fresh samples only": theory.no_success_fresh,
    }
    return Plot(
        "What a fork is worth in fresh samples",
        "M, trajectories of a group",
        "P(at least one success)",
        [curve(name, xs, lambda m, none=none: 1 - none(known, int(m))) for name, none in spendings.items()],
        0,
        1,
    )


def majority_at_the_lesion() -> Plot:
    """The chance of a right consensus against purity."""
    xs = np.linspace(0, 1, 101)
    lines = [curve(f"n = {n}", xs, lambda rho, n=n: theory.right_consensus(rho, n)) for n in (1, 2, 4, 8, 16)]
    return Plot(
        "A vote makes good purity better and bad purity worse",
        "purity ρ, the share of hits among n correct trajectories",
        "P(consensus at the lesion)",
        lines,
        0,
        1,
    )


def gap_against_habits() -> Plot:
    """The gap of the tool reward against purity, for more and more habits."""
    xs = np.linspace(0, 1, 101)
    names = {1: "misses share one habit's box", 3: "misses spread over 3 boxes", 10: "misses spread over 10 boxes"}
    return Plot(
        "Below 1 / (habits + 1) the consensus pays for the habit",
        f"purity ρ; n = {CORRECT} correct trajectories",
        "gap of R_tool, hit − lucky miss",
        [curve(name, xs, lambda rho, k=k: theory.habit_gap(rho, CORRECT, k)) for k, name in names.items()],
    )


def gap_without_habits() -> Plot:
    """The same where popular looks have no vote."""
    xs = np.linspace(0, 1, 401)
    rules = {
        "all vote": (1.0, np.inf),
        "none above a popularity of .3": (0.3, np.inf),
        "none above .1": (0.1, np.inf),
        "none above .1, findings at 5 places": (0.1, 5),
    }
    return Plot(
        "A habit gives itself away, as long as findings have many places",
        f"purity ρ; n = {CORRECT} correct trajectories, misses spread over 3 boxes",
        "gap of R_tool, hit − lucky miss",
        [
            curve(name, xs, lambda rho, rule=rule: theory.habit_gap_of_votes(rho, CORRECT, 3, *rule))
            for name, rule in rules.items()
        ],
    )


def around(step: int, side: int, lesion: tuple[int, int] = (210, 238)) -> list[tuple[int, int, int, int]]:
    """All boxes of that side, on a lattice of that step, that hold the whole lesion (low, high on both axes)."""
    places = range(lesion[1] - side, lesion[0] + 1, step)
    return [(x, y, x + side, y + side) for x in places for y in places]


def gap_against_lattice() -> Plot:
    """The same where hits are all boxes that hold the lesion, for boxes and lattices of several sizes."""
    xs = np.linspace(0, 1, 26)
    habit = (0, 0, 42, 42)
    exact, coarse = BoxKinds.of([habit], [(100, 100, 142, 142)]), BoxKinds.of(around(14, 42), [habit])
    fine, large = BoxKinds.of(around(7, 42), [habit]), BoxKinds.of(around(14, 56), [habit])

    def line(name: str, kinds: BoxKinds, eta: float = 0.5) -> Line:
        gaps = theory.tool_reward_gap(kinds, xs, CORRECT, eta=eta)
        return Line(name, list(zip(xs.tolist(), gaps.tolist(), strict=True)))

    return Plot(
        "Hits must be able to agree",
        f"purity ρ; n = {CORRECT} correct trajectories, one habit",
        "gap of R_tool, hit − lucky miss",
        [
            line("all hits have the same box", exact),
            line("56 px boxes on a 14 px lattice (9 hold the lesion)", large),
            line("42 px on 7 px (9)", fine),
            line("42 px on 14 px (4), η = .4", coarse, 0.4),
            line("42 px on 14 px (4), η = .5", coarse),
        ],
    )


FIGURES: dict[str, Callable[[], Plot]] = {
    "forks_help": when_forks_help,
    "forks_gamma": gamma_and_the_gate,
    "forks_group": size_of_the_group,
    "consensus_majority": majority_at_the_lesion,
    "consensus_habits": gap_against_habits,
    "consensus_votes": gap_without_habits,
    "consensus_lattice": gap_against_lattice,
}


def write(folder: Path) -> None:
    """Draws all figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in FIGURES.items():
        (folder / f"{name}.svg").write_text(draw(plot()), encoding="utf-8")


def main(argv: Sequence[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unknown argument {argv[1]}; the only one is --output=FOLDER")
    write(Path(_OUTPUT.value))


if __name__ == "__main__":
    app.run(main)
