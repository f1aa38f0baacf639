"""Other models behind an endpoint that fails, stalls and answers out of order: every sample is scored once."""

from __future__ import annotations

import base64
import collections
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medvr_jax.configuration import load_config
from medvr_jax.datasets.example import Example
from medvr_jax.datasets.synthetic import SyntheticTask
from medvr_jax.errors import UserError
from medvr_jax.evaluation import chat_client
from medvr_jax.evaluation.chat_client import _asked_to_wait, data_url
from medvr_jax.evaluation.elsewhere import evaluate_elsewhere
from tests.evaluation.chat_server import Action, Request, key_of_example, serving

REPOSITORY = Path(__file__).resolve().parents[2]
COUNT = 24
EXAMPLES = [SyntheticTask().example("test", index) for index in range(COUNT)]
BY_KEY = {key_of_example(example): example for example in EXAMPLES}
WRONG = {EXAMPLES[3].id, EXAMPLES[17].id}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "_FIRST_WAIT", 0.02)


def settings(url: str, **more: object) -> dict[str, object]:
    return {
        "data.test_examples": COUNT,
        "evaluate.endpoint": url,
        "evaluate.model": "other/model-7b",
        "evaluate.concurrency": 6,
        "evaluate.timeout": 1.0,
        "evaluate.retries": 5,
    } | {f"evaluate.{name}": value for name, value in more.items()}


def run(workdir: Path, url: str, **more: object) -> list[dict[str, Any]]:
    """Asks in this process; the rows that are left."""
    overrides = [(name, str(value)) for name, value in settings(url, **more).items()]
    evaluate_elsewhere(load_config("configs/tiny_cpu.py", overrides, mode="evaluate"), workdir)
    return rows_of(workdir)


def folder_of(workdir: Path) -> Path:
    (folder,) = [path for path in (workdir / "evaluation").iterdir() if path.is_dir()]
    return folder


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    text = (folder_of(workdir) / "predictions.jsonl").read_text()
    return [json.loads(line) for line in text.split("\n")[:-1]]


def reply(request: Request) -> str:
    """What the model at the endpoint says: the truth, but for two questions."""
    example = BY_KEY[request.key]
    letter = "ABCD"[("ABCD".index(example.answer) + (example.id in WRONG)) % 4]
    return f"<think>looking</think> <answer>{letter}</answer>"


