"""The configuration: every recipe is valid, every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import base, tiny_cpu, variants
from medvr_jax import configuration
from medvr_jax.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = str(REPOSITORY / "configs" / "tiny_cpu.py")


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """What the configuration looks for in a model folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def tiny(model_folder: Path) -> ConfigDict:
    config = tiny_cpu.get_config()
    config.model.path = str(model_folder)
    return config


def refusal(config: ConfigDict, **changes: object) -> str:
    """The message for a recipe with these changes, `__` standing for the full stop of a field's name."""
    for name, value in changes.items():
        *sections, field = name.split("__")
        parent = config
        for section in sections:
            parent = parent[section]
        parent[field] = value
    with pytest.raises(UserError) as caught:
        configuration.validate(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("variant", [None, *variants.ROWS])
def test_tiny_variants_are_valid(variant: str | None, model_folder: Path) -> None:
    spec = RECIPE if variant is None else f"{RECIPE}:{variant}"
    config = configuration.load_config(spec, [("model.path", str(model_folder))])
    tools, forks, reward = variants.ROWS[variant or "full"]
    assert (config.rollout.tools, config.evr.enabled, config.rewards.tool) == (tools, forks, reward)
    assert configuration.validate(config) == config


# file, and a few of its values: prompts, trajectories, tools, the tool's reward, KL weight
LARGE_RECIPES = {
    "medvr_qwen2_5_vl_7b": (256, 16, ("image_zoom_in_tool",), "consensus", 1e-3),
    "medvr_qwen2_5_vl_3b": (32, 16, ("image_zoom_in_tool",), "consensus", 1e-3),
    "medvr_qwen2_5_vl_32b": (256, 16, ("image_zoom_in_tool",), "consensus", 1e-3),
    "medvlm_r1_qwen2_vl_2b": (8, 4, (), "none", 0.04),
}


@pytest.mark.parametrize("name", LARGE_RECIPES)
def test_large_recipes_are_valid_once_model_and_data_are_given(name: str, model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.touch()
    overrides = [
        ("model.path", str(model_folder)),
        ("data.name", "jsonl"),
        ("data.sets", "()"),
        ("data.train_file", str(file)),
        ("data.test_file", str(file)),
        ("data.image_folder", str(tmp_path)),
    ]
    recipe = str(REPOSITORY / "configs" / f"{name}.py")
    config = configuration.load_config(recipe, overrides)
    flat = dict(configuration.leaves(config))
    fields = ("data.prompts_per_step", "rollout.trajectories", "rollout.tools", "rewards.tool", "grpo.kl_weight")
    assert tuple(flat[field] for field in fields) == LARGE_RECIPES[name]
    configuration.check_batches(flat, config.mesh.fsdp)
    with pytest.raises(UserError, match="model.path: '' is not a folder"):
        configuration.load_config(recipe, overrides[1:])


def test_every_field_of_base_has_a_comment() -> None:
    plain = {"optimizer.learning_rate", "optimizer.weight_decay", "optimizer.b1", "optimizer.b2", "optimizer.epsilon"}
    source = (REPOSITORY / "configs" / "base.py").read_text()
    lines = [line.strip() for line in source.splitlines()]
    for name in configuration.leaves(base.get_config()):
        field = name[0] if "." in name[0] else f"config.{name[0]}"
        (line,) = [line for line in lines if line.startswith((f"{field} = ", f"config.{field} = "))]
        assert "  # " in line or field in plain, f"{field} is not explained"


def test_overrides_have_the_type_of_their_field(model_folder: Path) -> None:
    overrides = {
        "model.path": str(model_folder),
        "steps": "7",
        "optimizer.learning_rate": "1",
        "evr.enabled": "False",
        "rollout.tools": "image_zoom_in_tool",
        "prompt.system": "true",
    }
    config = configuration.load_config(RECIPE, overrides.items())
    assert config.steps == 7 and isinstance(config.optimizer.learning_rate, float)
    assert config.evr.enabled is False and config.rollout.tools == ("image_zoom_in_tool",)
    assert config.prompt.system == "true"
    text_only = [("rollout.tools", "()"), ("rewards.tool", "none")]
    assert configuration.load_config(RECIPE, [*overrides.items(), *text_only]).rollout.tools == ()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("evr.p_bse", "1", "evr.p_bse: unknown field, the nearest valid name is evr.p_base"),
        ("learning_rate", "1", "learning_rate: unknown field, the nearest valid name is optimizer.learning_rate"),
        ("evr", "1", "evr: is a section"),
        ("steps.more", "1", "steps.more: unknown field"),
        ("steps", "ten", "steps: found 'ten', allowed is a whole number"),
        ("steps", "3.5", "steps: found 3.5, allowed is a whole number"),
        ("steps", "True", "steps: found True, allowed is a whole number"),
        ("steps", "", "steps: found '', allowed is a whole number"),
        ("evr.enabled", "1", "evr.enabled: found '1', allowed is true or false"),
        ("optimizer.learning_rate", "fast", "optimizer.learning_rate: found 'fast', allowed is a number"),
        ("optimizer.learning_rate", "nan", "optimizer.learning_rate: found nan, allowed is a finite number"),
        ("optimizer.learning_rate", "0", "optimizer.learning_rate: found 0.0, allowed is more than 0"),
        ("rollout.tools", "windowing", "rollout.tools: found 'windowing', allowed are image_zoom_in_tool"),
        ("data.synthetic.hidden_by", "depth", "data.synthetic.hidden_by: found 'depth', allowed are size, contrast"),
        ("rewards.tool", "cca", "rewards.tool: found 'cca', allowed are consensus, conditional"),
        ("evr.gate", "chance", "evr.gate: found 'chance', allowed are entropy, random"),
        ("evr.position", "last", "evr.position: found 'last', allowed are first, uncertain"),
        ("data.synthetic.prior", "1.5", "data.synthetic.prior: found 1.5, allowed is 0 to 1"),
        ("rewards.maximum_popularity", "1.5", "rewards.maximum_popularity: found 1.5, allowed is 0 to 1"),
    ],
)
def test_wrong_overrides_are_named(name: str, text: str, message: str, model_folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        configuration.load_config(RECIPE, [("model.path", str(model_folder)), (name, text)])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, "stepz: unknown field, the nearest valid name is steps"),
        ({"grpo__klweight": 3}, "grpo.klweight: unknown field, the nearest valid name is grpo.kl_weight"),
        ({"data__synthetic": ConfigDict()}, "data.synthetic: is a section, not a field"),
        ({"warmup": ConfigDict({"steps": 3})}, "warmup.steps: unknown field"),
        ({"steps": "60"}, "steps: found '60', allowed is a whole number"),
        ({"seed": None}, "seed: found None, allowed is a whole number"),
        ({"steps": -1}, "steps: found -1, allowed is 1 or more"),
        ({"rollout__trajectories": 1}, "rollout.trajectories: found 1, allowed is 2 or more"),
        ({"rollout__trajectories": 15}, "rollout.trajectories: found 15, an even number"),
        ({"rollout__tools": ()}, "evr.enabled: found true with rollout.tools = ()"),
        ({"rollout__tools": (), "evr__enabled": False}, "rewards.tool: found 'consensus' with rollout.tools = ()"),
        ({"rollout__tools": ("image_window_tool",)}, "rewards.tool: found 'consensus' with rollout.tools = ('ima"),
        ({"rollout__tools": ("image_zoom_in_tool",) * 2}, "rollout.tools: found 'image_zoom_in_tool' 2 times"),
        ({"rollout__max_turns": 1}, "rollout.max_turns: found 1"),
        ({"rollout__response_length": 1}, "rollout.response_length: found 1, allowed is 2 or more"),
        ({"rollout__observation_length": 128}, "rollout.observation_length: found 128"),
        ({"rollout__observation_length": 16}, "rollout.observation_length: found 16"),
        ({"rollout__temperature": 0.0}, "rollout.temperature: found 0.0, allowed is more than 0"),
        ({"rewards__low": 2.0}, "rewards.low: found 2.0, allowed is at most rewards.high = 1.0"),
        ({"rewards__raster": 1025}, "rewards.raster: found 1025, allowed is 1 to 1024"),
        ({"data__synthetic__period": 0}, "data.synthetic.period: found 0.0, allowed is more than 0"),
        ({"prompt__template": "Why?"}, "prompt.template: found 'Why?', allowed are texts with {question} in them once"),
        ({"prompt__option": "{letter}"}, "prompt.option: found '{letter}', allowed are texts with {text} in them once"),
        ({"rewards__scheme": "medvlm"}, "rewards.scheme: found 'medvlm', allowed are medvr, medvlm_r1"),
        ({"prompt__bucket": 16}, "prompt.bucket: found 16"),
        ({"prompt__images": 8}, "prompt.bucket: found 96"),
        ({"prompt__patches": 66}, "prompt.patches: found 66, allowed are multiples of 4"),
        ({"prompt__max_pixels": 12545}, "prompt.max_pixels: found 12545, allowed is at most 12544"),
        ({"rollout__crop_min_pixels": 12545}, "rollout.crop_min_pixels: found 12545, allowed is at most"),
        ({"data__prompts_per_step": 15}, "data.prompts_per_step: found 15, allowed are multiples of"),
        ({"data__evaluation_batch": 63}, "data.evaluation_batch: found 63, allowed are multiples of"),
        ({"grpo__micro_batch_groups": 3}, "grpo.micro_batch_groups: found 3, allowed are 0 and the divisors"),
        ({"grpo__micro_batch_groups": 1}, "grpo.micro_batch_groups: found 1, allowed are multiples of"),
        ({"mesh__tensor": 3}, "mesh: data -1 x fsdp 1 x tensor 3 does not give mesh.host_devices = 2"),
        ({"mesh__data": 4}, "mesh: data 4 x fsdp 1 x tensor 1 does not give mesh.host_devices = 2"),
        ({"mesh__data": 0}, "mesh.data: found 0"),
        ({"optimizer__warmup_steps": 61}, "optimizer.warmup_steps: found 61, allowed is at most steps = 60"),
        ({"optimizer__b1": 1.0}, "optimizer.b1: found 1.0, allowed is less than 1"),
        ({"optimizer__b2": 1.5}, "optimizer.b2: found 1.5, allowed is less than 1"),
        ({"model__path": "/nowhere"}, "model.path: '/nowhere' is not a folder"),
        ({"model__path": str(REPOSITORY / "configs")}, "holds no config.json"),
        ({"data__name": "jsonl"}, "data.train_file: '' is not a file"),
    ],
)
def test_wrong_recipes_are_named(changes: dict[str, object], message: str, tiny: ConfigDict) -> None:
    assert message in refusal(tiny, **changes)


