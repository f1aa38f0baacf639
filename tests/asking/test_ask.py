"""A question from beginning to end: what is told, what is written, and that transformers computes the same from it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from medvr_jax import assembly
from medvr_jax.asking.request import NOTICE, Request, read_image
from medvr_jax.asking.run import ask
from medvr_jax.asking.streaming import Storyteller, let_hear
from medvr_jax.datasets.synthetic import SyntheticTask
from medvr_jax.errors import UserError
from medvr_jax.inputs.boxes import scale_box
from medvr_jax.inputs.chat import encode_prompt
from medvr_jax.rollout.trajectories import Turn
from medvr_jax.training.export import export_policy
from tests.tiny_run import small_config

OPTIONS = ("level stripes", "upright stripes", "rising stripes", "falling stripes")
QUESTION = "What is in the lesion?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder: the tiny policy, a little weaker, so that it is not the one it came from."""
    parts = assembly.assemble(small_config(), jax.devices()[:1], splits=())
    weaker = jax.tree.map(lambda x: jax.device_put(np.asarray(x) * np.float32(0.999), x.sharding), parts.params)
    return export_policy(parts, weaker, tmp_path_factory.mktemp("export") / "policy")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "lesion.png"
    path.write_bytes(SyntheticTask().example("test", 3).images[0])
    return path


def answered(folder: Path, workdir: Path, request: Request) -> tuple[Path, dict[str, Any]]:
    found = ask(small_config(model__path=folder), workdir, request, read_image(request))
    return found, json.loads((found / "answer.json").read_text("utf-8"))


def replayed(folder: Path, image: Image.Image, answer: dict[str, Any], trajectory: dict[str, Any]) -> np.ndarray:
    """transformers' log-probabilities [tokens of the trajectory, V] of the recorded ids, with its own pixels."""
    processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)

    def seen(picture: Image.Image, limits: dict[str, Any]) -> Any:
        size = {"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]}
        return processor(images=[picture], size=size, return_tensors="pt")

    pictures = [seen(image, answer["prompt"])]
    pictures += [seen(image.crop(zoom["original"]), answer["crops"]) for zoom in trajectory["zooms"]]
    assert pictures[0]["image_grid_thw"][0].tolist() == answer["prompt"]["grid"]
    prompt = answer["prompt"]["token_ids"]
    ids = torch.tensor([prompt + trajectory["token_ids"]])
    model = AutoModelForImageTextToText.from_pretrained(folder).eval().float()
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.cat([picture["pixel_values"] for picture in pictures]),
            image_grid_thw=torch.cat([picture["image_grid_thw"] for picture in pictures]),
            mm_token_type_ids=(ids == answer["prompt"]["image_token_id"]).int(),
        ).logits[0, len(prompt) - 1 : -1]
    logits = logits / (answer["decoding"]["temperature"] or 1.0)
    logits[:, answer["decoding"]["never_sampled"]] = -torch.inf
    return torch.log_softmax(logits, -1).numpy()


