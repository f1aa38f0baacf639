"""Timing by turns: every contender runs once in each round, so that a machine that drifts hits all of them."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Times = dict[str, list[float]]


@dataclasses.dataclass
class Quiet:
    """Which rounds count on a machine that others use too: those in which they took at most `share` of its time.

    A round that was disturbed is run again, `patience` times at most for each one that counts; then it counts.
    """

    share: float = 0.08
    patience: int = 4
    repeated: int = 0

    def wait(self, seconds: float = 60.0) -> None:
        """Until others leave the machine alone, but no longer than this."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            before = _busy()
            time.sleep(0.5)
            if _others(before, _busy()) <= self.share:
                return


QUIET = Quiet()


def take_turns(
    contenders: Mapping[str, Callable[[], Any]],
    runs: int,
    check: Callable[[str, Any], float | None],
    prepare: Callable[[str], None] = lambda name: None,
) -> Times:
    """Seconds of each contender, run by run: one round to warm up (compile, allocate), then `runs` rounds that count.

    Args:
        contenders: functions that do the whole work and return only when it is done.
        runs: rounds.
        check: takes a contender's name and its result; raises AssertionError where it is not the work that was asked
            for. Called for every run, outside its time. A number that it returns is what counts of the run, in seconds.
        prepare: called with a name before each of its runs, outside its time.
    """
    times: Times = {name: [] for name in contenders}
    run, patience = 0, QUIET.patience * runs
    while run <= runs:
        if run:
            QUIET.wait()
        before, found = _busy(), {}
        for name, function in contenders.items():
            prepare(name)
            began = time.perf_counter()
            result = function()
            found[name] = time.perf_counter() - began
            part = check(name, result)
            found[name] = found[name] if part is None else part
            del result
        disturbed = _others(before, _busy())
        shown = ", ".join(f"{name} {seconds:.4f} s" for name, seconds in found.items())
        print(f"round {run or 'to warm up'}: {shown}; others {disturbed:.0%}", file=sys.stderr, flush=True)
        if run and disturbed > QUIET.share and patience:
            patience -= 1
            QUIET.repeated += 1
            continue
        for name, seconds in found.items():
            if run:
                times[name].append(seconds)
        run += 1
    return times


def _busy() -> tuple[float, float, float]:
    """Seconds since some time: of all cores in all, of all cores busy, of this process; zeros where unknown."""
    try:
        with open("/proc/stat", encoding="utf-8") as stream:
            ticks = [int(value) for value in stream.readline().split()[1:9]]
    except OSError:
        return 0.0, 0.0, 0.0
    tick = os.sysconf("SC_CLK_TCK")
    own = os.times()
    idle = ticks[3] + ticks[4]
    return sum(ticks) / tick, (sum(ticks) - idle) / tick, own.user + own.system


def _others(before: tuple[float, float, float], after: tuple[float, float, float]) -> float:
    """The share of the machine that other processes took between two readings."""
    whole, busy, own = (b - a for a, b in zip(before, after, strict=True))
    return max(busy - own, 0.0) / whole if whole else 0.0


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
