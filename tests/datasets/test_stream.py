"""The training stream: seeded order, sets mixed by weight, questions left out, and runs that go on where they were."""

from __future__ import annotations

import collections
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs import base
from medvr_jax import assembly
from medvr_jax.configuration import load_config
from medvr_jax.datasets.example import Example
from medvr_jax.datasets.mixing import endless_order, parse_sets
from medvr_jax.datasets.selection import right_shares
from medvr_jax.datasets.source import make_source
from medvr_jax.errors import UserError
from medvr_jax.inputs.chat import load_encoder
from medvr_jax.inputs.survey import prompt_sizes, room_for
from medvr_jax.training.loop import train
from tests.datasets.test_own_data import picture
from tests.inputs.tiny import TINY
from tests.tiny_run import small_config


class FakeSet(Sequence):
    """A published set: records are made when they are asked for, and counted."""

    def __init__(self, name: str, size: int, sides: Sequence[int] = (28,)) -> None:
        self.name, self.size, self.read = name, size, collections.Counter()
        self.images = [picture("PNG", side) for side in sides]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.size:
            raise IndexError(index)
        self.read[index] += 1
        return Example(
            id=str(index),
            images=(self.images[index % len(self.images)],),
            question="What is it? " * (1 + index % 3),
            options=("this", "that"),
            answer="AB"[index % 2],
            answer_kind="choice",
            dataset=self.name.partition("/")[0],
        )


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], FakeSet]:
    """Sets by name and split, where `medvr_jax.datasets.sets` would read them."""
    found = {
        ("large", "train"): FakeSet("large", 60),
        ("small/en", "train"): FakeSet("small/en", 10, (28, 56)),
        ("large", "test"): FakeSet("large", 30),
        ("small/en", "test"): FakeSet("small/en", 3),
    }

    def read_set(name: str, split: str, *, data_dir: str, manual_dir: str, on_error: str) -> FakeSet:
        assert (data_dir, manual_dir, on_error) == ("made", "downloads", "refuse")
        return found[name, split]

    module = types.ModuleType("medvr_jax.datasets.sets")
    module.read_set = read_set
    monkeypatch.setitem(sys.modules, "medvr_jax.datasets.sets", module)
    import medvr_jax.datasets

    monkeypatch.setattr(medvr_jax.datasets, "sets", module, raising=False)
    return found


def section(*sets: str, **fields: Any) -> Any:
    data = base.get_config().data
    data.update(name="sets", sets=sets, data_dir="made", manual_dir="downloads", **fields)
    return data


def names(examples: Sequence[Example]) -> list[tuple[str, str]]:
    """(set, id), without what mixing puts before the id."""
    return [(example.dataset, example.id.rpartition("/")[2]) for example in examples]


# -------------------------------------------------------------------------------------------------------------- order


