"""From `--config=FILE[:variant]` and overrides to a checked configuration.

Everything a user can get wrong in a configuration is refused here, before anything heavy is imported: unknown fields
(with the nearest valid name), wrong types, values out of range, combinations that cannot work, missing files. The
fields themselves are in `configs/base.py`; what belongs to a run's folder is in `workdir.py`. No jax in this file.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import math
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from medvr_jax.datasets.mixing import parse_sets
from medvr_jax.errors import UserError
from medvr_jax.evaluation.options import answered_elsewhere, check_option_files, check_options
from medvr_jax.experiments.options import check_experiment
from medvr_jax.fields import leaves, nearest, nested
from medvr_jax.processes import COUNT, read_processes
from medvr_jax.rollout.tool_registry import TOOLS

REPOSITORY = str(Path(__file__).resolve().parents[1])
if REPOSITORY not in sys.path:  # `configs`, which recipes import too, lies beside this package
    sys.path.insert(0, REPOSITORY)

from configs import base  # noqa: E402

CHOICES: dict[str, tuple[str, ...]] = {
    "trainer": ("grpo", "supervised"),
    "model.compute_dtype": ("float32", "bfloat16"),
    "model.parameter_dtype": ("float32", "bfloat16"),
    "model.attention": ("auto", "xla", "splash", "fused"),
    "model.export_dtype": ("source", "float32", "bfloat16"),
    "model.remat": ("none", "dots", "block"),
    "optimizer.moment_dtype": ("float32", "bfloat16"),
    "data.name": ("synthetic", "jsonl", "sets"),
    "data.synthetic.hidden_by": ("size", "contrast"),
    "data.synthetic.lesions": ("anywhere", "outside_habits", "inside_habits"),
    "data.on_error": ("refuse", "skip"),
    "data.check_images": ("pixels", "header"),
    "data.filter_rule": ("strict", "medevalkit"),
    "evr.entropy_unit": ("nats", "log_vocabulary"),
    "evr.gate": ("entropy", "random"),
    "evr.position": ("first", "uncertain"),
    "evr.spending": ("repeated", "one_pass"),
    "rewards.tool": ("consensus", "conditional", "unconditional", "none"),
    "rewards.scheme": ("medvr", "medvlm_r1"),
    "grpo.aggregation": ("token", "sequence"),
    "optimizer.schedule": ("constant", "linear", "cosine"),
    "report.wandb": ("off", "online", "offline"),
    "evaluate.failures": ("refuse", "empty"),
}
# Numbers are at least 0 and whole ones at least 1, unless they are named here: (lowest, highest).
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "mesh.data": (-1, math.inf),
    "mesh.fsdp": (-1, math.inf),
    "model.images_at_once": (0, math.inf),
    "rollout.trajectories": (2, math.inf),
    "rollout.groups_at_once": (0, math.inf),
    "rollout.response_length": (2, math.inf),  # the first token is the prompt's last
    "data.synthetic.seed": (0, math.inf),
    "data.synthetic.classes": (2, 4),
    "data.train_examples": (0, math.inf),
    "data.filter_minimum": (-1, 1),
    "data.filter_maximum": (0, 2),
    "data.synthetic.margin": (0, 0.49),
    "evr.p_base": (0, 1),
    "evr.threshold": (-math.inf, math.inf),
    "rewards.format_penalty": (-math.inf, 0),
    "rewards.eta": (0, 1),
    "rewards.maximum_popularity": (0, 1),
    "data.synthetic.prior": (0, 1),
    "rewards.high": (-math.inf, math.inf),
    "rewards.low": (-math.inf, math.inf),
    "rewards.raster": (1, 1024),
    "grpo.clip_low": (0, 1),
    "grpo.micro_batch_groups": (0, math.inf),
    "optimizer.warmup_steps": (0, math.inf),
    "report.groups": (0, math.inf),
    "evaluate.questions": (0, math.inf),
    "evaluate.retries": (0, math.inf),
}
POSITIVE = (
    "data.synthetic.period",
    "rollout.temperature",
    "optimizer.learning_rate",
    "optimizer.epsilon",
    "optimizer.max_grad_norm",
    "evaluate.timeout",
)
BELOW_ONE = ("optimizer.b1", "optimizer.b2")
WHOLE_LISTS = ("report.profile_steps",)  # lists of whole numbers, at least 0; the others hold text


# ---------------------------------------------------------------------------------------------- reading a recipe


def load_config(
    spec: str, overrides: Iterable[tuple[str, str]] = (), *, files: bool = True, mode: str = "train"
) -> FrozenConfigDict:
    """Reads `FILE[:variant]`, applies `(field, text)` overrides and checks the result as `validate` does."""
    file, colon, variant = spec.partition(":")
    recipe = _run_recipe(Path(file), variant if colon else None)
    return validate(override(recipe, overrides), files=files, mode=mode)


def _run_recipe(file: Path, variant: str | None) -> ConfigDict:
    if not file.is_file():
        raise UserError(f"--config: {str(file)!r} is not a file; give FILE[:variant], e.g. configs/tiny_cpu.py:zoom")
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        if not callable(get_config):
            raise UserError(f"--config: {file} defines no function get_config()")
        if variant is not None and not inspect.signature(get_config).parameters:
            raise UserError(f"--config: {file} has no variants, but {variant!r} was asked for")
        config = get_config() if variant is None else get_config(variant)
    except UserError:
        raise
    except Exception as error:  # whatever a user's file raises is the user's to mend
        raise UserError(f"--config: {file}{_where(error, file)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config() of {file} returns a {type(config).__name__}, needed is a ConfigDict")
    return config


def _where(error: Exception, file: Path) -> str:
    if isinstance(error, SyntaxError):
        return ""  # its own text names the line
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f", line {lines[-1]}" if lines else ""


def override(config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> ConfigDict:
    """Sets fields in place from the texts of a command line; a text of the wrong kind is left for `validate`."""
    schema = _schema(config)
    for name, text in overrides:
        if name not in schema:
            raise _unknown(name, schema)
        parent = config
        *sections, field = name.split(".")
        for part in sections:
            parent = parent[part]
        parent[field] = _parse(name, text, schema[name])
    return config


def _parse(name: str, text: str, default: Any) -> Any:
    """The value that `text` stands for in a field with this default, or `text` itself if it is of a wrong kind."""
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(default, tuple) and not text.startswith(("(", "[")):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return float(text) if isinstance(default, float) else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


# ------------------------------------------------------------------------------------------------------ checking


def validate(config: ConfigDict, *, files: bool = True, mode: str = "train") -> FrozenConfigDict:
    """A frozen copy with whole numbers in decimal fields made decimal; UserError if anything is wrong.

    files: whether what `mode` reads of model folder, data and other files must be there and fit.
    """
    schema = _schema(config)
    found = dict(leaves(config))
    for name in found:
        if name not in schema:
            raise _unknown(name, schema)
    for name in schema:
        if name not in found:
            raise UserError(f"{name}: missing; begin the recipe with configs.base.get_config()")
    checked = {name: _checked_value(name, found[name], default) for name, default in schema.items()}
    frozen = FrozenConfigDict(nested(checked))
    for check in _COMBINATIONS + (_files(frozen, mode) if files else ()):
        check(checked)
    return frozen


def completed(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A configuration that was saved, with defaults in the place of fields that are newer; and these fields."""
    found = dict(leaves(saved))
    schema = _schema(ConfigDict(dict(saved), type_safe=False))
    # A section that is no section any more is left for `validate`.
    newer = [name for name in schema if not any(name == old or name.startswith(f"{old}.") for old in found)]
    return nested(found | {name: json.loads(json.dumps(schema[name])) for name in newer}), newer