def badly(request: Request) -> Action:
    """Every question fails once or twice, in different ways, before it is answered, sooner or later."""
    ways = [
        Action("status", 500),
        Action("status", 503, headers=(("Retry-After", "0"),)),
        Action("status", 429, headers=(("Retry-After", "0.1"),)),
        Action("stall", seconds=20),
        Action("disconnect"),
        Action("half"),
        Action("garbage"),
        Action("drip"),
    ]
    number = int(hashlib.sha256(request.key.encode()).hexdigest(), 16)
    if request.attempt < 1 + number % 2:
        return ways[(number // 2 + 3 * request.attempt) % len(ways)]
    return Action(seconds=random.Random(request.key).uniform(0, 0.3))


def test_every_sample_is_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(reply, badly) as server:
        rows = run(tmp_path, server.url)
    assert [row["id"] for row in rows] == [example.id for example in EXAMPLES]
    assert server.order != [key_of_example(example) for example in EXAMPLES]  # it did answer out of order
    assert len(server.requests) > COUNT
    for row, example in zip(rows, EXAMPLES, strict=True):
        right = float(example.id not in WRONG)
        assert row["scores"] == {"medevalkit": {"correct": right}, "strict": {"correct": right}}
        assert (row["answer"], row["sample"], row["ended"]) == (example.answer, 0, "answer")
    assert set(server.answered) == set(BY_KEY)
    assert server.most <= 6
    folder = folder_of(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    assert results["scores"] == {"medevalkit": 22 / 24, "strict": 22 / 24}
    assert (results["model"], results["failed"], results["examples"]) == ("other/model-7b", 0, COUNT)
    assert folder.name == "model_other-model-7b" and (folder / "tables.md").is_file()
    for request in server.requests:
        assert request.headers["Authorization"] == "Bearer sk-secret"
        system, user = request.body["messages"]
        assert "<answer></answer>" in system["content"] and "tool" not in system["content"]
        assert user["content"][-1] == {"type": "text", "text": BY_KEY[request.key].question_text()}
        assert (request.body["temperature"], request.body["max_tokens"]) == (0.0, 1024)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"sk-secret" in path.read_bytes()]


def test_samples_are_asked_one_by_one(tmp_path: Path) -> None:
    said: collections.Counter[str] = collections.Counter()

    def different(request: Request) -> str:
        said[request.key] += 1
        return f"<answer>{'ABCD'[said[request.key] % 4]}</answer>"

    with serving(different) as server:
        rows = run(tmp_path, server.url, samples=4, temperature=0.7)
        assert run(tmp_path, server.url, samples=4, temperature=0.7) == rows
    assert [(row["id"], row["sample"]) for row in rows] == [(e.id, s) for e in EXAMPLES for s in range(4)]
    assert set(server.answered.values()) == {4} and len(server.requests) == 4 * COUNT
    assert all(request.body["temperature"] == 0.7 for request in server.requests)
    results = json.loads((folder_of(tmp_path) / "results.json").read_text())
    assert results["scores"]["strict"] == 0.25 and results["answers"] == 4 * COUNT
    tables = json.loads((folder_of(tmp_path) / "tables.json").read_text())
    assert tables["rules"]["strict"]["samples"]["synthetic"]["pass_at"]["4"] == 1.0


def command(workdir: Path, url: str) -> list[str]:
    flags = [f"--config.{name}={value}" for name, value in settings(url).items()]
    start = [sys.executable, "-m", "medvr_jax.main", "--config=configs/tiny_cpu.py"]
    return [*start, f"--workdir={workdir}", "--mode=evaluate", *flags]


def test_killed_and_started_again_it_asks_for_the_rest(tmp_path: Path) -> None:
    """The same files as without interruption, and nothing that had been answered is asked again."""
    environment = os.environ | {"JAX_PLATFORMS": "no_such_devices"}  # none are needed
    with serving(reply, lambda request: Action(seconds=0.15)) as server:
        rows = run(tmp_path / "whole", server.url)
        before = len(server.requests)
        process = subprocess.Popen(command(tmp_path / "killed", server.url), cwd=REPOSITORY, env=environment)
        kept = tmp_path / "killed/evaluation/model_other-model-7b/synthetic/predictions.jsonl"
        deadline = time.monotonic() + 120
        while not kept.exists() or kept.read_bytes().count(b"\n") < 7:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = kept.read_bytes().count(b"\n")
        asked = len(server.requests) - before
        assert done < COUNT and asked < COUNT
        again = subprocess.run(command(tmp_path / "killed", server.url), cwd=REPOSITORY, env=environment, timeout=300)
        assert again.returncode == 0
    assert len(server.requests) - before - asked == COUNT - done
    for name in ("predictions.jsonl", "results.json", "table.md", "tables.json", "synthetic/predictions.jsonl"):
        first, second = (folder_of(tmp_path / run) / name for run in ("whole", "killed"))
        assert first.read_bytes() == second.read_bytes(), name
    assert len(rows) == COUNT


def test_a_question_that_is_refused(tmp_path: Path) -> None:
    """It ends the evaluation, the others kept; by option it counts as empty, and is written down as failed."""
    refused = key_of_example(EXAMPLES[5])

    def behave(request: Request) -> Action:
        return Action("status", 400, text="content\nfilter") if request.key == refused else Action()

    with serving(reply, behave) as server:
        with pytest.raises(UserError) as caught:
            run(tmp_path, server.url)
        assert str(caught.value) == (
            f"evaluate.endpoint: 1 of {COUNT} answers did not come, the first of synthetic, id {EXAMPLES[5].id!r}"
            " (HTTP 400 Bad Request: content filter); the others are kept: start again, or count these as empty with"
            " evaluate.failures=empty"
        )
        assert len(server.requests) == COUNT
        rows = run(tmp_path, server.url, failures="empty")
        assert len(server.requests) == COUNT + 1
    assert (rows[5]["response"], rows[5]["failed"]) == ("", "HTTP 400 Bad Request: content filter")
    assert rows[5]["scores"]["strict"]["correct"] == 0.0
    assert sum("failed" in row for row in rows) == 1
    assert json.loads((folder_of(tmp_path) / "results.json").read_text())["failed"] == 1


def test_what_concerns_all_questions_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(reply, lambda request: Action("status", 401, text="no key sk-secret")) as server:
        with pytest.raises(UserError, match=r"refuses model 'other/model-7b' \(HTTP 401 Unauthorized: no key …\)"):
            run(tmp_path / "key", server.url)
        assert len(server.requests) <= 6
    with serving(reply, lambda request: Action("status", 302, headers=(("Location", "/"),))) as server:
        with pytest.raises(UserError, match="HTTP 302"):
            run(tmp_path / "redirect", server.url)
    with serving(reply, lambda request: Action("disconnect")) as server:
        pass
    with pytest.raises(UserError, match=r"the last 8 requests came to nothing \(ConnectionRefusedError"):
        run(tmp_path / "closed", server.url, retries=1)


def test_newer_models_name_the_limit_otherwise(tmp_path: Path) -> None:
    def behave(request: Request) -> Action:
        if "max_tokens" in request.body:
            return Action("status", 400, text="Unsupported parameter: use 'max_completion_tokens' instead")
        return Action()

    with serving(reply, behave) as server:
        rows = run(tmp_path, server.url)
    assert len(rows) == COUNT and sum("max_tokens" in request.body for request in server.requests) <= 6


def test_images_go_out_as_they_are_or_as_png(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    for kind, sent in (("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp"), ("BMP", "png"), ("TIFF", "png")):
        file = tmp_path / f"image.{kind.lower()}"
        Image.fromarray(pixels).save(file, kind)
        head, _, data = data_url(file).partition(",")
        assert head == f"data:image/{sent};base64" and data_url(file.read_bytes()) == f"{head},{data}"
        content = base64.b64decode(data)
        assert (content == file.read_bytes()) == (kind in ("PNG", "JPEG", "WEBP"))
        if kind in ("BMP", "TIFF"):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
    with pytest.raises(UserError, match="example 7: not a readable image"):
        data_url(b"nothing", "example 7")


def test_how_long_a_server_asks_to_wait() -> None:
    assert _asked_to_wait(None) is None and _asked_to_wait("soon") is None
    assert _asked_to_wait("2.5") == 2.5 and _asked_to_wait("-1") == 0
    assert _asked_to_wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 90))
    assert 85 < _asked_to_wait(later) < 91


# ------------------------------------------------------------------------------------------------------- the judge

OPEN = [
    ("q1", "Where is it?", "left lobe", "<answer>the left lobe</answer>", True),
    ("q2", "What is it?", "cyst", "<answer>a fluid-filled cavity</answer>", True),
    ("q3", "What is it?", "edema", "<answer>a fracture</answer>", False),
    ("q4", "What is it?", "tumour", "", False),
    ("q5", "Is it normal?", "yes", "<answer>yes</answer>", None),
]


def judged(tmp_path: Path, url: str, **more: object) -> list[dict[str, Any]]:
    """Predictions from a file, judged by the endpoint at `url`."""
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    lines = [{"id": i, "image": "a.png", "question": q, "answer": a} for i, q, a, _, _ in OPEN]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = [{"id": i, "text": text} for i, _, _, text, _ in OPEN]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in said))
    overrides = {
        "data.name": "jsonl",
        "data.train_file": tmp_path / "test.jsonl",
        "data.test_file": tmp_path / "test.jsonl",
        "data.image_folder": tmp_path,
        "evaluate.predictions_file": tmp_path / "said.jsonl",
        "evaluate.judge_endpoint": url,
        "evaluate.judge_model": "judge-1",
    } | {f"evaluate.{name}": value for name, value in more.items()}
    texts = [(name, str(value)) for name, value in overrides.items()]
    evaluate_elsewhere(load_config("configs/tiny_cpu.py", texts, mode="evaluate"), tmp_path / "run")
    return rows_of(tmp_path / "run")


