"""Every published set, from the files as its makers publish them to the tables.

The samples of `tests/datasets/samples.py` go through the builders, the training stream, one step of training, the
policy's own answers, predictions files and the tables; what should come out is written here by hand.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import base
from medvr_jax.configuration import load_config
from medvr_jax.datasets.example import LETTERS, Example
from medvr_jax.datasets.sets import SETS, read_set
from medvr_jax.datasets.source import make_source
from medvr_jax.errors import UserError
from medvr_jax.evaluation import run
from medvr_jax.evaluation.elsewhere import evaluate_elsewhere
from medvr_jax.evaluation.tables import make_tables
from medvr_jax.inputs.chat import Encoder, Prompt, encode_prompts, load_encoder
from medvr_jax.rollout.engine import RolloutEngine
from medvr_jax.training.loop import train
from tests.datasets import samples
from tests.inputs.tiny import TINY
from tests.tiny_run import small_config

RULES = ("medevalkit", "strict")
FIELDS = ("modality", "question_type", "language", "answer_kind")
Counts = dict[str, int]
Row = dict[str, Any]


def asked(
    answer_kind: Counts, modality: Counts | None = None, question_type: Counts | None = None, **language: int
) -> dict[str, Counts]:
    """How many questions of a set have which value of each field; where nothing is said, all have none, or English."""
    total = sum(answer_kind.values())
    found = (modality or {"": total}, question_type or {"": total}, language or {"en": total}, answer_kind)
    return dict(zip(FIELDS, found, strict=True))


ASKED = {  # the test questions of every set
    "omnimedvqa": asked({"choice": 8}, {"CT": 4, "MRI": 4}, {"Disease Diagnosis": 4, "Modality Recognition": 4}),
    "pmc_vqa": asked({"choice": 5}),
    "medxpertqa_mm": asked({"choice": 6}, question_type={"Understanding": 3, "Reasoning": 3}),
    "vqa_rad": asked({"yes_no": 2, "open": 2}),
    "slake": asked({"open": 2, "closed": 1, "yes_no": 1}, {"MRI": 4}, {"Organ": 4}, en=2, zh=2),
    "path_vqa": asked({"yes_no": 2, "open": 2}),
    "medvlm_r1": asked({"choice": 9}, {"MRI": 3, "CT": 3, "X-Ray": 3}, {"OmniMedVQA": 9}),
    "grounding": asked({"yes_no": 1, "choice": 1}, {"": 1, "CT": 1}, {"ChestX-ray8": 1, "": 1}),
    "slake_detection": asked({"yes_no": 2}, {"MRI": 2}, {"Liver": 1, "Left Kidney": 1}),
}
OTHERS = {  # other variants and layouts, in a folder of their own
    "omnimedvqa/mri": asked({"choice": 4}, {"MRI": 4}, {"Modality Recognition": 4}),
    "pmc_vqa/v1": asked({"choice": 2}),
    "vqa_rad": asked({"yes_no": 1, "open": 2}, question_type={"PRES, POS": 3}),
    "slake/en": asked({"open": 1, "closed": 1}, {"MRI": 2}, {"Organ": 2}, en=2),
    "slake/zh": asked({"open": 1, "yes_no": 1}, {"MRI": 2}, {"Organ": 2}, zh=2),
    "medvlm_r1/huatuo": asked(
        {"choice": 17, "open": 1},
        {"MRI": 10, "CT": 3, "X-Ray": 3, "": 2},
        {"OmniMedVQA": 16, "VQA-RAD": 1, "PathVQA": 1},
    ),
}
MAIN_TABLE = (("omnimedvqa", "pmc_vqa", "medxpertqa_mm"), ("vqa_rad", "slake", "path_vqa"))
HEAD = "| model | OmniMedVQA | PMC-VQA◇ | MedXpertQA◇ | avg | VQA-RAD | SLAKE | PathVQA◇ | avg |"

ROOM = {  # for six images and a question in bytes; all images are resized to 56 x 56 pixels
    "prompt.bucket": 256,
    "prompt.images": 6,
    "prompt.patches": 16,
    "prompt.min_pixels": 56 * 56,
    "prompt.max_pixels": 56 * 56,
    "prompt.sizes": 1,
    "rollout.crop_patches": 16,
    "rollout.crop_min_pixels": 56 * 56,
    "rollout.crop_max_pixels": 56 * 56,
    "rollout.response_length": 96,
    "data.prompts_per_step": 8,
    "data.evaluation_batch": 8,
}


def written(root: Path) -> dict[str, object]:
    """All samples below `root`, and the fields that name the folders."""
    for name, write in samples.WRITERS.items():
        records = write(root / "manual" / name)
        if name == "omnimedvqa":  # with the question of two options among the tested ones
            samples.write_public_splits(root / "manual" / name, records, first=1)
    return {"data.manual_dir": root / "manual", "data.data_dir": root / "prepared"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    assert set(ASKED) == set(SETS) == set(samples.WRITERS)
    return written(tmp_path_factory.mktemp("sets"))


def config_of(variant: str, *changes: Mapping[str, object]) -> Any:
    fields = {name: value for part in (ROOM, *changes) for name, value in part.items()}
    return small_config(variant, **{name.replace(".", "__"): value for name, value in fields.items()})


def questions_of(name: str, folders: Mapping[str, object]) -> Sequence[Example]:
    return read_set(name, "test", data_dir=folders["data.data_dir"], manual_dir=folders["data.manual_dir"])


def rows_of(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def tables_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tables.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------ the training stream


def test_the_stream_gives_every_training_question_by_weight(folders: dict[str, object]) -> None:
    """All sets that have training questions; MedXpertQA-MM has none."""
    sizes = {
        "omnimedvqa": 16, "pmc_vqa": 3, "vqa_rad": 4, "slake": 3, "path_vqa": 4, "medvlm_r1": 7, "grounding": 3,
        "slake_detection": 2,
    }  # fmt: skip
    data = base.get_config().data
    data.update(name="sets", sets=tuple(f"{name}:{4 if name == 'omnimedvqa' else 2}" for name in sizes))
    data.update(manual_dir=str(folders["data.manual_dir"]), data_dir=str(folders["data.data_dir"]))
    source = make_source(data, seed=3)
    shares = {name: 16 if name == "omnimedvqa" else 8 for name in sizes}
    stream = source.train(0, sum(shares.values()))
    found = collections.Counter(example.dataset for example in stream)
    assert all(abs(found[name] - share) <= 1 for name, share in shares.items())
    for name, size in sizes.items():
        ids = [example.id for example in stream if example.dataset == name]
        assert all(identity.startswith(f"{name}/") for identity in ids)
        first, second = ids[:size], ids[size : 2 * size]
        assert len(set(first)) == min(size, len(ids)) and len(set(second)) == len(second)  # epoch after epoch

    prompts = {prompt.example.id: prompt for prompt in encode_prompts(stream, encoder_of(folders))}
    assert all(len(prompt.images) == len(prompt.example.images) == 1 for prompt in prompts.values())
    assert prompts["omnimedvqa/Chest CT Scan_0002"].example.options == ("Bronchitis", "Adenocarcinoma", "Asthma")
    assert prompts["omnimedvqa/Chest CT Scan_0003"].example.modality == "CT"
    assert prompts["slake/1"].example.question == "图像里面包含肝脏吗?"
    assert prompts["pmc_vqa/train_2-0"].example.options[1:3] == ("Focal uptake", "A:B ratio")

    data.sets = tuple(ASKED)
    tested = make_source(data, seed=3).test_sets(1000)
    assert {name: len(examples) for name, examples in tested.items()} == {
        name: sum(counts["answer_kind"].values()) for name, counts in ASKED.items()
    }
    with pytest.raises(UserError, match="medxpertqa_mm has no split 'train'; allowed: validation, test"):
        make_source(data, seed=3).load(["train"])


def encoder_of(folders: Mapping[str, object]) -> Encoder:
    prompt = config_of("zoom", folders).prompt
    return load_encoder(TINY, prompt.system, prompt_min_pixels=prompt.min_pixels, prompt_max_pixels=prompt.max_pixels)


# --------------------------------------------------------------------------------------------------- a step of training


def test_a_step_on_three_sets_with_weights_and_their_evaluation(folders: dict[str, object], tmp_path: Path) -> None:
    """Questions of two of them have the same ids."""
    names = ("omnimedvqa", "vqa_rad", "path_vqa")
    run_of = {
        "steps": 1,
        "data.name": "sets",
        "data.sets": "omnimedvqa:2,vqa_rad:1,path_vqa:1",
        "data.test_examples": 8,
        "rollout.trajectories": 2,
        "rollout.response_length": 16,
        "prompt.images": 1,
        "prompt.bucket": 160,
        "export_at_end": False,
    }
    config = config_of("text", folders, run_of)
    train(config, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "rollouts/step_000000.jsonl").read_text().splitlines()]
    shares = collections.Counter(record["prompt_id"].partition("/")[0] for record in records)
    assert shares == {"omnimedvqa": 2 * 4, "vqa_rad": 2 * 2, "path_vqa": 2 * 2}
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [0, 1] and np.isfinite(metrics[0]["train/loss"])
    assert [row["eval/examples"] for row in metrics] == [8, 8]

    run.evaluate(config, tmp_path)
    results = json.loads((tmp_path / "evaluation/results.json").read_text())
    assert results["policy"] == "step 1" and results["data"] == ", ".join(names)
    assert {name: found["questions"] for name, found in results["sets"].items()} == dict(
        zip(names, (3, 2, 3), strict=True)
    )
    rows = rows_of(tmp_path / "evaluation")
    assert {("vqa_rad", "test-0"), ("path_vqa", "test-0")} < {(row["dataset"], row["id"]) for row in rows}
    assert results["accuracy"] == metrics[1]["eval/accuracy"]  # the same questions, the same weights


# ------------------------------------------------------------------------------------------------ the policy's answers


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """An evaluation of all sets: its folder, and by set and id the prompts that reached the policy, each with the
    number of images that the model was given."""

    folder: Path
    prompts: dict[tuple[str, str], tuple[Prompt, int]]


@pytest.fixture(scope="module")
def evaluated(folders: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The tiny model, with its tool, on every set."""
    seen: dict[tuple[str, str], tuple[Prompt, int]] = {}
    original = RolloutEngine.run

    def spied(engine: RolloutEngine, params: Any, prompts: Sequence[Prompt], *rest: Any) -> Any:
        rollout = original(engine, params, prompts, *rest)
        images = rollout.prompt_batch.images.valid.any(axis=-1).sum(axis=-1)
        for prompt, count in zip(prompts, images.tolist(), strict=True):
            seen[prompt.example.dataset, prompt.example.id] = (prompt, count)
        return rollout

    workdir = tmp_path_factory.mktemp("policy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RolloutEngine, "run", spied)
        run.evaluate(config_of("zoom", folders, {"evaluate.sets": ",".join(ASKED)}), workdir)
    return Evaluated(workdir / "evaluation", seen)


def test_the_policy_is_asked_what_the_files_ask(evaluated: Evaluated, folders: dict[str, object]) -> None:
    encoder, texts = encoder_of(folders), {}
    for name in ASKED:
        for example in questions_of(name, folders):
            prompt, images = evaluated.prompts[name, example.id]
            text = texts[name, example.id] = encoder.tokenizer.decode(prompt.token_ids)
            assert prompt.example == example
            assert images == len(prompt.images) == len(example.images) == text.count("<|vision_start|>")
            assert text.count("<|image_pad|>") == 4 * images
            assert text.endswith(f"{example.question_text()}<|im_end|>\n<|im_start|>assistant\n")
    assert texts.keys() == evaluated.prompts.keys()
    images = {key: count for key, (_, count) in evaluated.prompts.items() if count > 1}
    assert images == {("medxpertqa_mm", f"MM-{n}"): n + 1 for n in range(1, 6)} | {("grounding", "own"): 2}

    choices = "\n".join(f"{letter}. {letter.lower()} choice" for letter in "ABCDE")
    expert = texts["medxpertqa_mm", "MM-5"]
    assert f"<|vision_end|>A man, aged 25, sees a physician. What is next?\n{choices}<|im_end|>" in expert
    assert expert.count("a choice") == 1 and not any("Answer Choices" in text for text in texts.values())
    assert "图中有肝脏吗？<|im_end|>" in texts["slake", "6"]
    assert "Is this normal?\nA. Yes\nB. No, It's normal<|im_end|>" in texts["omnimedvqa", "Chest CT Scan_0001"]
    labels = "Which uptake pattern is seen?\nA. Diffuse uptake\nB. Focal uptake\nC. A:B ratio\nD. Diffuse uptake<"
    assert labels in texts["pmc_vqa", "test_2-0"]


def right_by_hand(row: Row) -> float:
    """A short rule for the short answers of the tiny model: one pair of tags, and in it the answer."""
    said = re.findall(r"<answer>(.*?)</answer>", row["response"], re.DOTALL)
    allowed = {row["answer"]}
    if row["answer_kind"] == "choice":
        text = row["options"][LETTERS.index(row["answer"])]
        allowed |= {text, f"{row['answer']}. {text}"} if row["options"].count(text) == 1 else set()
    bare = {text.casefold().strip(" .\n") for text in allowed}
    return float(len(said) == 1 and said[0].casefold().strip(" .\n") in bare)


def test_the_tables_are_those_of_the_policys_rows(evaluated: Evaluated) -> None:
    rows, tables = rows_of(evaluated.folder), tables_of(evaluated.folder)
    assert all(row["scores"]["strict"]["correct"] == right_by_hand(row) for row in rows)
    assert tables["model"] == "the model folder medvr_jax/assets/tiny"
    check_tables(evaluated.folder, rows, ASKED)
    used = tables["tool_use"]
    assert {name: found["answers"] for name, found in used.items()} == {
        name: sum(counts["answer_kind"].values()) for name, counts in ASKED.items()
    }
    for name, found in used.items():
        here = [row for row in rows if row["dataset"] == name]
        assert found["tool_rate"] == np.mean([row["called"] for row in here])
        assert found["images_per_answer"] == np.mean([len(row["boxes"]) for row in here])

    # The tiny model zooms where it learned to alone; so zooms into the left half of each first true box are put in.
    known = {"slake": 1, "grounding": 2, "slake_detection": 2}  # questions with true boxes
    assert {name: found["mean_iou"]["questions"] for name, found in tables["grounding"].items()} == known
    zoomed = [
        row | {"boxes": [left_half(row["true_boxes"][0])], "box_entropy": [1.0]} for row in rows if row["true_boxes"]
    ]
    for found in make_tables(zoomed)["grounding"].values():
        assert found["mean_iou"]["mean"] == found["last_iou"]["mean"] == pytest.approx(0.5) and found["zoomed"] == 1.0


def left_half(box: Sequence[float]) -> list[float]:
    return [box[0], box[1], (box[0] + box[2]) / 2, box[3]]


# -------------------------------------------------------------------------------------------------- predictions files


def score(file: Path, names: Sequence[str], folders: Mapping[str, object], say: Callable[[int, Example], str]) -> Path:
    """Evaluates a predictions file in which `say` answers the questions of these sets; the evaluation's folder."""
    lines = [
        {"dataset": name, "id": example.id, "text": say(number, example)}
        for name in names
        for number, example in enumerate(questions_of(name, folders))
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    fields = folders | {"evaluate.predictions_file": file, "evaluate.sets": ",".join(names)}
    overrides = [(name, str(value)) for name, value in fields.items()]
    evaluate_elsewhere(load_config("configs/tiny_cpu.py", overrides, mode="evaluate"), file.parent)
    return file.parent / "evaluation" / f"file_{file.stem}"


def truth(number: int, example: Example) -> str:
    return f"<think>It is.</think><answer>{example.answer}</answer>"


def test_perfect_and_empty_answers(folders: dict[str, object], tmp_path: Path) -> None:
    perfect = score(tmp_path / "perfect.jsonl", tuple(ASKED), folders, truth)
    check_tables(perfect, rows_of(perfect), ASKED)
    for rule in RULES:
        assert all(figure["mean"] == 1.0 for figure in tables_of(perfect)["rules"][rule]["sets"].values())
    page = (perfect / "tables.md").read_text(encoding="utf-8")
    assert page.count("| perfect |" + " 100.0 [100.0, 100.0] |" * 8 + "\n") == 2
    empty = score(tmp_path / "empty.jsonl", tuple(ASKED), folders, lambda number, example: "")
    check_tables(empty, rows_of(empty), ASKED)
    assert not any(figure["mean"] for figure in tables_of(empty)["rules"]["strict"]["sets"].values())


def test_every_second_answer_wrong(folders: dict[str, object], tmp_path: Path) -> None:
    def say(number: int, example: Example) -> str:
        return "<answer>nothing of the kind</answer>" if number % 2 else truth(number, example)

    folder = score(tmp_path / "half.jsonl", tuple(ASKED), folders, say)
    check_tables(folder, rows_of(folder), ASKED)
    for name, figure in tables_of(folder)["rules"]["strict"]["sets"].items():
        assert figure["mean"] == (figure["questions"] + 1) // 2 / figure["questions"], name


def test_other_variants_and_layouts(tmp_path: Path) -> None:
    folders = written(tmp_path)
    manual = tmp_path / "manual"
    (manual / "vqa_rad").rename(tmp_path / "parquet")
    samples.write_vqa_rad_json(manual / "vqa_rad")
    folder = score(tmp_path / "perfect.jsonl", tuple(OTHERS), folders, truth)
    rows, merged = rows_of(folder), collections.defaultdict(lambda: {field: collections.Counter() for field in FIELDS})
    for name, counts in OTHERS.items():
        (kept,) = (folder / name).glob("predictions.jsonl")
        assert len(rows_of(kept.parent)) == sum(counts["answer_kind"].values())
        for field in FIELDS:
            merged[name.partition("/")[0]][field].update(counts[field])
    check_tables(folder, rows, merged, averages=(False, False))
    for rule in RULES:
        assert all(figure["mean"] == 1.0 for figure in tables_of(folder)["rules"][rule]["sets"].values())


# --------------------------------------------------------------------------------------- the tables once more, by hand


def check_tables(
    folder: Path,
    rows: Sequence[Row],
    expected: Mapping[str, Mapping[str, Mapping[str, int]]],
    averages: tuple[bool, bool] = (True, True),
) -> None:
    """tables.json and tables.md have the sets, counts and accuracies of the rows; each rule by itself.

    expected: how many questions of each set have which value of each field.
    averages: whether the main table has all sets of its first, and of its second group.
    """
    tables, page = tables_of(folder), (folder / "tables.md").read_text(encoding="utf-8")
    total = sum(sum(counts["answer_kind"].values()) for counts in expected.values())
    assert len(rows) == tables["answers"] == tables["questions"] == total
    assert list(tables["rules"]) == list(RULES) and page.count(f"{HEAD}\n") == 2
    for rule, part in zip(RULES, page.split("## Rule ")[1:], strict=True):
        found, means = tables["rules"][rule], {}
        assert set(found["sets"]) == set(found["breakdowns"]) == set(expected)
        for name, counts in expected.items():
            here = [row for row in rows if row["dataset"] == name]
            means[name] = check_set(found["sets"][name], here, rule)
            shown = f"| {name} | {len(here)} | {100 * means[name]:.1f} ["
            assert shown in part
            for field in FIELDS:
                figures = found["breakdowns"][name][field]
                assert {value: figure["questions"] for value, figure in figures.items()} == dict(counts[field])
                for value, figure in figures.items():
                    chosen = [row for row in here if row[field] == value]
                    assert figure["mean"] == pytest.approx(mean_of(chosen, rule))
        (line,) = found["main"].values()
        names = [name for group in MAIN_TABLE for name in group if name in expected]
        assert list(line["sets"]) == names
        cells = []
        for group, complete, average in zip(MAIN_TABLE, averages, line["averages"], strict=True):
            assert all(line["sets"][name]["mean"] == pytest.approx(means[name]) for name in group if name in expected)
            cells += [means.get(name) for name in group] + [np.mean([means[n] for n in group]) if complete else None]
            assert (average is not None) == complete
            assert average is None or average["mean"] == pytest.approx(cells[-1])
        row = part.split(f"{HEAD}\n")[1].splitlines()[1]
        shown = [cell.strip().partition(" ")[0] for cell in row.strip("|").split(" | ")[1:]]
        assert shown == ["–" if cell is None else f"{100 * cell:.1f}" for cell in cells]


def check_set(figure: Mapping[str, Any], rows: Sequence[Row], rule: str) -> float:
    """A set's accuracy, which is that of its rows, closed and open ones apart."""
    assert figure["questions"] == len(rows) and figure["mean"] == pytest.approx(mean_of(rows, rule))
    for part, is_open in (("closed", False), ("open", True)):
        chosen = [row for row in rows if (row["answer_kind"] == "open") == is_open]
        assert (part in figure) == bool(chosen)
        if chosen:
            assert figure[part]["questions"] == len(chosen)
            assert figure[part]["mean"] == pytest.approx(mean_of(chosen, rule))
    assert figure["low"] <= figure["mean"] <= figure["high"]
    return mean_of(rows, rule)


def mean_of(rows: Sequence[Row], rule: str) -> float:
    return float(np.mean([row["scores"][rule]["correct"] for row in rows]))
