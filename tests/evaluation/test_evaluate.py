"""`--mode=evaluate` of our own policy: killed and started again, samples, the tool forbidden, several sets."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image
from transformers import AutoConfig, Qwen2VLForConditionalGeneration

from medvr_jax import assembly, programs
from medvr_jax.configuration import load_config
from medvr_jax.datasets.example import Example
from medvr_jax.datasets.synthetic import SyntheticTask
from medvr_jax.evaluation import masks, questions, run
from medvr_jax.evaluation.greedy import predict, summarise
from medvr_jax.evaluation.policy import find_weights, load_weights
from medvr_jax.inputs.chat import encode_prompt
from medvr_jax.training.checkpoints import Checkpoints
from medvr_jax.training.trainer import Trainer, make_train_state
from medvr_jax.workdir import prepare_workdir, saved_config
from tests.tiny_run import SMALL, small_config

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "medvr_jax" / "assets" / "tiny"
FILES = ("predictions.jsonl", "results.json", "table.md", "tables.json", "synthetic/predictions.jsonl")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Programs are kept, since the same ones are made again and again; the environment of processes that share them."""
    names = ("jax_compilation_cache_dir", *(name for name, _ in programs._KEEP_ALL))
    before = {name: jax.config.values[name] for name in names}
    folder = programs.keep_programs(str(tmp_path_factory.mktemp("cache")))
    compilation_cache.reset_cache()  # jax looks for a folder once
    kept = {programs.FOLDER_VARIABLE: str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    yield os.environ | kept | {"JAX_PLATFORMS": "cpu"}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def evaluate(workdir: Path, variant: str = "full", **overrides: object) -> list[dict[str, Any]]:
    """Evaluates the tiny model in this process; the rows."""
    config = small_config(variant, **({"data__prompts_per_step": 8} | overrides))  # on eight devices
    run.evaluate(config, workdir)
    return rows_of(run.evaluation_folder(config.evaluate, workdir))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().split("\n")[:-1]]


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


# ------------------------------------------------------------------------------------------ killed and started again


def start(workdir: Path, environment: dict[str, str], changes: dict[str, object]) -> subprocess.Popen:
    values = SMALL | {"data.test_examples": 24, "data.evaluation_batch": 4} | changes
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    command = [sys.executable, "-m", "medvr_jax.main", "--config=configs/tiny_cpu.py", f"--workdir={workdir}", *flags]
    log = (workdir.parent / f"{workdir.name}.log").open("a")
    return subprocess.Popen([*command, "--mode=evaluate"], cwd=REPOSITORY, env=environment, stdout=log, stderr=log)


@pytest.mark.parametrize(
    ("changes", "name", "answers"),
    [({}, ".", 24), ({"evaluate.samples": 3, "evaluate.temperature": 1.0}, "3_samples_at_1", 72)],
    ids=["greedy", "samples"],
)
def test_killed_and_started_again_it_is_as_if_nothing_had_happened(
    changes: dict[str, object], name: str, answers: int, cache: dict[str, str], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, cache, changes).wait(timeout=900) == 0, (tmp_path / "whole.log").read_text()
    kept = killed / "evaluation" / name / "synthetic" / "predictions.jsonl"
    process = start(killed, cache, changes)
    wanted, deadline = random.randint(1, answers - answers // 3), time.monotonic() + 900  # six batches
    while not kept.exists() or kept.read_bytes().count(b"\n") < wanted:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "killed.log").read_text()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    found = kept.read_bytes()
    done = found.count(b"\n")
    assert wanted <= done < answers
    kept.write_bytes(found + found[: random.randint(1, 300)].replace(b"\n", b" "))  # and a torn line
    assert start(killed, cache, changes).wait(timeout=900) == 0, (tmp_path / "killed.log").read_text()
    assert kept.read_bytes().startswith(found)  # what was finished is not made again
    assert f"{done} of {answers} are there" in (tmp_path / "killed.log").read_text()
    for file in FILES:
        first, second = (workdir / "evaluation" / name / file for workdir in (whole, killed))
        assert first.read_bytes() == second.read_bytes(), file
    rows = rows_of(whole / "evaluation" / name)
    assert len(rows) == answers and sum(bool(row["boxes"]) for row in rows) > answers // 2