def verdict(request: Request) -> str:
    """A judge that thinks first, and that once says neither yes nor no."""
    right = [expected for _, _, answer, _, expected in OPEN if f"Reference answer: {answer}\n" in request.key][0]
    return f"<think>yes or no …</think> {'**Yes**' if right else 'No.'}"


def test_a_judge_of_open_questions(tmp_path: Path) -> None:
    with serving(verdict) as server:
        rows = judged(tmp_path, server.url)
        assert judged(tmp_path, server.url) == rows
    assert len(server.requests) == 3  # neither the empty answer nor the closed question, and nothing twice
    assert (
        "Student's answer: the left lobe\n" in server.requests[0].key + server.requests[1].key + server.requests[2].key
    )
    for row, (_, _, _, _, expected) in zip(rows, OPEN, strict=True):
        assert row["scores"].get("judge") == (None if expected is None else {"correct": float(expected)})
    assert rows[1]["scores"]["strict"]["correct"] == 0.0  # the rules' own scores stay as they are
    results = json.loads((folder_of(tmp_path / "run") / "results.json").read_text())
    assert results["judge"]["model"] == "judge-1" and results["judge"]["answers"] == 4
    assert [len(date) for date in results["judge"]["dates"]] == [10]
    rules = json.loads((folder_of(tmp_path / "run") / "tables.json").read_text())["rules"]
    assert set(rules) == {"medevalkit", "strict", "medevalkit + judge", "strict + judge"}
    (day,) = results["judge"]["dates"]
    page = (folder_of(tmp_path / "run") / "tables.md").read_text()
    assert page.count(f"by the verdict of the judge (judge-1, {day})") == 2


