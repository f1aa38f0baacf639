"""Timing by turns: every contender runs once in each round, so that a machine that drifts hits all of them."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

Times = dict[str, list[float]]


@dataclasses.dataclass
class Quiet:
    """Which rounds count on a machine that others use too: those in which they took at most `share` of its time.

    Before a round we wait for that, `seconds` at most. A round that was disturbed is run again, `patience` times at
    most for each one that counts; then it counts. With 0 seconds we neither wait nor run any round again.
    """

    share: float = 0.08
    patience: int = 4
    seconds: float = 60.0
    repeated: int = 0
    disturbed: int = 0  # rounds that counted all the same

    def wait(self) -> None:
        """Until others leave the machine alone, but no longer than `seconds`; says so."""
        end, said = time.monotonic() + self.seconds, False
        while time.monotonic() < end:
            before = _busy()
            time.sleep(0.5)
            others = _others(before, _busy())
            if others <= self.share:
                return
            if not said:
                _say(
                    f"others take {others:.0%} of the machine, at most {self.share:.0%} would not disturb: waiting for"
                    f" that, {self.seconds:g} s at most (--wait=0: no waiting)"
                )
                said = True


QUIET = Quiet()


class Watch:
    """Looks at rounds that are to count: how much of the machine others took of each, and whether it is run again."""

    def __init__(self, runs: int) -> None:
        self._patience = QUIET.patience * runs if QUIET.seconds else 0
        self._before = _busy()

    def begin(self) -> None:
        """A round begins."""
        self._before = _busy()

    def end(self, name: str, found: Mapping[str, float], counts: bool = True) -> bool:
        """The round is over, with these seconds; says so, and returns False where it is to be run again."""
        others = _others(self._before, _busy())
        shown = ", ".join(f"{contender} {seconds:.4f} s" for contender, seconds in found.items())
        again = counts and others > QUIET.share and self._patience > 0
        _say(f"round {name}: {shown}; others {others:.0%}{', run again' if again else ''}")
        if again:
            self._patience -= 1
            QUIET.repeated += 1
        elif counts and others > QUIET.share:
            QUIET.disturbed += 1
        return not again


def take_turns(
    contenders: Mapping[str, Callable[[], Any]],
    runs: int,
    check: Callable[[str, Any], float | None],
    prepare: Callable[[str], None] = lambda name: None,
    short: Collection[str] = (),
) -> Times:
    """Seconds of each contender, run by run: one round to warm up (compile, allocate), then `runs` rounds that count.

    Args:
        contenders: functions that do the whole work and return only when it is done.
        runs: rounds.
        check: takes a contender's name and its result; raises AssertionError where it is not the work that was asked
            for. Called for every run, outside its time. A number that it returns is what counts of the run, in seconds.
        prepare: called with a name before each of its runs, outside its time.
        short: contenders whose call is short beside the others': in each round that counts they are called again and
            again, until they have taken as long as the quickest of the others did to warm up; their seconds are the
            mean of these calls, of which the last one's result is checked.
    """
    times: Times = {name: [] for name in contenders}
    watch, run, span = Watch(runs), 0, 0.0
    while run <= runs:
        if run:
            QUIET.wait()
        watch.begin()
        found = {}
        for name, function in contenders.items():
            prepare(name)
            calls, began = 0, time.perf_counter()
            while not calls or (name in short and time.perf_counter() - began < span):
                result = function()
                calls += 1
            found[name] = (time.perf_counter() - began) / calls
            part = check(name, result)
            found[name] = found[name] if part is None else part
            del result
        if not run:
            span = min((seconds for name, seconds in found.items() if name not in short), default=0.0)
        if not watch.end(str(run) if run else "to warm up", found, counts=run > 0):
            continue
        for name, seconds in found.items():
            if run:
                times[name].append(seconds)
        run += 1
    return times


def back_to_back(name: str, function: Callable[[], Any], runs: int, check: Callable[[Any], None]) -> list[float]:
    """Seconds of `runs` runs in a row, after one that does not count. Those that others disturb are run again, too."""
    QUIET.wait()
    watch, times, run = Watch(runs), [], 0
    while run <= runs:
        watch.begin()
        began = time.perf_counter()
        result = function()
        seconds = time.perf_counter() - began
        check(result)
        if watch.end(f"in a row, {run or 'to warm up'}", {name: seconds}, counts=run > 0):
            times += [seconds] if run else []
            run += 1
    return times


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