# ------------------------------------------------------------------------------------------------- what is in a row


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with the plain evaluation of the tiny model, 40 questions in batches of 16."""
    workdir = tmp_path_factory.mktemp("plain")
    evaluate(workdir, data__test_examples=40, data__evaluation_batch=16)
    return workdir


def test_the_model_folder_itself_is_evaluated_and_named(plain: Path) -> None:
    rows, results = rows_of(plain / "evaluation"), results_of(plain / "evaluation")
    assert results["policy"] == "the model folder medvr_jax/assets/tiny" and results["step"] is None
    assert results["decoding"] == "greedy" and results["examples"] == results["answers"] == 40
    task = SyntheticTask()
    for index, row in enumerate(rows):
        example = task.example("test", index)
        assert (row["id"], row["sample"], row["dataset"]) == (example.id, 0, "synthetic")
        assert (row["answer"], row["options"], row["answer_kind"]) == (example.answer, list(example.options), "choice")
        assert (row["modality"], row["language"], row["question_type"]) == ("synthetic", "en", "")
        assert row["true_boxes"] == [list(box) for box in example.boxes]
        assert "<|im_end|>" not in row["response"] and row["texts"][-1].startswith(row["response"])
        assert len(row["box_entropy"]) == len(row["boxes"]) and all(0 <= value < 6 for value in row["box_entropy"])
        assert row["scores"]["strict"]["correct"] == row["correct"]  # well-formed choices: the rules agree
    assert results["accuracy"] == np.mean([row["correct"] for row in rows])
    assert results["scores"]["strict"] == results["sets"]["synthetic"]["strict"] == results["accuracy"]
    assert sum(map(len, (row["boxes"] for row in rows))) > 30


def test_equals_the_evaluation_during_training(plain: Path) -> None:
    config = small_config(data__test_examples=40, data__evaluation_batch=16, data__prompts_per_step=8)
    summary, results = summarise(Trainer(assembly.assemble(config)).predict()), results_of(plain / "evaluation")
    assert {name: results[name] for name in summary} == summary


def test_box_entropies_are_in_the_tables(plain: Path) -> None:
    """Sure and unsure zooms differ, and the tables correlate them with the IoU."""
    values = [value for row in rows_of(plain / "evaluation") for value in row["box_entropy"]]
    assert np.std(values) > 0.01
    tables = json.loads((plain / "evaluation/tables.json").read_text())
    assert tables["grounding"]["synthetic"]["entropy"]["zooms"] == len(values)


def test_the_tool_forbidden(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No call is ever sampled, the results lie beside the others, and the tables compare both."""
    before = (plain / "evaluation/results.json").read_bytes()
    sizes = {"data__test_examples": 40, "data__evaluation_batch": 16}
    rows = evaluate(plain, **sizes, evaluate__tools=False)
    assert (plain / "evaluation/no_tools/results.json").is_file()
    assert (plain / "evaluation/results.json").read_bytes() == before
    assert not any(row["called"] or row["boxes"] or "<tool_call>" in "".join(row["texts"]) for row in rows)
    assert all(len(row["texts"]) == 1 for row in rows) and results_of(plain / "evaluation/no_tools")["tools"] == []
    with_tool = results_of(plain / "evaluation")
    assert with_tool["accuracy"] > results_of(plain / "evaluation/no_tools")["accuracy"]
    capsys.readouterr()
    evaluate(plain, **sizes)  # everything is there: no model is loaded, the tables are made anew
    assert "evaluate synthetic" not in capsys.readouterr().out
    assert (plain / "evaluation/results.json").read_bytes() == before
    found = json.loads((plain / "evaluation/tables.json").read_text())["rules"]["strict"]["without_tool"]["synthetic"]
    assert found["questions"] == 40 and found["first"] == with_tool["accuracy"]


def test_masked_questions_are_answered_as_masked_images_are(plain: Path, tmp_path: Path) -> None:
    """The rows of the masking test against PNG files that were painted here, answered by themselves."""
    workdir, sizes = tmp_path / "run", {"data__test_examples": 40, "data__evaluation_batch": 16}
    shutil.copytree(plain, workdir)
    evaluate(workdir, **sizes, evaluate__masking=True)
    rows = [json.loads(line) for line in (workdir / "evaluation/masking.jsonl").read_text().split("\n")[:-1]]
    looked = {row["id"]: row["boxes"] for row in rows_of(workdir / "evaluation")}
    found = {mask: [row for row in rows if row["mask"] == mask] for mask in masks.MASKS}
    assert [row["id"] for row in found["zoomed"]] == [name for name, boxes in looked.items() if boxes]
    assert len(found["lesion"]) == 40 and all(row["region"] == looked[row["id"]] for row in found["zoomed"])
    examples = {example.id: example for example in (SyntheticTask().example("test", index) for index in range(40))}
    painted = [dataclasses.replace(examples[row["id"]], images=(paint_out(examples[row["id"]], row["region"]),))
               for row in found["zoomed"] + found["lesion"]]  # fmt: skip
    parts = assembly.assemble(small_config(**sizes, data__prompts_per_step=8))
    config = parts.config
    params = load_weights(parts, find_weights(config, workdir), workdir)
    engine = parts.engine(assembly.greedy_rollout(config, parts.backbone))
    expected = predict(engine, params, parts.encoder, painted, parts.rows(16))
    got = found["zoomed"] + found["lesion"]
    assert [row["response"] for row in got] == [one.texts[-1].removesuffix("<|im_end|>") for one in expected]
    assert [row["boxes"] for row in got] == [list(map(list, one.boxes)) for one in expected]
    # The policy of the warm-up reads what it hits: with that gone it says something else, without anything else not.
    differences = results_of(workdir / "evaluation")["masking"]["overall"]["differences"]
    assert differences["zoomed"]["difference"] > 0 and differences["lesion"]["difference"] > 0