def _checked_value(name: str, value: Any, default: Any) -> Any:
    kinds: dict[type, tuple[Any, str]] = {
        bool: (bool, "true or false"),
        int: (int, "a whole number"),
        float: ((int, float), "a number"),
        str: (str, "text"),
        tuple: ((tuple, list), "a list"),
    }
    allowed, words = kinds[type(default)]
    if not isinstance(value, allowed) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise UserError(f"{name}: found {value!r}, allowed is {words}")
    if isinstance(default, float):
        value = float(value)
        if not math.isfinite(value):
            raise UserError(f"{name}: found {value}, allowed is a finite number")
    if isinstance(default, tuple):
        value = tuple(_whole(name, item) for item in value) if name in WHOLE_LISTS else tuple(value)
    if name in CHOICES and value not in CHOICES[name]:
        raise UserError(f"{name}: found {value!r}, allowed are {', '.join(CHOICES[name])}")
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        low, high = RANGES.get(name, (1 if isinstance(default, int) else 0, math.inf))
        if not low <= value <= high:
            raise UserError(f"{name}: found {value}, allowed is {_range(low, high)}")
        if name in POSITIVE and value == 0:
            raise UserError(f"{name}: found {value}, allowed is more than 0")
        if name in BELOW_ONE and value >= 1:
            raise UserError(f"{name}: found {value}, allowed is less than 1")
    return value