def test_an_order_is_a_function_of_seed_and_position() -> None:
    for sizes, weights in (([7], None), ([50, 30], None), ([50, 30], (1.0, 3.0))):
        order = endless_order(sizes, weights, seed=3)
        whole = [order[position] for position in range(400)]
        again = endless_order(sizes, weights, seed=3)
        places = np.random.default_rng(0).permutation(400).tolist()
        assert [again[p] for p in places] == [whole[p] for p in places]
        assert [endless_order(sizes, weights, seed=4)[p] for p in range(400)] != whole
        assert set(whole) == set(range(sum(sizes)))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_sets_as_one_give_every_question_once_in_an_epoch(seed: int) -> None:
    order = endless_order([20, 5, 11], None, seed)
    epochs = [[order[36 * epoch + i] for i in range(36)] for epoch in range(5)]
    assert all(sorted(epoch) == list(range(36)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    # Nor does the next seed begin with this one's second epoch.
    later = endless_order([20, 5, 11], None, (seed + 1) % 2**32)
    assert [later[i] for i in range(36)] not in epochs


def test_weights_are_shares_of_the_stream_and_small_sets_begin_again() -> None:
    order = endless_order([40, 6, 100], (1.0, 1.0, 2.0), seed=5)
    stream = [order[position] for position in range(400)]
    bounds = [(0, 40), (40, 46), (46, 146)]
    parts = [[number - low for number in stream if low <= number < high] for low, high in bounds]
    assert [len(part) for part in parts] == [100, 100, 200]
    for part, (low, high) in zip(parts, bounds, strict=True):
        size = high - low
        epochs = [part[start : start + size] for start in range(0, len(part) - size + 1, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    # Mixed evenly: every 40 positions in a row have the same shares.
    for start in range(0, 400, 40):
        assert abs(sum(number < 40 for number in stream[start : start + 40]) - 10) <= 1


def test_sets_and_weights_are_read_or_refused() -> None:
    assert parse_sets(("a", "b/c")) == (("a", "b/c"), None)
    assert parse_sets(("a:2", " b/c : 0.5")) == (("a", "b/c"), (2.0, 0.5))
    wrong = [(("a:2", "b"), "1 weights for 2 sets"), (("a:x",), "weight 'x'"), (("a:0",), "more than 0")]
    for entries, message in (*wrong, (("a", "a"), "'a' twice"), (("a:inf",), "weight 'inf'"), ((7,), "found 7")):
        with pytest.raises(UserError, match=f"data.sets: .*{message}"):
            parse_sets(entries)


# --------------------------------------------------------------------------------------------------------------- sets


def test_published_sets_are_mixed_and_read_when_needed(published: dict) -> None:
    source = make_source(section("large:1", "small/en:1"), seed=0)
    source.load(["train", "test"])
    large, small = published["large", "train"], published["small/en", "train"]
    assert not large.read and not small.read
    found = source.train(10, 40)
    assert collections.Counter(example.dataset for example in found) == {"large": 20, "small": 20}
    assert large.read.total() == small.read.total() == 20
    assert names(source.train(10, 40)) == names(found) == names([source.train(10 + i, 1)[0] for i in range(40)])
    # Two processes that take every other row see, together, what one sees.
    rows = [[source.train(10 + row, 1)[0] for row in range(process, 40, 2)] for process in range(2)]
    assert names([example for pair in zip(*rows, strict=True) for example in pair]) == names(found)
    assert {example.id.rpartition("/")[0] for example in found} == {"large", "small/en"}
    keys = source.keys(0, 200)
    assert large.read.total() + small.read.total() == 160  # none for the keys
    assert [k == keys[0] for k in keys] == [n == names(source.train(0, 1))[0] for n in names(source.train(0, 200))]


def test_test_questions_are_shared_out_over_the_sets(published: dict) -> None:
    source = make_source(section("large", "small/en"), seed=0)
    assert names(source.test(8)) == [("large", str(i)) for i in (0, 7, 14, 21, 29)] + [("small", "0"), ("small", "1"), ("small", "2")]  # fmt: skip  # noqa: E501
    assert len(source.test(33)) == len(source.test(1000)) == 33
    assert names(source.test(8)) == names(make_source(section("large", "small/en"), seed=9).test(8))
    by_set = source.test_sets(8)
    assert {name: names(examples) for name, examples in by_set.items()} == {
        "large": names(source.test(8))[:5],
        "small/en": names(source.test(8))[5:],
    }
    assert list(map(len, source.test_sets().values())) == [30, 3] and list(source.test_sets(1)) == ["large"]


def test_what_is_learned_is_every_question_of_the_stream(published: dict, tmp_path: Path) -> None:
    file = str(scoring_pass(tmp_path, graded(published)))
    source = make_source(section("large", "small/en", filter_file=file), seed=0)
    learned = source.learned()
    assert sorted(e.id for e in learned) == sorted(e.id for e in source.train(0, len(learned)))
    assert len(learned) == 42


def test_the_survey_reads_every_question_once(published: dict) -> None:
    """However many epochs there are; and finds the sizes that looking at every batch finds."""
    source = make_source(section("large", "small/en"), seed=0)
    config = base.get_config()
    config.steps, config.data.prompts_per_step, config.data.test_examples = 50, 6, 10
    config.data.evaluation_batch, config.prompt.sizes = 5, 2
    encoder = load_encoder(TINY, "Look.", prompt_patches=64, prompt_min_pixels=28 * 28, prompt_max_pixels=112 * 112)
    parts = types.SimpleNamespace(config=config, source=source, encoder=encoder)
    found = assembly.survey_prompts(parts, training=True)
    for name in ("large", "small/en"):
        assert set(published[name, "train"].read.values()) == {1}
    tested = source.test(10)
    batches = [source.train(6 * step, 6) for step in range(50)] + [tested[:5], tested[5:]]
    needed = np.array([np.max([room_for(example, encoder) for example in batch], axis=0) for batch in batches])
    assert found == prompt_sizes(needed, (1024, 2048), count=2, merge_unit=4)
    config.prompt.bucket = 20
    with pytest.raises(UserError, match="prompt.bucket allows 20"):
        assembly.survey_prompts(parts, training=True)


# ---------------------------------------------------------------------------------------------------------- selection


def scoring_pass(folder: Path, shares: dict[tuple[str, str], float], samples: int = 4) -> Path:
    """A predictions file in which of a question's samples this share is right."""
    rows = [
        {
            "id": identity,
            "dataset": dataset,
            "sample": sample,
            "scores": {
                "strict": {"correct": int(sample < share * samples)},
                "medevalkit": {"correct": int(sample < (1 - share) * samples)},
            },
        }
        for (dataset, identity), share in shares.items()
        for sample in range(samples)
    ]
    order = np.random.default_rng(1).permutation(len(rows))  # as several processes may write them
    file = folder / "predictions.jsonl"
    file.write_text("".join(json.dumps(rows[i]) + "\n" for i in order))
    return file


def graded(published: dict) -> dict[tuple[str, str], float]:
    """Shares 0, 1/4, 1/2, 3/4, 1, 0, … through the training questions."""
    everything = [example for name in ("large", "small/en") for example in published[name, "train"]]
    return {name: index % 5 / 4 for index, name in enumerate(names(everything))}


@pytest.mark.parametrize(
    ("fields", "stays"),
    [
        ({}, {0.25, 0.5, 0.75}),
        ({"filter_minimum": 0.25}, {0.5, 0.75}),
        ({"filter_minimum": -1.0, "filter_maximum": 0.5}, {0.0, 0.25}),
        ({"filter_minimum": 0.5, "filter_maximum": 1.5}, {0.75, 1.0}),
        ({"filter_rule": "medevalkit", "filter_maximum": 0.5}, {0.75}),
    ],
)
def test_questions_that_teach_nothing_are_left_out(
    published: dict, tmp_path: Path, fields: dict, stays: set[float]
) -> None:
    shares = graded(published)
    data = section("large", "small/en", filter_file=str(scoring_pass(tmp_path, shares)), **fields)
    source = make_source(data, seed=0)
    wanted = {name for name, share in shares.items() if share in stays}
    assert sorted(names(source.train(0, len(wanted)))) == sorted(wanted)
    assert len(source.test(33)) == 33  # all test questions stay


def test_a_question_without_a_score_is_refused_or_skipped(published: dict, tmp_path: Path) -> None:
    shares = graded(published)
    del shares["large", "11"], shares["small", "2"]
    file = str(scoring_pass(tmp_path, shares))
    with pytest.raises(
        UserError, match=r"data.filter_file: 2 faults \(2 not_scored\); large 11: no answer in"
    ) as caught:
        make_source(section("large", "small/en", filter_file=file), 0, tmp_path / "faults").load(["train"])
    report = tmp_path / "faults" / "not_scored.jsonl"
    assert str(report) in str(caught.value) and len(report.read_text().splitlines()) == 2


def test_the_number_of_questions_is_capped_by_a_fixed_choice(published: dict, tmp_path: Path) -> None:
    shares = graded(published)
    file = str(scoring_pass(tmp_path, shares))
    chosen = [
        set(names(make_source(section(*sets, filter_file=file, train_examples=20), seed).train(0, 20)))
        for sets, seed in ((("large", "small/en"), 0), (("small/en", "large"), 7))
    ]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 20
    assert all(0 < shares[name] < 1 for name in chosen[0])
    fewer = set(names(make_source(section("large", "small/en", filter_file=file, train_examples=10), 0).train(0, 10)))
    assert fewer < chosen[0]
    easy = str(scoring_pass(tmp_path, {name: float(name[0] == "small") or 0.5 for name in shares}))
    with pytest.raises(UserError, match="no training question of small/en is left"):
        make_source(section("large", "small/en", filter_file=easy), 0).load(["train"])


def test_a_scoring_pass_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = {"id": 3, "dataset": "slake/en", "scores": {"strict": {"correct": 1}}}
    file.write_text(json.dumps(good) + "\n")
    assert right_shares(file, "strict") == {("slake", "3"): 1.0}
    wrong = [
        ("{", "rows.jsonl:2: not JSON"),
        ('{"id": 1}', "2: scores: found no strict.correct"),
        ('{"id": []}', "2: id"),
    ]
    for line, message in (*wrong, (json.dumps(good | {"scores": {"strict": {"correct": "yes"}}}), "strict.correct")):
        file.write_text(json.dumps(good) + "\n" + line + "\n")
        with pytest.raises(UserError, match=f"data.filter_file: .*{message}"):
            right_shares(file, "strict")
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no row"):
        right_shares(file, "strict")


# ------------------------------------------------------------------------------------------------------------- resume


def test_a_fingerprint_is_that_of_the_stream(published: dict, tmp_path: Path) -> None:
    def fingerprint(*sets: str, seed: int = 0, **fields: Any) -> str:
        return make_source(section(*sets, **fields), seed).fingerprint()

    same = fingerprint("large", "small/en")
    assert same == fingerprint("large", "small/en") and len(same) == 16
    file = str(scoring_pass(tmp_path, graded(published)))
    others = [
        fingerprint("large"),
        fingerprint("large", "small/en", seed=1),
        fingerprint("large:1", "small/en:1"),
        fingerprint("large", "small/en", train_examples=69),
        fingerprint("large", "small/en", filter_file=file),
    ]
    published["large", "train"].size += 1
    others.append(fingerprint("large", "small/en"))
    assert len({same, *others}) == 7
    synthetic = base.get_config().data
    assert make_source(synthetic, 0).fingerprint() == ""


def write_lesions(folder: Path, count: int) -> None:
    """A JSONL file about images of different sizes."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        size = (int(rng.integers(40, 200)), int(rng.integers(40, 200)), 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{number}.png")
        line = {"id": f"q{number}", "image": f"{number}.png", "question": "What is in the lesion?", "answer": "A"}
        lines.append(json.dumps(line | {"options": ["level stripes", "upright stripes"]}))
    (folder / "train.jsonl").write_text("\n".join(lines))


def test_a_run_on_files_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Four steps at once, and two of them and then two; more than an epoch. Other files are not gone on with."""
    write_lesions(tmp_path, 12)
    files = {"data__train_file": tmp_path / "train.jsonl", "data__test_file": tmp_path / "train.jsonl"}
    common = files | {"data__name": "jsonl", "data__image_folder": tmp_path, "optimizer__schedule": "constant"}
    common |= {"checkpoint_every": 2, "evaluate_every": 2, "report__rollouts_every": 1, "export_at_end": False}
    common |= {
        "mesh__host_devices": 8,
        "data__prompts_per_step": 8,
        "rollout__trajectories": 2,
        "data__test_examples": 8,
        "prompt__bucket": 112,
    }
    for folder, stops in (("whole", (4,)), ("parts", (2, 4))):
        for steps in stops:
            train(small_config("text", steps=steps, **common), tmp_path / folder)
    seen = []
    for step in range(4):
        name = f"rollouts/step_{step:06d}.jsonl"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
        records = [json.loads(line) for line in (tmp_path / "whole" / name).read_text().splitlines()]
        seen += [record["prompt_id"] for record in records if record["slot"] == 0]
    assert len(seen) == 32 and all(len(set(seen[start : start + 12])) == 12 for start in (0, 12))

    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(reversed(file.read_text().splitlines())))
    with pytest.raises(UserError, match="checkpoint 4 was trained with other questions"):
        train(small_config("text", steps=6, **common), tmp_path / "parts")


# ------------------------------------------------------------------------------------------------------ configuration


def test_the_recipe_of_the_selection(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    file.touch()
    overrides = [("model.path", str(TINY)), ("data.filter_file", str(file)), ("data.manual_dir", str(tmp_path))]
    config = load_config("configs/omnimedvqa_36k.py", overrides)
    data = config.data
    assert (data.name, data.sets, data.train_examples) == ("sets", ("omnimedvqa",), 36_000)
    assert (data.filter_minimum, data.filter_maximum, data.filter_rule) == (0.0, 1.0, "strict")
    assert config.rewards.tool == "consensus" and config.data.prompts_per_step == 256
    with pytest.raises(UserError, match="data.filter_file: 'runs/scoring/.*predictions.jsonl' is not a file"):
        load_config("configs/omnimedvqa_36k.py", [("model.path", str(TINY))])  # never all questions unasked
    assert load_config("configs/omnimedvqa_36k.py", [*overrides, ("data.sets", "a:1,b/c:2")]).data.sets == (
        "a:1",
        "b/c:2",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__name": "sets"}, r"data.sets: found \(\)"),
        ({"data__sets": "slake"}, "data.sets: found 'slake' with data.name = 'synthetic'"),
        ({"data__name": "sets", "data__sets": "slake:one"}, "data.sets: found weight 'one'"),
        ({"data__name": "sets", "data__sets": "jsonl,slake"}, "data.train_file: '' is not a file"),
        ({"data__on_error": "ignore"}, "data.on_error: found 'ignore', allowed are refuse, skip"),
        ({"data__train_examples": 5}, "data.train_examples: found 5 with data.name = 'synthetic'"),
        ({"data__name": "sets", "data__sets": "slake", "data__filter_file": "none.jsonl"}, "data.filter_file: 'none"),
        ({"data__filter_minimum": 0.5, "data__filter_maximum": 0.5}, "data.filter_minimum: found 0.5"),
        (
            {"data__name": "sets", "data__sets": "slake", "data__filter_rule": "medevalkit"},
            "data.filter_rule: found 'medevalkit' without data.filter_file",
        ),
    ],
)
def test_fields_that_do_not_fit(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_config("text", **fields)