def paint_out(example: Example, region: list[list[float]]) -> bytes:
    """Its image with the only box of a region in the mean grey of a ring around it, by distances."""
    with Image.open(io.BytesIO(example.images[0])) as image:
        pixels = np.array(image)
    ((x1, y1, x2, y2),) = (np.rint(448 * np.array(region)).astype(int)).tolist()
    y, x = np.mgrid[:448, :448]
    distance = np.maximum.reduce([x1 - x, x - x2 + 1, y1 - y, y - y2 + 1])
    wide = max(2, round(min(x2 - x1, y2 - y1) / 8))
    pixels[distance <= 0] = np.rint(pixels[(distance > 0) & (distance <= wide)].mean())
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_samples_do_not_depend_on_batches(tmp_path: Path) -> None:
    sampled = {"evaluate__samples": 4, "evaluate__temperature": 1.0, "data__test_examples": 16}
    first = evaluate(tmp_path / "a", data__evaluation_batch=8, **sampled)
    second = evaluate(tmp_path / "b", data__evaluation_batch=16, **sampled)
    assert [(row["id"], row["sample"]) for row in first] == [
        (SyntheticTask().example("test", index).id, sample) for index in range(16) for sample in range(4)
    ]
    assert [row["texts"] for row in first] == [row["texts"] for row in second]
    assert len({tuple(row["texts"]) for row in first}) > 32  # they do differ
    other = evaluate(tmp_path / "c", data__evaluation_batch=16, **sampled, seed=1)
    assert [row["texts"] for row in second] != [row["texts"] for row in other]
    tables = json.loads((tmp_path / "a/evaluation/4_samples_at_1/tables.json").read_text())
    figures = tables["rules"]["strict"]["samples"]["synthetic"]
    assert figures["samples"] == 4 and figures["pass_at"]["4"] > figures["accuracy"] == figures["pass_at"]["1"]


def test_several_sets_in_batches_of_like_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Long and short questions in turn: sizes of prompts follow from all sets, the largest questions come first."""
    task = SyntheticTask()

    def published(name: str, config: Any) -> list[Any]:
        dataset, _, language = name.partition("/")
        examples = [task.example("test", index) for index in range(12)]
        long = "What is in the lesion? " * 3
        return [
            dataclasses.replace(
                example, question=long if index % 2 else example.question, dataset=dataset, language=language or "en"
            )
            for index, example in enumerate(examples)
        ]

    monkeypatch.setattr(questions, "_published", published)
    sizes: list[tuple[int, int]] = []
    original = assembly.evaluation_rollout

    def spied(config: Any, backbone: Any, prompts: tuple[tuple[int, int], ...]) -> Any:
        sizes.extend(prompts)
        return original(config, backbone, prompts)

    monkeypatch.setattr(assembly, "evaluation_rollout", spied)
    both = {"evaluate__sets": "vqa_rad,slake/zh", "data__evaluation_batch": 8}
    rows = evaluate(tmp_path, prompt__sizes=2, data__name="synthetic", **both)
    assert [row["dataset"] for row in rows] == ["vqa_rad"] * 12 + ["slake"] * 12
    assert [row["language"] for row in rows] == ["en"] * 12 + ["zh"] * 12
    assert len(sizes) == 2 and sizes[0] < sizes[1]
    assert rows_of(tmp_path / "evaluation/slake/zh") == rows[12:]
    assert set(results_of(tmp_path / "evaluation")["sets"]) == {"vqa_rad", "slake/zh"}
    said = capsys.readouterr().out
    assert "12 questions of vqa_rad, 12 questions of slake/zh" in said and "evaluate slake/zh 12/12" in said
    # The same without the choice of sizes: padding changes no answer.
    other = evaluate(tmp_path / "one", prompt__sizes=1, **both)
    assert [row["texts"] for row in other] == [row["texts"] for row in rows]


def test_another_checkpoint_starts_afresh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Step by step, and when other weights have the same step."""
    config = small_config("text", data__prompts_per_step=8, rollout__response_length=16)
    state, _ = make_train_state(assembly.assemble(config, splits=()))

    def save(step: int, change: float) -> None:
        trainable = jax.tree.map(lambda kernel: kernel + change, state.trainable)
        with contextlib.closing(Checkpoints(tmp_path, 2)) as checkpoints:
            checkpoints.save(step, dataclasses.replace(state, trainable=trainable), {})

    save(1, 0.0)
    run.evaluate(config, tmp_path)
    assert results_of(tmp_path / "evaluation")["policy"] == "step 1"
    first = rows_of(tmp_path / "evaluation")
    save(2, 0.5)
    capsys.readouterr()
    run.evaluate(config, tmp_path)
    assert "started afresh, as policy was 'step 1', now 'step 2'" in capsys.readouterr().out
    assert results_of(tmp_path / "evaluation")["step"] == 2
    second = rows_of(tmp_path / "evaluation")
    assert [row["texts"] for row in second] != [row["texts"] for row in first]  # it is the newest that answers
    former = (tmp_path / "evaluation/synthetic/predictions.former.jsonl").read_text()
    assert [json.loads(line) for line in former.split("\n")[:-1]] == first
    shutil.rmtree(tmp_path / "checkpoints")
    save(2, 1e-3)
    run.evaluate(config, tmp_path)
    assert "started afresh, as weights was" in capsys.readouterr().out


