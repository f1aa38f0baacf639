"""The next step is prepared early, in order, in one thread; what goes wrong is told at its own step."""

from __future__ import annotations

import threading
import time

import pytest

from medvr_jax import distributed
from medvr_jax.errors import UserError
from medvr_jax.inputs.prefetch import Prefetcher


def test_the_next_step_is_prepared_while_this_one_runs() -> None:
    begun, started = [], {step: threading.Event() for step in range(2, 5)}

    def prepare(step: int) -> int:
        begun.append((step, threading.current_thread().name))
        started[step].set()
        return step * step

    with Prefetcher(prepare, 5) as prompts:
        for step in range(2, 5):
            assert prompts.take(step) == step * step
            assert step == 4 or started[step + 1].wait(timeout=10)  # though nobody asked for it yet
    assert [step for step, _ in begun] == [2, 3, 4]  # each once, in order, and none past the end
    assert len({name for _, name in begun}) == 1 and begun[0][1] != threading.current_thread().name


def test_an_error_belongs_to_its_step() -> None:
    """It does not disturb the step before, and comes out where processes may tell one another."""

    def prepare(step: int) -> int:
        if step == 1:
            raise UserError("data.train_file: line 7")
        return step

    with Prefetcher(prepare, 4) as prompts:
        assert prompts.take(0) == 0
        time.sleep(0.05)
        with pytest.raises(UserError, match="line 7"), distributed.together():
            prompts.take(1)
        assert prompts.take(2) == 2


def test_steps_out_of_order_are_right_all_the_same() -> None:
    with Prefetcher(lambda step: step, 10) as prompts:
        assert [prompts.take(step) for step in (0, 5, 6, 3, 9)] == [0, 5, 6, 3, 9]


def test_it_stops_cleanly() -> None:
    """In the middle of a step's work, and with work left that nobody wants."""
    done, threads = [], []

    def prepare(step: int) -> int:
        threads.append(threading.current_thread())
        time.sleep(0.05)
        done.append(step)
        return step

    with pytest.raises(KeyboardInterrupt), Prefetcher(prepare, 100) as prompts:
        prompts.take(0)
        raise KeyboardInterrupt
    assert done in ([0], [0, 1])
    assert not threads[0].is_alive()
