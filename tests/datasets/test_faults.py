"""Faults of records: counted, quoted, listed in a file, refused or left to the caller."""

from __future__ import annotations

import json

import pytest

from medvr_jax.datasets.faults import Fault, Faults
from medvr_jax.errors import UserError


def collected() -> Faults:
    faults = Faults("data.train_file")
    faults.add(Fault("a.jsonl:3", "bad_answer", "answer: found 'Z'; allowed: A to D"))
    faults.extend(Fault(f"a.jsonl:{line}", "missing_image", "no such image file b.png") for line in (7, 9, 12))
    faults.add(Fault("a.jsonl:13", "not_json", "found\nbad \ud800"))
    return faults


def test_counts_by_kind_and_one_line_that_says_it_all(tmp_path):
    faults = collected()
    assert len(faults) == 5
    assert list(faults.counts().items()) == [("missing_image", 3), ("bad_answer", 1), ("not_json", 1)]
    path = faults.write_report(tmp_path / "new" / "faults.jsonl")
    line = faults.summary()
    assert "\n" not in line and line.startswith("data.train_file: 5 faults (3 missing_image, 1 bad_answer, 1 not_json)")
    for part in ("a.jsonl:3: answer: found 'Z'", "a.jsonl:7", "a.jsonl:9", str(path)):
        assert part in line
    assert "a.jsonl:12" not in line
    listed = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(fault["where"], fault["kind"], fault["message"]) for fault in listed] == [
        (fault.where, fault.kind, fault.message) for fault in faults.list
    ]


def test_faults_are_refused_or_left_to_the_caller():
    faults = collected()
    with pytest.raises(UserError, match="5 faults"):
        faults.check("refuse")
    faults.check("skip")
    Faults("x").check("refuse")
    with pytest.raises(UserError, match="data.on_error: found 'ignore'; allowed: refuse, skip"):
        faults.check("ignore")


def test_a_single_fault_is_its_own_error_line():
    faults = Faults("data.train_file")
    faults.add(Fault("a.jsonl:3", "bad_answer", "answer: found 'Z'; allowed: A to D"))
    with pytest.raises(UserError) as caught:
        faults.check("refuse")
    assert str(caught.value) == "a.jsonl:3: answer: found 'Z'; allowed: A to D"
