"""The section `evaluate` of a configuration: what contradicts itself, and where the files go. No jax in this file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvr_jax.errors import UserError

_SET = re.compile(r"[a-z0-9_]+(/[a-z0-9_-]+)?")
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def answered_elsewhere(evaluate: Any) -> bool:
    """Whether the answers come from a file or an endpoint, so that no policy is loaded."""
    return bool(evaluate.predictions_file or evaluate.endpoint)


def check_options(c: Mapping[str, Any]) -> None:
    """UserError for what cannot work; `c` maps dotted names to values."""
    sets, samples, temperature = c["evaluate.sets"], c["evaluate.samples"], c["evaluate.temperature"]
    for name in sets:
        if not _SET.fullmatch(str(name)):
            raise UserError(f"evaluate.sets: found {name!r}, allowed are names as vqa_rad or slake/en")
        if sets.count(name) > 1:
            raise UserError(f"evaluate.sets: found {name!r} {sets.count(name)} times, allowed is once")
    if not sets and c["evaluate.split"] != "test":
        raise UserError(
            f"evaluate.split: found {c['evaluate.split']!r} without evaluate.sets, allowed is 'test'; for other"
            " questions of your own give data.test_file"
        )
    if samples > 1 and not temperature:
        raise UserError(
            f"evaluate.temperature: found {temperature} with evaluate.samples = {samples}, which would all be the same;"
            " allowed is more than 0"
        )
    if c["evaluate.name"] and not _FOLDER.fullmatch(c["evaluate.name"]):
        raise UserError(
            f"evaluate.name: found {c['evaluate.name']!r}, allowed are letters, digits and . _ - (a folder's name)"
        )
    file, endpoint = c["evaluate.predictions_file"], c["evaluate.endpoint"]
    if file and endpoint:
        raise UserError(f"evaluate.predictions_file: found {file!r} as well as evaluate.endpoint; give one of them")
    if file and (samples > 1 or temperature):
        name = "samples" if samples > 1 else "temperature"
        raise UserError(
            f"evaluate.{name}: found {c[f'evaluate.{name}']} with evaluate.predictions_file, whose lines say what"
            " there is; leave it out"
        )
    if file and c["evaluate.system"]:
        raise UserError("evaluate.system: found a prompt, but the answers of evaluate.predictions_file are given")
    if (file or endpoint) and not c["evaluate.tools"]:
        raise UserError("evaluate.tools: found false, but answers from elsewhere use no tool of ours; leave it out")
    if c["evaluate.masking"] and (file or endpoint):
        name = "predictions_file" if file else "endpoint"
        raise UserError(
            f"evaluate.masking: found true with evaluate.{name}, but only our own policy can be asked again; allowed is"
            " false"
        )
    if c["evaluate.masking"] and temperature:
        raise UserError(
            f"evaluate.masking: found true with evaluate.temperature = {temperature:g}, but samples differ without any"
            " mask; allowed with 0, greedy answers"
        )
    for url, model in (("endpoint", "model"), ("judge_endpoint", "judge_model")):
        address, name = c[f"evaluate.{url}"], c[f"evaluate.{model}"]
        if address and not re.match(r"https?://[^/]", address):
            raise UserError(f"evaluate.{url}: found {address!r}, allowed is http://… or https://…")
        if bool(address) != bool(name):
            missing, given = (model, url) if address else (url, model)
            raise UserError(f"evaluate.{missing}: found '', but evaluate.{given} is given; both are needed")


def check_option_files(c: Mapping[str, Any]) -> None:
    """UserError where a file or folder that is going to be read is not there."""
    if c["evaluate.predictions_file"] and not Path(c["evaluate.predictions_file"]).is_file():
        raise UserError(f"evaluate.predictions_file: {c['evaluate.predictions_file']!r} is not a file")
    for folder in c["evaluate.compare_with"]:
        predictions_of(folder)


def predictions_of(folder: str | Path) -> Path:
    """The predictions.jsonl of a run or of one of its evaluations; UserError where there is none."""
    places = [Path(folder) / "predictions.jsonl", Path(folder) / "evaluation" / "predictions.jsonl"]
    for place in places:
        if place.is_file():
            return place
    looked = " and ".join(map(str, places))
    raise UserError(f"evaluate.compare_with: {str(folder)!r} holds no evaluation; looked for {looked}")


def evaluation_folder(evaluate: Any, workdir: str | Path) -> Path:
    """WORKDIR/evaluation for the plain evaluation; below it, for every other one, a folder with the name given or one
    that says what is different."""
    folder = Path(workdir) / "evaluation" / (evaluate.name or _name(evaluate, evaluate.tools))
    if list(folder.glob("*.manifest.json")):
        raise UserError(f"evaluate.name: {folder} holds the answers to a set; give another name")
    return folder


def folder_without_tool(evaluate: Any, workdir: str | Path) -> Path | None:
    """Of the evaluation that differs in nothing but that it forbids the tool; None where there is no such other."""
    if evaluate.name or answered_elsewhere(evaluate) or not evaluate.tools:
        return None
    return Path(workdir) / "evaluation" / _name(evaluate, tools=False)


def _name(evaluate: Any, tools: bool) -> str:
    """For instance "no_tools_8_samples_at_1"; empty for the plain evaluation."""
    parts = []
    if evaluate.predictions_file:
        parts.append(f"file_{_word(Path(evaluate.predictions_file).stem)}")
    elif evaluate.endpoint:
        parts.append(f"model_{_word(evaluate.model)}")
    elif not tools:
        parts.append("no_tools")
    if evaluate.temperature:
        parts.append(f"{evaluate.samples}_samples_at_{evaluate.temperature:g}")
    if evaluate.split != "test":
        parts.append(f"split_{_word(evaluate.split)}")
    return "_".join(parts)


def _word(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip(".-") or "unnamed"