def _whole(name: str, item: Any) -> int:
    """An item of a list of whole numbers; the command line brings it as text."""
    if isinstance(item, str) and item.isdecimal():
        return int(item)
    if isinstance(item, bool) or not isinstance(item, int) or item < 0:
        raise UserError(f"{name}: found {item!r} in the list, allowed are whole numbers, 0 or more")
    return item


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return f"{low} or more"
    return f"{high} or less" if math.isinf(low) else f"{low} to {high}"


def _rollout_fits(c: Mapping[str, Any]) -> None:
    tools, groups = c["rollout.tools"], c["rollout.trajectories"]
    for tool in tools:
        if tool not in TOOLS:
            raise UserError(f"rollout.tools: found {tool!r}, allowed are {', '.join(TOOLS)}")
        if tools.count(tool) > 1:
            raise UserError(f"rollout.tools: found {tool!r} {tools.count(tool)} times, allowed is once")
    if c["evr.enabled"] and groups % 2:
        raise UserError(
            f"rollout.trajectories: found {groups}, an even number is needed with evr.enabled, "
            f"half of it for forks; nearest are {groups - 1} and {groups + 1}"
        )
    if c["evr.enabled"] and not tools:
        raise UserError("evr.enabled: found true with rollout.tools = (), but forks start at a tool call; set it false")
    if c["rewards.tool"] != "none" and not tools:
        raise UserError(f"rewards.tool: found {c['rewards.tool']!r} with rollout.tools = (), allowed is 'none'")
    if c["rewards.tool"] == "consensus" and not any(TOOLS[tool].boxes for tool in tools):
        raise UserError(
            f"rewards.tool: found 'consensus' with rollout.tools = {tools}, but only the results of a tool such as "
            "image_zoom_in_tool are boxes, which can agree; allowed are conditional, unconditional, none"
        )
    if tools and c["rollout.max_turns"] < 2:
        raise UserError("rollout.max_turns: found 1, at least 2 are needed with rollout.tools: a call and an answer")
    if tools and c["rollout.observation_length"] >= c["rollout.response_length"]:
        raise UserError(
            f"rollout.observation_length: found {c['rollout.observation_length']}, allowed is less than "
            f"rollout.response_length = {c['rollout.response_length']}, which holds all turns and observations"
        )
    if c["rewards.low"] > c["rewards.high"]:
        raise UserError(f"rewards.low: found {c['rewards.low']}, allowed is at most rewards.high = {c['rewards.high']}")


def _prompt_asks(c: Mapping[str, Any]) -> None:
    for name, places in (("prompt.template", ("{question}",)), ("prompt.option", ("{letter}", "{text}"))):
        for place in places:
            if c[name].count(place) != 1:
                raise UserError(f"{name}: found {c[name]!r}, allowed are texts with {place} in them once")


def _images_fit(c: Mapping[str, Any]) -> None:
    patch = _patch_side(c["model.path"])
    for patches, low, high in (
        ("prompt.patches", "prompt.min_pixels", "prompt.max_pixels"),
        ("rollout.crop_patches", "rollout.crop_min_pixels", "rollout.crop_max_pixels"),
    ):
        if c[patches] % 4:
            raise UserError(f"{patches}: found {c[patches]}, allowed are multiples of 4 (patches merge by 2 x 2)")
        if c[high] > c[patches] * patch**2:
            raise UserError(
                f"{high}: found {c[high]}, allowed is at most {c[patches] * patch**2} = "
                f"{patches} ({c[patches]}) x {patch} x {patch} pixels"
            )
        if c[low] > c[high]:
            raise UserError(f"{low}: found {c[low]}, allowed is at most {high} = {c[high]}")
    visual = c["prompt.images"] * c["prompt.max_pixels"] // (4 * patch**2)
    if visual >= c["prompt.bucket"]:
        raise UserError(
            f"prompt.bucket: found {c['prompt.bucket']}, but prompt.images x prompt.max_pixels take up to {visual} "
            "tokens, and text comes on top"
        )
    crop = c["rollout.crop_max_pixels"] // (4 * patch**2)
    if c["rollout.tools"] and crop >= c["rollout.observation_length"]:
        raise UserError(
            f"rollout.observation_length: found {c['rollout.observation_length']}, but rollout.crop_max_pixels takes "
            f"up to {crop} tokens, and text comes on top"
        )


