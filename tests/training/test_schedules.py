"""Learning rates, step by step."""

from __future__ import annotations

import numpy as np
import pytest

from configs import base
from medvr_jax.assembly import optimizer_settings
from medvr_jax.training.state import learning_rate_schedule


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]),
        ("cosine", [(1 + np.cos(np.pi * step / 8)) / 2 for step in range(9)]),
    ],
)
def test_after_two_steps_of_warm_up(schedule: str, expected: list[float]) -> None:
    config = base.get_config()
    config.steps, config.optimizer.learning_rate = 10, 2.0
    config.optimizer.schedule, config.optimizer.warmup_steps = schedule, 2
    rate = learning_rate_schedule(optimizer_settings(config))
    found = [float(rate(step)) for step in range(11)]
    np.testing.assert_allclose(found, 2 * np.array([0.5, 1, *expected]), atol=1e-6)