def test_a_judge_that_does_not_judge(tmp_path: Path) -> None:
    with serving(lambda request: "Yes and no.") as server:
        with pytest.raises(UserError, match=r"3 of 3 verdicts on jsonl did not come.*'Yes and no.', which is neither"):
            judged(tmp_path, server.url, retries=0)
        rows = judged(tmp_path, server.url, retries=0, failures="empty")
        asked = len(server.requests)
        assert judged(tmp_path, server.url, retries=0, failures="empty") == rows and len(server.requests) == asked
    assert [row["scores"].get("judge") for row in rows] == [{"correct": 0.0}] * 4 + [None]
    results = json.loads((folder_of(tmp_path / "run") / "results.json").read_text())
    assert (results["judge"]["answers"], results["judge"]["failed"]) == (4, 3)


def test_contradictions_in_the_options(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    cases: list[tuple[dict[str, object], str]] = [
        ({"samples": 2}, "evaluate.temperature: found 0.0 with evaluate.samples = 2"),
        ({"endpoint": "localhost:8000", "model": "m"}, "evaluate.endpoint: found 'localhost:8000', allowed is http"),
        ({"endpoint": "http://a/v1"}, "evaluate.model: found '', but evaluate.endpoint is given"),
        ({"model": "m"}, "evaluate.endpoint: found '', but evaluate.model is given"),
        ({"judge_model": "m"}, "evaluate.judge_endpoint: found ''"),
        ({"endpoint": "http://a/v1", "model": "m", "tools": "false"}, "evaluate.tools: found false"),
        ({"predictions_file": "a", "endpoint": "http://a/v1", "model": "m"}, "as well as evaluate.endpoint"),
        ({"predictions_file": "a", "samples": 2, "temperature": 1}, "evaluate.samples: found 2 with"),
        ({"predictions_file": "/nowhere"}, "evaluate.predictions_file: '/nowhere' is not a file"),
        ({"predictions_file": "a", "system": "Be brief."}, "evaluate.system: found a prompt"),
        ({"sets": "vqa_rad,vqa_rad"}, "evaluate.sets: found 'vqa_rad' 2 times"),
        ({"split": "train"}, "evaluate.split: found 'train' without evaluate.sets"),
        ({"sets": "../x"}, "evaluate.sets: found '../x'"),
        ({"name": "../x"}, "evaluate.name: found '../x'"),
        ({"compare_with": tmp_path}, f"evaluate.compare_with: '{tmp_path}' holds no evaluation"),
        ({"failures": "skip"}, "evaluate.failures: found 'skip', allowed are refuse, empty"),
        ({"timeout": 0}, "evaluate.timeout: found 0.0, allowed is more than 0"),
    ]
    for changes, message in cases:
        overrides = [(f"evaluate.{name}", str(value)) for name, value in changes.items()]
        with pytest.raises(UserError) as caught:
            load_config("configs/tiny_cpu.py", overrides, mode="evaluate")
        assert message in str(caught.value)


def test_an_example_without_image_is_plain_text() -> None:
    example = Example("a", (), "Why?", (), "so", "open")
    assert chat_client.user_message(example.question_text()) == {"role": "user", "content": "Why?"}