def _patch_side(model_path: str) -> int:
    """Pixels of a patch's side by the model's config.json; 14 where that does not say (its own reader complains)."""
    try:
        return int(json.loads((model_folder(model_path) / "config.json").read_text())["vision_config"]["patch_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return 14


def _batches_divide(c: Mapping[str, Any]) -> None:
    batch = c["data.prompts_per_step"]
    for name in ("grpo.micro_batch_groups", "rollout.groups_at_once"):
        if c[name] and batch % c[name]:
            raise UserError(
                f"{name}: found {c[name]}, allowed are 0 and the divisors of data.prompts_per_step = {batch}"
            )
    sizes = {name: c[f"mesh.{name}"] for name in ("data", "fsdp", "tensor")}
    for name, size in sizes.items():
        if size == 0:
            raise UserError(f"mesh.{name}: found 0, allowed is -1 or 1 or more")
    free, devices = [name for name, size in sizes.items() if size == -1], _cpu_devices(c)
    if len(free) > 1:
        raise UserError(f"mesh.{free[1]}: found -1 as well as mesh.{free[0]}; one of them may be -1")
    if devices > 1:  # a CPU host: the mesh is known before jax starts
        fixed = math.prod(size for size in sizes.values() if size > 0)
        if devices % fixed or (not free and fixed != devices):
            raise UserError(
                f"mesh: data {sizes['data']} x fsdp {sizes['fsdp']} x tensor {sizes['tensor']} does not give "
                f"mesh.host_devices{'' if devices == c['mesh.host_devices'] else f' x {COUNT}'} = {devices}"
            )
        sizes |= {name: devices // fixed for name in free}
    if sizes["data"] > 0 and sizes["fsdp"] > 0:
        check_batches(c, sizes["data"] * sizes["fsdp"])


def _cpu_devices(c: Mapping[str, Any]) -> int:
    """Devices of a run on CPU hosts; 1 where only jax can tell."""
    count = read_processes(os.environ).count
    return c["mesh.host_devices"] * count if count and c["mesh.host_devices"] > 1 else 1


def check_batches(c: Mapping[str, Any], shards: int) -> None:
    """UserError unless every batch of groups can be split over this many devices. `c` maps dotted names to values."""
    for name in ("data.prompts_per_step", "data.evaluation_batch", "grpo.micro_batch_groups", "rollout.groups_at_once"):
        if c[name] % shards:
            raise UserError(f"{name}: found {c[name]}, allowed are multiples of the mesh's data x fsdp = {shards}")


def _schedule_fits(c: Mapping[str, Any]) -> None:
    if c["optimizer.warmup_steps"] > c["steps"]:
        raise UserError(
            f"optimizer.warmup_steps: found {c['optimizer.warmup_steps']}, allowed is at most steps = {c['steps']}"
        )


def _profiles_steps(c: Mapping[str, Any]) -> None:
    for step in c["report.profile_steps"]:
        if step >= c["steps"]:
            raise UserError(f"report.profile_steps: found {step}, allowed is less than steps = {c['steps']}")


def _trainer_has_its_section(c: Mapping[str, Any]) -> None:
    if c["trainer"] == "supervised" and not any(name.startswith("warmup.") for name in c):
        raise UserError(
            "trainer: found 'supervised', but the recipe has no section warmup; allowed here is 'grpo',"
            " and configs/tiny_warmup.py is a supervised recipe"
        )


def _data_fits(c: Mapping[str, Any]) -> None:
    names, _ = parse_sets(c["data.sets"])
    if c["data.name"] == "sets" and not names:
        raise UserError("data.sets: found (), allowed with data.name = 'sets' are names such as omnimedvqa or slake/en")
    if c["data.name"] != "sets" and names:
        raise UserError(f"data.sets: found {names[0]!r} with data.name = {c['data.name']!r}, allowed is () or 'sets'")
    if c["data.filter_minimum"] >= c["data.filter_maximum"]:
        low, high = c["data.filter_minimum"], c["data.filter_maximum"]
        raise UserError(f"data.filter_minimum: found {low}, allowed is less than data.filter_maximum = {high}")
    for name in ("data.filter_file", "data.train_examples"):
        if c["data.name"] == "synthetic" and c[name]:
            raise UserError(f"{name}: found {c[name]!r} with data.name = 'synthetic', whose examples never end")
    if not c["data.filter_file"]:
        for name, default in leaves(base.get_config().data, "data."):
            if name.startswith("data.filter_") and c[name] != default:
                raise UserError(f"{name}: found {c[name]!r} without data.filter_file, whose answers it is about")


def model_folder(path: str) -> Path:
    """The folder that `model.path` names: a relative one is looked for here, then beside the package."""
    return Path(path) if Path(path).exists() else Path(REPOSITORY) / path


def _model_exists(c: Mapping[str, Any]) -> None:
    if c["trainer"] == "grpo":
        path, folder = c["model.path"], model_folder(c["model.path"])
        if not path or not folder.is_dir():
            raise UserError(f"model.path: {path!r} is not a folder; a Hugging Face model folder is needed")
        if not (folder / "config.json").is_file():
            raise UserError(f"model.path: {path!r} holds no config.json; a Hugging Face model folder is needed")


def _data_exists(c: Mapping[str, Any], splits: tuple[str, ...] = ("train", "test")) -> None:
    if "train" in splits and c["data.filter_file"] and not Path(c["data.filter_file"]).is_file():
        raise UserError(f"data.filter_file: {c['data.filter_file']!r} is not a file; --mode=evaluate writes one")
    if c["data.name"] == "jsonl" or "jsonl" in parse_sets(c["data.sets"])[0]:
        for name in (f"data.{split}_file" for split in splits):
            if not Path(c[name]).is_file():
                raise UserError(f"{name}: {c[name]!r} is not a file; needed with data.name = 'jsonl'")
        if not c["data.image_folder"] or not Path(c["data.image_folder"]).is_dir():
            raise UserError(
                f"data.image_folder: {c['data.image_folder']!r} is not a folder; needed with data.name = 'jsonl'"
            )


_Check = Callable[[Mapping[str, Any]], None]
_COMBINATIONS: tuple[_Check, ...] = (
    _rollout_fits,
    _prompt_asks,
    _batches_divide,
    _schedule_fits,
    _profiles_steps,
    _trainer_has_its_section,
    _data_fits,
    check_options,
    check_experiment,
)


def _files(config: FrozenConfigDict, mode: str) -> tuple[_Check, ...]:
    """The checks of what a mode reads."""
    model, evaluate = (_images_fit, _model_exists), config.evaluate
    tested = () if evaluate.sets else ("test",)
    if mode == "leaks":  # no model takes part
        return (functools.partial(_data_exists, splits=("train", *tested)),)
    if mode == "ask":  # the question comes from the command line
        return model
    if mode != "evaluate":
        return (*model, _data_exists)
    data = (functools.partial(_data_exists, splits=tested),) if tested else ()
    return (*(() if answered_elsewhere(evaluate) else model), *data, check_option_files)


# ------------------------------------------------------------------------------------------------- names of fields


def _schema(config: ConfigDict) -> dict[str, Any]:
    """Dotted name -> default of every valid field. A supervised recipe brings the section `warmup` itself."""
    schema = dict(leaves(base.get_config()))
    if config.get("trainer") == "supervised" and isinstance(config.get("warmup"), ConfigDict):
        schema.update(leaves(config.warmup, "warmup."))
    return schema


def _unknown(name: str, schema: Mapping[str, Any]) -> UserError:
    inside = [known for known in schema if known.startswith(f"{name}.")]
    if inside:
        return UserError(f"{name}: is a section, not a field; its fields are {', '.join(inside)}")
    return UserError(f"{name}: unknown field, the nearest valid name is {nearest(name, schema)}")


def nearest_flag(name: str, flags: Iterable[str]) -> str:
    """The flag that an unknown one was probably meant to be: one of `flags`, or config.FIELD."""
    return nearest(name, [*flags, *(f"config.{field}" for field, _ in leaves(base.get_config()))])
