"""Timing by turns: every contender runs once in each round, so that a machine that drifts hits all of them."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Times = dict[str, list[float]]


def take_turns(
    contenders: Mapping[str, Callable[[], Any]],
    runs: int,
    check: Callable[[str, Any], None],
    prepare: Callable[[str], None] = lambda name: None,
) -> Times:
    """Seconds of each contender, run by run: one round to warm up (compile, allocate), then `runs` rounds that count.

    Args:
        contenders: functions that do the whole work and return only when it is done.
        runs: rounds.
        check: takes a contender's name and its result; raises AssertionError where it is not the work that was asked
            for. Called for every run, outside its time.
        prepare: called with a name before each of its runs, outside its time.
    """
    times: Times = {name: [] for name in contenders}
    for run in range(runs + 1):
        for name, function in contenders.items():
            prepare(name)
            began = time.perf_counter()
            result = function()
            seconds = time.perf_counter() - began
            check(name, result)
            del result
            if run:
                times[name].append(seconds)
            print(f"{name}: {'warm-up' if not run else f'run {run}'}: {seconds:.4f} s", file=sys.stderr, flush=True)
    return times


def back_to_back(function: Callable[[], Any], runs: int, check: Callable[[Any], None]) -> list[float]:
    """Seconds of `runs` runs in a row, after one that does not count."""
    times = []
    for run in range(runs + 1):
        began = time.perf_counter()
        result = function()
        seconds = time.perf_counter() - began
        check(result)
        if run:
            times.append(seconds)
    return times


def best_of(function: Callable[[], Any], repeats: int = 7, calls: int = 1) -> float:
    """Seconds of one call: the fastest of `repeats` rounds of `calls` calls, after one that does not count."""
    function()
    rounds = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        rounds.append((time.perf_counter() - began) / calls)
    return min(rounds)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of one value, that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(times: Times, ours: str, peer: str) -> dict[str, float]:
    """How many times faster `ours` is than `peer`: ratio of the medians, and quartiles of the rounds' own ratios."""
    low, middle, high = quartiles([theirs / mine for theirs, mine in zip(times[peer], times[ours], strict=True)])
    return {
        "ratio_of_medians": statistics.median(times[peer]) / statistics.median(times[ours]),
        "paired_first_quartile": low,
        "paired_median": middle,
        "paired_third_quartile": high,
    }


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log size, by least squares: 1 is linear."""
    x, y = [math.log(v) for v in sizes], [math.log(v) for v in seconds]
    return statistics.linear_regression(x, y).slope
