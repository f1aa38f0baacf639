"""metrics.jsonl: strict JSON, whole lines, and cut back on resume."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from medvr_jax.errors import UserError
from medvr_jax.reports.metrics import MetricsWriter, json_line, read_json_lines, read_metrics


def refuse(name: str):
    raise AssertionError(f"{name} is not JSON")


def test_rows_are_strict_json_and_there_at_once(tmp_path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        metrics.write({"train/loss": jnp.float32(0.5), "step": 0, "bad": float("nan"), "worse": np.inf, "name": "x"})
        line = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]  # before the file is closed
        row = json.loads(line, parse_constant=refuse)
        assert row == {"step": 0, "train/loss": 0.5, "bad": None, "worse": None, "name": "x"}
        assert list(row)[0] == "step"


def test_resume_drops_what_comes_after_the_checkpoint(tmp_path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        for step in range(6):
            metrics.write({"step": step, "value": step * 0.1})
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    with MetricsWriter(tmp_path, resume_step=4) as metrics:
        metrics.write({"step": 4, "value": "again"})
    after = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert after[:4] == before[:4] and json.loads(after[4])["value"] == "again" and len(after) == 5
    MetricsWriter(tmp_path).close()  # a new run in the same folder begins anew
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_line_cut_short_is_passed_over_and_cleaned_up(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json_line({"step": 0}) + json_line({"step": 1}) + '{"step": 2, "loss"')
    assert [row["step"] for row in read_json_lines(path)] == [0, 1]
    with MetricsWriter(tmp_path, resume_step=2) as metrics:
        metrics.write({"step": 2})
    assert [row["step"] for row in read_json_lines(path)] == [0, 1, 2]


def test_damage_in_the_middle_is_the_users_to_know(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step"\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_json_lines(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"loss": 1}', "step: found nothing, allowed is a whole number"),
        ('{"step": "2"}', "step: found '2'"),
        ('{"step": 2.0}', "step: found 2.0"),
        ('{"step": true}', "step: found True"),
        ("[2]", "found list; every line must be one object"),
    ],
)
def test_a_row_without_its_step_is_named(line: str, message: str, tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0}}\n\n{line}\n')
    for reader in (lambda: MetricsWriter(tmp_path, resume_step=1), lambda: read_metrics(path)):
        with pytest.raises(UserError) as caught:
            reader()
        assert f"{path}, line 3: {message}" in str(caught.value)


def test_arrays_texts_and_the_unknown() -> None:
    line = json_line({"a": np.array([1.0, np.nan]), "b": (True, None), "c": "\ud800é\n", "d": {1: np.int64(3)}})
    assert json.loads(line) == {"a": [1.0, None], "b": [True, None], "c": "?é\n", "d": {"1": 3}}
    assert line.count("\n") == 1 and line.encode()
    with pytest.raises(TypeError, match="object"):
        json_line({"a": object()})
