"""The progress line with a clock of our own."""

from __future__ import annotations

import io

import pytest

from medvr_jax.reports.progress import Progress, duration, rate


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (5.4, "5 s"),
        (59.6, "1 min"),
        (65, "1 min 5 s"),
        (3600, "1 h"),
        (3725, "1 h 2 min"),
        (90061, "1 d 1 h"),
        (-1, "0 s"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_rate() -> None:
    assert rate(1.94) == "1.94 s each"
    assert rate(0.02) == "50 per s"


def test_log_has_one_line_per_update_and_rate_without_the_first() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(4, 0, "train", stream=stream, clock=clock) as progress:
        for done, seconds in ((1, 30.0), (2, 2.0), (3, 2.0), (4, 2.0)):
            clock.now += seconds
            progress.update(done, f"reward {done}")
    lines = stream.getvalue().splitlines()
    assert lines == [
        "train 1/4 | the first in 30 s | reward 1",
        "train 2/4 | 2 s each, 4 s to go | reward 2",
        "train 3/4 | 2 s each, 2 s to go | reward 3",
        "train 4/4 | 2 s each, done | reward 4",
    ]


def test_resumed_run_counts_only_its_own_steps() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(100, 90, "train", stream=stream, clock=clock)
    for done in (91, 92):
        clock.now += 3.0
        progress.update(done)
    assert stream.getvalue().splitlines()[-1] == "train  92/100 | 3 s each, 24 s to go"


def test_fast_updates_do_not_flood_a_log_but_the_last_is_there() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(1000, 0, "evaluate", stream=stream, clock=clock)
    for done in range(1, 1001):
        clock.now += 0.01
        progress.update(done)
        progress.note("still going")
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 13 and "\r" not in stream.getvalue()
    assert lines[-2].startswith("evaluate 1000/1000") or lines[-1].startswith("evaluate 1000/1000")


def test_terminal_overwrites_notes_and_keeps_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, clock = Terminal(), Clock()
    with Progress(2, 0, "train", stream=stream, clock=clock) as progress:
        progress.note("evaluating 1/9")
        clock.now += 5
        progress.update(1, "fine")
        progress.note("x" * 500)
    lasting = [line.split("\r\x1b[K")[-1] for line in stream.getvalue().split("\n")]
    assert lasting[0].startswith("train 1/2") and lasting[-1] == ""
    assert max(map(len, stream.getvalue().split("\r\x1b[K"))) < 200  # cut to the width of the terminal


def test_what_is_said_behind_the_last_item_is_not_done() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(2, 0, "train", stream=stream, clock=clock) as progress:
        progress.update(2, "reward 1")
        clock.now += 20
        progress.note("evaluating 64/512")
    assert stream.getvalue().splitlines()[-1] == "train 2/2 | evaluating 64/512"


def test_a_terminal_without_control_characters_gets_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream, clock = Terminal(), Clock()
    with Progress(2, 0, "train", stream=stream, clock=clock) as progress:
        progress.update(1, "fine")
        progress.note("evaluating")
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()
