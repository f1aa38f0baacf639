"""A file of rows: killed anywhere, in whatever order the rows come, it ends with the same bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from medvr_jax.errors import UserError
from medvr_jax.evaluation.row_file import RowFile

KEYS = [(name, sample) for name in ("a", "β", 'c"\n') for sample in range(2)]
IDENTITY = {"policy": "step 1", "tools": ("zoom",), "share": 0.1}


def row(key: tuple[str, int]) -> dict[str, object]:
    return {"id": key[0], "sample": key[1], "response": f"答 {key} \u2028 {0.1 + 0.2}"}


def fill(folder: Path, identity: dict[str, object] = IDENTITY, seed: int = 0) -> tuple[bytes, list[tuple[str, int]]]:
    """Appends what is missing in a random order and in random portions; the file's bytes, and what was missing."""
    rng = random.Random(seed)
    with RowFile(folder, KEYS, identity) as file:
        missing = file.missing
        left = rng.sample(missing, len(missing))
        while left:
            count = rng.randint(1, 3)
            file.append(row(key) for key in left[:count])
            left = left[count:]
        assert file.finish() == [row(key) for key in KEYS]
    return (folder / "predictions.jsonl").read_bytes(), missing


def test_killed_at_any_byte_it_ends_the_same(tmp_path: Path) -> None:
    whole, missing = fill(tmp_path / "whole")
    assert missing == KEYS and whole.count(b"\n") == len(KEYS)
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    sizes = {*range(0, len(whole), 11), *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1])}
    for size in sorted(sizes):
        folder = tmp_path / "killed"
        folder.mkdir(exist_ok=True)
        for name in ("predictions.jsonl", "predictions.manifest.json"):
            (folder / name).write_bytes((tmp_path / "whole" / name).read_bytes())
        (folder / "predictions.jsonl").write_bytes(whole[:size])
        content, missing = fill(folder, seed=size)
        assert content == whole
        assert missing == KEYS[sum(end <= size for end in ends) :]  # nothing that was there is made again


def test_order_of_arrival_does_not_matter(tmp_path: Path) -> None:
    assert len({fill(tmp_path / str(seed), seed=seed)[0] for seed in range(20)}) == 1


def test_what_is_no_row_is_cut_with_all_behind_it(tmp_path: Path) -> None:
    whole, _ = fill(tmp_path)
    lines = whole.splitlines(keepends=True)
    strangers = [
        b"\0" * 30 + b"\n",
        b"[1]\n",
        b'{"id": "a"}\n',
        b'{"id": [], "sample": 0}\n',
        b'{"id": "z", "sample": 0}\n',
        b"\xff\n",
        lines[0],
        b"\n",
    ]
    for stranger in strangers:
        (tmp_path / "predictions.jsonl").write_bytes(lines[0] + lines[1] + stranger + b"".join(lines[2:]))
        content, missing = fill(tmp_path)
        assert content == whole and missing == KEYS[2:]


def test_rows_of_another_identity_are_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, _ = fill(tmp_path)
    content, missing = fill(tmp_path)
    assert (content, missing) == (whole, [])
    with RowFile(tmp_path, KEYS, IDENTITY | {"policy": "step 2"}) as file:
        file.tell()
        assert file.missing == KEYS
    said = capsys.readouterr().out
    assert "started afresh, as policy was 'step 1', now 'step 2'" in said and said.count("\n") == 1
    assert (tmp_path / "predictions.former.jsonl").read_bytes() == whole
    with RowFile(tmp_path, KEYS, IDENTITY | {"policy": "step 2"}) as file:
        file.tell()
    assert capsys.readouterr().out == ""

    (tmp_path / "predictions.manifest.json").write_text('{"poli')  # whoever wrote that: the rows cannot be trusted
    (tmp_path / "predictions.jsonl").write_bytes(whole)
    with RowFile(tmp_path, KEYS, IDENTITY) as file:
        assert file.missing == KEYS


def test_one_at_a_time(tmp_path: Path) -> None:
    with RowFile(tmp_path, KEYS, IDENTITY) as file:
        file.append([row(KEYS[0])])
        with pytest.raises(UserError, match="another evaluation is writing"):
            RowFile(tmp_path, KEYS, IDENTITY)
        file.append([row(KEYS[0]), row(KEYS[1])])  # a row that is there already is not added again
    assert [json.loads(line)["sample"] for line in (tmp_path / "predictions.jsonl").read_text().split("\n")[:-1]] == [
        0,
        1,
    ]