def test_a_qwen2_vl_folder_runs_natively(tmp_path: Path) -> None:
    """A folder of the older architecture, without a training run, greedily as transformers' own model says it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in TINY.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, folder)
    source = AutoConfig.from_pretrained(TINY)
    text, vision = source.text_config.to_dict(), source.vision_config.to_dict()
    shape = {"depth": 2, "embed_dim": 32, "hidden_size": text["hidden_size"], "num_heads": 2, "mlp_ratio": 2}
    tower = shape | {name: vision[name] for name in ("patch_size", "spatial_merge_size", "temporal_patch_size")}
    ids = {name: getattr(source, name) for name in ("image_token_id", "video_token_id", "vision_start_token_id")}
    text["model_type"] = "qwen2_vl_text"
    config = AutoConfig.for_model("qwen2_vl", text_config=text, vision_config=tower, **ids)
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    rows = evaluate(
        tmp_path / "run", "text", model__path=str(folder), data__test_examples=8, rollout__response_length=24
    )
    assert len(rows) == 8 and {row["ended"] for row in rows} <= {"answer", "truncated"}
    assert results_of(tmp_path / "run/evaluation")["policy"] == f"the model folder {folder}"

    parts = assembly.assemble(small_config("text", model__path=str(folder)), jax.devices()[:1])
    prompt = encode_prompt(SyntheticTask().example("test", 0), parts.encoder)
    tokens = torch.tensor(prompt.token_ids, dtype=torch.long)[None]
    (image,) = prompt.images
    tables = parts.engine(assembly.greedy_rollout(parts.config, parts.backbone)).tables
    banned, said = torch.tensor(np.array(tables.banned)), []
    with torch.no_grad():
        for _ in range(12):
            logits = model(
                input_ids=tokens,
                pixel_values=torch.tensor(image.patches),
                image_grid_thw=torch.tensor([image.grid]),
                mm_token_type_ids=(tokens == parts.backbone.image_token_id).int(),
            ).logits[0, -1]
            said.append(int(logits.masked_fill(banned, -np.inf).argmax()))
            tokens = torch.cat([tokens, torch.tensor([[said[-1]]])], dim=1)
    expected = parts.encoder.tokenizer.decode(said)
    assert rows[0]["texts"][0].startswith(expected.split("<|im_end|>")[0][:20])


def test_an_evaluation_needs_no_run_and_leaves_a_run_alone(tmp_path: Path) -> None:
    """Its configuration is kept where there is none; the fields of an evaluation do not concern a run."""
    config = load_config("configs/tiny_cpu.py", [("evaluate.temperature", "1.0")], mode="evaluate")
    prepare_workdir(tmp_path, config, "evaluate")
    assert saved_config(tmp_path, mode="evaluate") == config
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    prepare_workdir(tmp_path, load_config("configs/tiny_cpu.py"), "train")


def test_every_evaluation_knows_its_like_without_the_tool(tmp_path: Path) -> None:
    sampled = {"samples": 8, "temperature": 1}
    cases: list[tuple[dict[str, object], str, str | None]] = [
        ({}, ".", "no_tools"),
        (sampled, "8_samples_at_1", "no_tools_8_samples_at_1"),
        ({"sets": "slake", "split": "train"}, "split_train", "no_tools_split_train"),
        ({"tools": False} | sampled, "no_tools_8_samples_at_1", None),
        ({"name": "mine"}, "mine", None),
    ]
    for fields, own, other in cases:
        section = small_config(**{f"evaluate__{name}": value for name, value in fields.items()}).evaluate
        assert run.evaluation_folder(section, tmp_path) == tmp_path / "evaluation" / own
        assert run.folder_without_tool(section, tmp_path) == (tmp_path / "evaluation" / other if other else None)
