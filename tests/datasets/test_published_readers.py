"""Each reader on a sample in the published layout: what becomes of its oddities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.faults import Faults
from medvr_jax.datasets.published import medvlm_r1, omnimedvqa
from medvr_jax.datasets.published.checks import checked
from medvr_jax.datasets.published.record import Record
from medvr_jax.datasets.sets import SETS
from tests.datasets import samples


def read_records(name: str, folder: Path, split: str, variant: str = "") -> list[Record]:
    """The sound records of a sample, which has no faults."""
    published, faults = SETS[name], Faults(name)
    variant = variant or published.variants[0]
    assert split in published.require(folder, variant)
    records = list(checked(published.read(folder, variant, split, faults), faults))
    assert not faults.list
    assert all(record.example.dataset == name and record.where for record in records)
    return records


def read(name: str, folder: Path, split: str, variant: str = "") -> dict[str, Example]:
    return {record.example.id: record.example for record in read_records(name, folder, split, variant)}


def test_omnimedvqa_options_and_modalities(tmp_path: Path) -> None:
    written = samples.write_omnimedvqa(tmp_path)
    examples = read("omnimedvqa", tmp_path, "train") | read("omnimedvqa", tmp_path, "test")
    assert list(sorted(examples)) == sorted(record["question_id"] for record in written)
    plain, two, three, odd = (examples[f"Chest CT Scan_{number:04d}"] for number in range(4))
    assert (plain.options[1], plain.answer, plain.answer_kind) == ("Adenocarcinoma", "B", "choice")
    assert (two.options, two.answer) == (("Yes", "No, It's normal"), "B")  # a full stop more in the answer
    assert (three.options, three.answer) == (("Bronchitis", "Adenocarcinoma", "Asthma"), "C")  # no option C
    assert {example.modality for example in examples.values()} == {"CT", "MRI"} and odd.modality == "CT"
    assert plain.images == (tmp_path / "Images/Chest CT Scan/test/000000 (6).png",)


def test_omnimedvqa_variants_are_the_questions_of_a_kind(tmp_path: Path) -> None:
    samples.write_omnimedvqa(tmp_path)

    def both(variant: str) -> list[Example]:
        return [
            example for split in ("train", "test") for example in read("omnimedvqa", tmp_path, split, variant).values()
        ]

    assert {example.modality for example in both("mri")} == {"MRI"} and len(both("mri")) == 12
    assert {example.question_type for example in both("disease_diagnosis")} == {"Disease Diagnosis"}
    assert not both("x_ray")
    published = {
        "CT(Computed Tomography)": "CT",
        "Dermoscopy": "Dermoscopy",
        "Fundus Photography": "Fundus",
        "MR (Mag-netic Resonance Imaging)": "MRI",
        "Microscopy Images": "Microscopy",
        "OCT (Optical Coherence Tomography": "OCT",
        "X-Ray": "X-Ray",
        "ultrasound": "Ultrasound",
    }
    assert {name: omnimedvqa.short_modality(name) for name in published} == published
    assert set(omnimedvqa.MODALITY_VARIANTS.values()) == set(published.values())


def test_omnimedvqa_own_split_separates_images_by_content_and_seed(tmp_path: Path) -> None:
    written = samples.write_omnimedvqa(tmp_path, count=40)
    copy = samples.omnimedvqa_record(900, image_path="Images/copy of another.png")
    source = tmp_path / "QA_information/Open-access/Chest CT Scan.json"
    samples.write_json(source, [*json.loads(source.read_text()), copy])
    (tmp_path / copy["image_path"]).write_bytes((tmp_path / written[7]["image_path"]).read_bytes())

    splits = {split: read("omnimedvqa", tmp_path, split) for split in ("train", "test")}
    assert len(splits["train"]) + len(splits["test"]) == 81 and not set(splits["train"]) & set(splits["test"])
    images = {split: {e.images[0].read_bytes() for e in examples.values()} for split, examples in splits.items()}
    assert not images["train"] & images["test"]
    together = [split for split, examples in splits.items() if written[7]["question_id"] in examples]
    assert copy["question_id"] in splits[together[0]]

    contents = [number.to_bytes(4) for number in range(4000)]
    first, again, other = ([omnimedvqa.seeded_split(c, seed) for c in contents] for seed in (1, 1, 2))
    assert first == again != other
    assert 0.17 < first.count("test") / len(contents) < 0.23


def test_omnimedvqa_public_splits_are_followed(tmp_path: Path) -> None:
    written = samples.write_omnimedvqa(tmp_path)
    samples.write_public_splits(tmp_path, written)
    ids = [record["question_id"] for record in written]
    assert set(read("omnimedvqa", tmp_path, "test")) == set(ids[::3])
    assert set(read("omnimedvqa", tmp_path, "train")) == set(ids) - set(ids[::3])
    assert set(read("omnimedvqa", tmp_path, "test", "mri")) == {i for i in ids[::3] if i.startswith("Rad")}
    assert set(read("omnimedvqa", tmp_path, "test", "modality_recognition")) == {
        i for i in ids[::4] if i.startswith("Rad")
    }


@pytest.mark.parametrize(("variant", "stem", "answers"), [("v2", "test_2", "ABCDA"), ("v1", "test_clean", "AA")])
def test_pmc_vqa_choices_lose_their_own_label_only(tmp_path: Path, variant: str, stem: str, answers: str) -> None:
    samples.write_pmc_vqa(tmp_path)
    examples = list(read("pmc_vqa", tmp_path, "test", variant).values())
    assert [example.answer for example in examples] == list(answers)
    assert [example.id for example in examples] == [f"{stem}-{number}" for number in range(len(answers))]
    assert examples[0].options == ("Diffuse uptake", "Focal uptake", "A:B ratio", "Diffuse uptake")
    assert examples[0].question == "Which uptake pattern is seen?"
    assert examples[0].images[0].parent.name == ("figures" if variant == "v2" else "images")


def test_medxpertqa_question_without_its_choices_and_up_to_six_images(tmp_path: Path) -> None:
    samples.write_medxpertqa_mm(tmp_path)
    examples = read("medxpertqa_mm", tmp_path, "test")
    assert [len(example.images) for example in examples.values()] == [1, 2, 3, 4, 5, 6]
    first = examples["MM-0"]
    assert first.question == "A man, aged 20, sees a physician. What is next?"
    assert first.options == tuple(f"{letter} choice" for letter in "abcde")
    assert [example.answer for example in examples.values()] == list("ABCDEA")
    assert first.question_type == "Understanding" and len(read("medxpertqa_mm", tmp_path, "validation")) == 2


@pytest.mark.parametrize("name", ["vqa_rad", "path_vqa"])
def test_parquet_layout(tmp_path: Path, name: str) -> None:
    samples.WRITERS[name](tmp_path)
    examples = read(name, tmp_path, "test")
    assert list(examples) == [f"test-{number}" for number in range(4)]  # through both files
    assert [example.answer_kind for example in examples.values()] == ["yes_no", "open", "yes_no", "open"]
    assert examples["test-2"].answer == "No"
    assert examples["test-3"].images == (samples.encoded(samples.picture(3)),)


def test_vqa_rad_original_json(tmp_path: Path) -> None:
    samples.write_vqa_rad_json(tmp_path)
    assert [e.answer_kind for e in read("vqa_rad", tmp_path, "train").values()] == ["yes_no", "closed"]
    test = read("vqa_rad", tmp_path, "test")
    assert list(test) == ["2", "3", "4"]  # by phrase_type
    assert [(e.answer, e.answer_kind) for e in test.values()] == [
        ("Right lower lobe", "open"),
        ("3", "open"),
        ("no", "yes_no"),
    ]
    assert test["2"].question_type == "PRES, POS"


def test_slake_languages_and_kinds(tmp_path: Path) -> None:
    samples.write_slake(tmp_path)
    both = read("slake", tmp_path, "test")
    english, chinese = read("slake", tmp_path, "test", "en"), read("slake", tmp_path, "test", "zh")
    assert set(both) == {"4", "5", "6", "7"} and both == english | chinese
    assert {e.language for e in english.values()} == {"en"} and {e.language for e in chinese.values()} == {"zh"}
    assert [e.answer_kind for e in both.values()] == ["open", "closed", "yes_no", "open"]
    train = read("slake", tmp_path, "train")
    assert [e.answer_kind for e in train.values()] == ["yes_no", "closed", "yes_no"]
    assert (both["6"].question, both["6"].answer) == ("图中有肝脏吗？", "是")
    assert (both["4"].modality, both["4"].question_type) == ("MRI", "Organ")


def test_slake_other_file_names_and_nested_images(tmp_path: Path) -> None:
    samples.write_slake(tmp_path)
    (tmp_path / "validation.json").rename(tmp_path / "validate.json")
    (tmp_path / "imgs").rename(tmp_path / "inner")
    (tmp_path / "imgs").mkdir()
    (tmp_path / "inner").rename(tmp_path / "imgs/imgs")
    assert read("slake", tmp_path, "validation")["3"].images[0].is_file()


def test_slake_boxes_are_normalised_and_named_ones_are_the_examples(tmp_path: Path) -> None:
    samples.write_slake(tmp_path)
    test = {record.example.id: record for record in read_records("slake", tmp_path, "test")}
    liver, kidney, whole = (0.25, 0.25, 0.75, 0.75), (0, 0, 0.125, 8 / 48), (0, 0, 1, 1)
    assert [(r.label, r.box) for r in test["4"].regions] == [
        ("Liver", liver),
        ("Left Kidney", kidney),
        ("Liver", whole),
    ]
    assert test["4"].example.boxes == ()
    assert test["5"].example.boxes == (liver, whole)
    assert test["6"].example.boxes == () and test["6"].regions == test["4"].regions
    train = {record.example.id: record for record in read_records("slake", tmp_path, "train")}
    assert train["0"].example.boxes == (liver, whole)  # "livers"
    with Image.open(test["4"].mask) as mask:
        assert mask.getbbox() == (16, 12, 48, 36)


def test_slake_detection_asks_per_name_and_splits_by_english_questions(tmp_path: Path) -> None:
    samples.write_slake(tmp_path)
    assert list(read("slake_detection", tmp_path, "test")) == ["xmlab0-Liver", "xmlab0-Left Kidney"]
    train = read("slake_detection", tmp_path, "train")
    assert list(train) == ["xmlab1-Liver", "xmlab1-Left Kidney"]  # image 0 is there in Chinese only
    liver = train["xmlab1-Liver"]
    assert liver.boxes == ((0.25, 0.25, 0.75, 0.75), (0, 0, 1, 1))
    assert (liver.question, liver.answer, liver.answer_kind) == (
        "Can the liver be seen in this image?",
        "yes",
        "yes_no",
    )


def test_medvlm_r1_test_keeps_its_order_and_training_its_distance(tmp_path: Path) -> None:
    samples.write_medvlm_r1(tmp_path)
    test = list(read("medvlm_r1", tmp_path, "test").values())
    assert [example.modality for example in test] == ["MRI"] * 3 + ["CT"] * 3 + ["X-Ray"] * 3
    assert [example.answer for example in test] == ["A", "B", "C"] * 3 and test[0].options[0] == "Leukemia."
    train = read("medvlm_r1", tmp_path, "train")
    assert len(train) == 7 and {example.modality for example in train.values()} == {"MRI"}
    assert not {e.images for e in train.values()} & {e.images for e in test}
    everything = list(read("medvlm_r1", tmp_path, "test", "huatuo").values())
    assert len(everything) == 18
    assert (everything[-2].question_type, everything[-2].answer, everything[-2].modality) == ("VQA-RAD", "B", "")
    assert (everything[-1].answer_kind, everything[-1].answer) == ("open", "in the hypothalamus")


def test_medvlm_r1_draw_depends_on_ids_and_seed_alone() -> None:
    records = [Record("", Example(str(n), (), "?", (), "a", "open")) for n in range(50)]
    drawn = medvlm_r1.draw(records, 20, seed=1)
    assert len(drawn) == 20 and drawn == sorted(drawn, key=records.index)
    assert {r.example.id for r in medvlm_r1.draw(records[::-1], 20, seed=1)} == {r.example.id for r in drawn}
    assert medvlm_r1.draw(records, 20, seed=2) != drawn


def test_grounding_lines(tmp_path: Path) -> None:
    samples.write_grounding(tmp_path)
    plain, own = read("grounding", tmp_path, "test").values()
    assert (plain.id, plain.question, plain.answer) == ("test-0", "Can the nodule be seen in this image?", "yes")
    assert plain.boxes == ((0.25, 0.25, 0.5, 0.75),) and plain.question_type == "ChestX-ray8"
    assert (own.id, own.answer, own.answer_kind, len(own.images), len(own.boxes)) == ("own", "B", "choice", 2, 2)