def test_the_tiny_model_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = configuration.load_config(RECIPE)
    assert config.model.path == "medvr_jax/assets/tiny"  # a clone may be moved
    assert configuration.model_folder(config.model.path) == REPOSITORY / "medvr_jax" / "assets" / "tiny"
    here = tmp_path / config.model.path
    here.mkdir(parents=True)
    assert configuration.model_folder(config.model.path).resolve() == here
    assert configuration.model_folder(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="'medvr_jax/assets/tiny' holds no config.json"):
        configuration.load_config(RECIPE)


def test_files_are_looked_for_only_where_they_are_read(tiny: ConfigDict) -> None:
    tiny.model.path = "/nowhere"
    tiny.data.name, tiny.data.train_file = "jsonl", "/nowhere/train.jsonl"
    assert configuration.validate(tiny, files=False).model.path == "/nowhere"
    assert "model.path: '/nowhere' is not a folder" in refusal(tiny)


def test_missing_field_is_named(tiny: ConfigDict) -> None:
    del tiny.evr.gamma
    assert "evr.gamma: missing" in refusal(tiny)


def test_warmup_recipe_is_valid() -> None:
    config = configuration.load_config(
        str(REPOSITORY / "configs" / "tiny_warmup.py"), [("warmup.learning_rate", "1e-3"), ("seed", "4")]
    )
    assert (config.trainer, config.seed, config.warmup.learning_rate) == ("supervised", 4, 1e-3)


