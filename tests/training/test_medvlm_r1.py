"""The tiny variant of MedVLM-R1's recipe through the training loop: text only, its rewards, its loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medvr_jax.configuration import load_config
from medvr_jax.training.loop import train

SMALL = {
    "mesh.host_devices": "1",
    "steps": "2",
    "data.prompts_per_step": "8",
    "data.test_examples": "8",
    "data.evaluation_batch": "8",
    "rollout.sizes": "1",
    "prompt.sizes": "1",
    "report.rollouts_every": "1",
    "export_at_end": "false",
}


def test_two_steps(tmp_path: Path) -> None:
    config = load_config("configs/medvlm_r1_qwen2_vl_2b.py:tiny", list(SMALL.items()))
    train(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert "eval/accuracy" in rows[0] and "eval/accuracy" in rows[2]
    for step, row in enumerate(rows[:2]):
        assert np.isfinite(row["train/loss"]) and row["train/sampler_drift"] < 1e-4
        assert row["rollout/valid_call_rate"] == 0.0 and row["rollout/forks_granted"] == 0.0
        lines = (tmp_path / f"rollouts/step_{step:06d}.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert len(records) == 8 * 4
        totals = np.array([record["rewards"]["total"] for record in records]).reshape(8, 4)
        for record in records:
            rewards = record["rewards"]
            assert rewards["accuracy"] in (0.0, 0.5, 1.0) and rewards["format"] in (0.0, 1.0)
            assert rewards["total"] == rewards["accuracy"] + rewards["format"]
            assert record["correct"] == (rewards["accuracy"] == 1.0)
        advantages = np.array([record["advantage"] for record in records]).reshape(8, 4)
        deviation = totals.std(1, ddof=1, keepdims=True)
        expected = (totals - totals.mean(1, keepdims=True)) / (deviation + 1e-4)
        np.testing.assert_allclose(advantages, expected, atol=2e-5)
        assert row["reward/total"] == pytest.approx(totals.mean())