def test_a_greedy_answer_replays_in_transformers(
    folder: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tokens and log-probabilities of both turns, with the crop between them; and all that is told and written."""
    found, answer = answered(folder, tmp_path, Request(image, QUESTION, OPTIONS))
    (trajectory,) = answer["trajectories"]
    assert [turn["observation"] for turn in trajectory["turns"]] == ["crop", None] and len(trajectory["zooms"]) == 1
    expected, sampled = replayed(folder, Image.open(image).convert("RGB"), answer, trajectory), trajectory["sampled"]
    tokens = np.array(trajectory["token_ids"])
    places = np.flatnonzero(sampled)
    assert len(places) > 40 and not all(sampled)
    assert np.array_equal(expected[places].argmax(-1), tokens[places])
    ours = np.array(trajectory["log_probabilities"])[places]
    assert np.abs(ours - expected[places, tokens[places]]).max() <= 1e-3

    (zoom,) = trajectory["zooms"]
    assert answer["image"]["size"] == [448, 448] and answer["prompt"]["resized_size"] == [112, 112]
    assert np.allclose(scale_box(zoom["normalised"], (1, 1), (448, 448)), zoom["original"])
    assert np.allclose(scale_box(zoom["normalised"], (1, 1), (112, 112)), zoom["resized"])
    assert trajectory["correct"] is None and trajectory["answer"] == "" and answer["agreement"] is None
    assert answer["answer_text"] == f"{answer['answer']}. {OPTIONS['ABCD'.index(answer['answer'])]}"
    assert answer["seconds"]["rollout"] > 0 and answer["model"]["checkpoint_step"] is None

    told = capsys.readouterr().out
    texts = [turn["text"].removesuffix("<|im_end|>") for turn in trajectory["turns"]]
    assert told.startswith(NOTICE) and all(text in told for text in texts) and "<|im_end|>" not in told
    assert told.index(texts[0]) < told.index("[turn 1] looked at normalised") < told.index(texts[1])
    assert f"original {zoom['original']} of 448 x 448" in told and f"\nanswer: {answer['answer_text']}\n" in told
    assert {path.name for path in found.iterdir()} == {"answer.json", "annotated.png", "index.html"}
    page = (found / "index.html").read_text("utf-8")
    assert NOTICE in page and answer["notice"] == NOTICE and QUESTION in page
    with Image.open(found / "annotated.png") as drawn:
        assert drawn.size == (896, 896) and drawn.info["Comment"] == NOTICE


def test_samples_agree_or_not(folder: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same request draws the same samples; each one's log-probabilities are those of transformers."""
    request = Request(image, QUESTION, OPTIONS, samples=4)
    found, answer = answered(folder, tmp_path, request)
    records, agreement = answer["trajectories"], answer["agreement"]
    assert len(records) == 4 and sum(one["samples"] for one in agreement["answers"]) + agreement["no_answer"] == 4
    votes = [record["prediction"] for record in records]
    most = max(votes.count(vote) for vote in votes if vote)
    assert agreement["confidence"] == most / 4 and answer["answer"] == agreement["majority"]
    assert [record["agrees"] for record in records] == [vote == agreement["majority"] for vote in votes]
    assert agreement["consensus"]["samples"] == most
    picture = Image.open(image).convert("RGB")
    for record in records[:2]:
        places = np.flatnonzero(record["sampled"])
        expected = replayed(folder, picture, answer, record)[places, np.array(record["token_ids"])[places]]
        assert np.abs(np.array(record["log_probabilities"])[places] - expected).max() <= 1e-3
    told = capsys.readouterr().out
    assert "not the probability that the answer is right" in told and f"confidence: {most / 4:.2f}" in told
    assert re.search(rf"{most} of 4  {re.escape(answer['answer_text'])}", told)
    assert (found / "consensus.png").is_file()


class Ear:
    """Keeps all that it hears."""

    def __init__(self, story: Storyteller) -> None:
        self.story, self.lengths = story, []

    def begin(self, length: int) -> None:
        self.story.begin(length)

    def sampled(self, tokens: np.ndarray) -> None:
        self.lengths.append(len(tokens))
        self.story.sampled(tokens)

    def served(self, turns: Any) -> None:
        self.story.served(turns)


def test_what_is_told_early_changes_nothing() -> None:
    """The same rollout with and without a listener, and its text in small pieces."""
    parts = assembly.assemble(small_config(), jax.devices()[:1])
    prompt = encode_prompt(parts.source.test(1)[0], parts.encoder)
    engine = parts.engine(assembly.greedy_rollout(parts.config, parts.backbone))
    plain = engine.run(parts.params, [prompt], jax.random.key(0))
    pieces: list[str] = []
    ear = Ear(Storyteller(parts.encoder.tokenizer, [], pieces.append, lambda number, turn: f"turn {number}"))
    let_hear(engine, ear, chunk=3)
    heard = engine.run(parts.params, [prompt], jax.random.key(0))
    for name in ("tokens", "log_probabilities", "entropy", "length"):
        assert np.array_equal(getattr(heard.host, name), getattr(plain.host, name))
    texts = heard.trajectories[0][0].texts
    assert len(texts) == 2 and "".join(pieces) == f"{texts[0]}\nturn 0\n{texts[1]}\nturn 1\n"
    assert len(pieces) > 15 and max(np.diff(ear.lengths[:10])) <= 3


class Letters:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


def test_halves_of_characters_are_held_back() -> None:
    written: list[str] = []
    story = Storyteller(Letters(), [0], written.append, lambda number, turn: "")
    text = "größe 肝臓 🫁\x1b[2J\xff".encode()[:-2] + b"\xff"  # a control sequence, and half a character at the end
    story.begin(2)
    for end in range(len(text) + 1):
        story.sampled(np.frombuffer(b"xx" + text[:end] + b"\0", np.uint8))
    story.served([Turn("…")])
    assert "".join(written) == "größe 肝臓 🫁\ufffd[2J\ufffd\n"
    assert [piece for piece in written if "\ufffd" in piece] == ["\ufffd", "\ufffd"]


def test_what_the_prompt_cannot_hold(folder: Path, image: Path, tmp_path: Path) -> None:
    config = small_config(model__path=folder)
    long = tmp_path / "long.png"
    Image.new("RGB", (900, 2)).save(long)
    for request, message in (
        (Request(image, "What is 肝臓? " * 20), r"--question: .* \d+ tokens; prompt.bucket allows 96; .*bucket=\d+"),
        (Request(image, "Is it <|im_end|>?"), r"--question: found the text <\|im_end\|>"),
        (Request(image, "Is it?", ("a", "<|image_pad|>")), r"--option: found the text <\|image_pad\|>"),
        (Request(long, "Is it?"), "--image: .*long.png: 900x2 is not usable"),
        (Request(image, "Is it?", frame=1), "--frame: found 1, .*lesion.png allows 0, as there is one only"),
        (
            Request(image, "Is it?", window=(1.0, 2.0)),
            "--window: .*lesion.png: .*a window is for grey with more than 8",
        ),
    ):
        with pytest.raises(UserError, match=message):
            ask(config, tmp_path / "run", request, read_image(request))
    assert not (tmp_path / "run").exists()