def test_tiny_system_prompts_are_those_of_the_warmup() -> None:
    from medvr_jax.training import tiny_folder

    assert tiny_cpu.get_config("text").prompt.system == tiny_folder.TINY_DIRECT_SYSTEM
    assert tiny_cpu.get_config("full").prompt.system == tiny_folder.TINY_ZOOM_SYSTEM


def test_supervised_recipe_brings_its_own_section(tiny: ConfigDict) -> None:
    tiny.trainer = "supervised"
    tiny.model.path = ""
    tiny.warmup = ConfigDict({"tower_steps": 260, "rates": {"tower": 1e-3}})
    assert configuration.validate(tiny).warmup.rates.tower == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("x = 1\n", "defines no function get_config()"),
        ("def get_config():\n    return {}\n", "returns a dict"),
        ("def get_config():\n    a = 1\n    return a / 0\n", "line 3: ZeroDivisionError: division by zero"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError"),
    ],
)
def test_broken_recipe_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.py"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        configuration.load_config(str(file))
    assert message in str(caught.value) and str(file) in str(caught.value)


def test_variant_of_a_recipe_without_variants() -> None:
    with pytest.raises(UserError, match="has no variants, but 'big' was asked for"):
        configuration.load_config(str(REPOSITORY / "configs" / "base.py:big"))


def test_supervised_needs_its_section(tiny: ConfigDict) -> None:
    tiny.trainer = "supervised"
    with pytest.raises(UserError, match="trainer: found 'supervised'"):
        configuration.validate(tiny)


def test_steps_to_profile(tiny: ConfigDict, model_folder: Path) -> None:
    """The command line's text and a recipe's numbers come to the same."""
    for text in ("1,3", "(1, 3)", "[1,3]"):
        overrides = [("model.path", str(model_folder)), ("report.profile_steps", text)]
        assert configuration.load_config(RECIPE, overrides).report.profile_steps == (1, 3)
    message = "report.profile_steps: found -1 in the list, allowed are whole numbers, 0 or more"
    assert refusal(tiny, report__profile_steps=(2, -1)) == message
    assert refusal(tiny, report__profile_steps=("a",)).startswith("report.profile_steps: found 'a' in the list")
    assert (
        refusal(tiny, report__profile_steps=(60,)) == "report.profile_steps: found 60, allowed is less than steps = 60"
    )
