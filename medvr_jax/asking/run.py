"""`--mode=ask`: a question about an image, answered while one looks on; results in WORKDIR/ask/<time>/."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict, FrozenConfigDict

from medvr_jax import assembly, programs
from medvr_jax.asking import agreement as agreeing
from medvr_jax.asking import telling
from medvr_jax.asking.request import NOTICE, Request
from medvr_jax.asking.results import agreement_json, new_folder, shown_answer, write_results
from medvr_jax.asking.streaming import Storyteller, let_hear
from medvr_jax.configuration import model_folder
from medvr_jax.datasets.example import Example
from medvr_jax.errors import UserError
from medvr_jax.evaluation.policy import PolicyWeights, find_weights, load_weights
from medvr_jax.inputs.chat import Encoder, Prompt, encode_prompt, refuse_reserved
from medvr_jax.inputs.image_formats import Framed, Picture
from medvr_jax.inputs.images import load_processor, resized_size
from medvr_jax.inputs.survey import prompt_sizes
from medvr_jax.rollout.engine import PhaseClock, RolloutEngine
from medvr_jax.rollout.trajectories import Rollout
from medvr_jax.training import sharding
from medvr_jax.training.records import rollout_records
from medvr_jax.training.rewarding import zoom_boxes


def ask(config: Any, workdir: str | Path, request: Request, picture: Picture) -> Path:
    """Answers the question about the picture and writes what there is to see; returns the folder."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # whatever a policy writes can be shown
    clock, compiled = PhaseClock(), programs.compilations().seconds
    print(NOTICE)
    _check_shape(config, request, picture)
    weights = find_weights(config, workdir)
    clock.lap("checks")
    print(f"loading {weights.name}{'' if weights.step is None else f' of {workdir}'}", flush=True)
    parts, params = _policy(config, workdir, weights)
    clock.lap("model")

    example = _example(request)
    _check_texts(parts.encoder, example)
    prompt = encode_prompt(example, parts.encoder)
    engine = _engine(parts, prompt, request.samples)
    telling.tell_start(request, picture, prompt, engine.settings.temperature)
    story = Storyteller(
        parts.encoder.tokenizer,
        np.flatnonzero(np.asarray(engine.tables.end_of_turn)).tolist(),
        telling.write,
        lambda number, turn: telling.describe_turn(number, turn, prompt.images[0]),
    )
    let_hear(engine, story)
    rollout = engine.run(params, [prompt], jax.random.key(config.seed))
    clock.lap("rollout")

    answer = _answer(config, workdir, request, picture, weights, parts.encoder, engine, rollout)
    agreement = consensus = None
    if request.samples > 1:
        agreement = agreeing.agree([record["prediction"] for record in answer["trajectories"]], request.options)
        boxes, valid = zoom_boxes(rollout, engine.settings.tool_turns)
        raster = config.rewards.raster
        consensus = agreeing.look_for_consensus(boxes[0], valid[0], agreement.agrees, raster)
        _add_agreement(answer, agreement, consensus, request)
    clock.lap("agreement")
    telling.tell_answer(answer)
    compiling = programs.compilations().seconds - compiled
    answer["seconds"] = clock.seconds | {"rollout_phases": rollout.seconds, "compiling_within": compiling}
    folder = new_folder(workdir)
    image = picture.image
    names = write_results(folder, request, image, answer, agreement, consensus, config.rewards.raster)
    print(f"written to {folder}: {', '.join(names)}")
    return folder


# ------------------------------------------------------------------------------------------------------ what is asked


def _check_shape(config: Any, request: Request, picture: Picture) -> None:
    """UserError for an image that the processor refuses, before the model is loaded."""
    processor = load_processor(model_folder(config.model.path))
    limits = {"max_pixels": config.prompt.max_pixels, "min_pixels": config.prompt.min_pixels}
    name = f"--image: {request.image}"
    resized_size(processor, picture.image.size, max_patches=config.prompt.patches, name=name, **limits)


def _example(request: Request) -> Example:
    """The question as an example whose answer nobody knows; its id says the same for the same question."""
    source: Path | Framed = request.image
    if request.frame or request.window:
        source = Framed(request.image, request.frame or 0, request.window)
    asked = repr((_digest(request.image), request.frame or 0, request.window, request.question, request.options))
    return Example(
        id=f"ask-{hashlib.sha256(asked.encode()).hexdigest()[:16]}",
        images=(source,),
        question=request.question,
        options=request.options,
        answer="",
        answer_kind="choice" if request.options else "open",
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --------------------------------------------------------------------------------------------------- how it is answered


def _policy(config: Any, workdir: str | Path, weights: PolicyWeights) -> tuple[assembly.Parts, nnx.State]:
    """The parts and the weights on as many devices as one group needs, those of the tensor axis.

    A model folder is read by these alone, a checkpoint by all that the configuration has: it was written to fit them.
    """
    if weights.step is None:
        one = ConfigDict(config.to_dict(), type_safe=False)
        one.mesh.data = one.mesh.fsdp = 1
        devices = jax.devices() if config.mesh.tensor == -1 else jax.devices()[: config.mesh.tensor]
        parts = assembly.assemble(FrozenConfigDict(one), devices, splits=())
        return parts, load_weights(parts, weights, workdir)
    parts = assembly.assemble(config, splits=())
    params = load_weights(parts, weights, workdir)
    devices = parts.mesh.devices[0, 0].tolist()  # the others hold the same weights
    fewer = dataclasses.replace(parts, mesh=sharding.make_mesh(sharding.MeshShape(1, 1, len(devices)), devices))
    return fewer, jax.device_put(params, sharding.parameter_shardings(params, fewer.sampling_layout))


def _engine(parts: assembly.Parts, prompt: Prompt, samples: int) -> RolloutEngine:
    """One greedy trajectory or several samples of this prompt; no forks, as ever at inference."""
    config, encoder = parts.config, parts.encoder
    needed = (len(prompt.token_ids) - 1, len(prompt.images[0].patches))
    largest = (config.prompt.bucket, config.prompt.patches)
    if needed[0] > largest[0]:
        raise UserError(
            f"--question: with the image, the options and the system prompt it takes {needed[0]} tokens;"
            f" prompt.bucket allows {largest[0]}; ask a shorter one, or give --config.prompt.bucket={needed[0]}"
        )
    sizes = prompt_sizes(np.array([needed]), largest, count=2, merge_unit=encoder.merge_size**2)
    settings = dataclasses.replace(assembly.greedy_rollout(config, parts.backbone, sizes), prompt_images=1)
    if samples > 1:
        settings = dataclasses.replace(settings, trajectories=samples, temperature=config.rollout.temperature)
    return parts.engine(settings)


def _check_texts(encoder: Encoder, example: Example) -> None:
    for flag, text in (("question", example.question), *(("option", option) for option in example.options)):
        refuse_reserved(encoder, text, f"--{flag}")


def _answer(
    config: Any,
    workdir: str | Path,
    request: Request,
    picture: Picture,
    weights: PolicyWeights,
    encoder: Encoder,
    engine: RolloutEngine,
    rollout: Rollout,
) -> dict[str, Any]:
    """What answer.json holds, without agreement and timings: all that it takes to compute every number of it again."""
    (prompt,), settings = rollout.prompts, engine.settings
    prepared, header = prompt.images[0], picture.header
    records = rollout_records(rollout, None, weights.step or 0, [0], encoder.tokenizer)
    said = agreeing.answer_keys([records[0]["prediction"]], request.options)[0] if request.options else None
    answer = said or records[0]["prediction"]
    return {
        "notice": NOTICE,
        "made_by": "medvr_jax",
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "question": request.question,
        "options": list(request.options),
        "answer": answer,
        "answer_text": shown_answer(answer, request.options),
        "image": {
            "file": request.image.name,
            "sha256": _digest(request.image),
            "format": header.format,
            "size": list(picture.image.size),
            "frames": header.frames,
            "frame": request.frame or 0,
            "window": list(picture.window) if picture.window else None,
            "notes": list(picture.notes),
        },
        "model": {
            "folder": str(config.model.path),
            "checkpoint_step": weights.step,
            "run": None if weights.step is None else str(workdir),
            "weights": weights.fingerprint,
            "compute_dtype": config.model.compute_dtype,
        },
        "decoding": {
            "samples": request.samples,
            "temperature": settings.temperature,
            "seed": config.seed,
            "never_sampled": np.flatnonzero(np.asarray(engine.tables.banned)).tolist(),
        },
        "prompt": {
            "token_ids": prompt.token_ids.tolist(),
            "image_token_id": encoder.image_id,
            "grid": list(prepared.grid),
            "resized_size": list(prepared.resized_size),
            "min_pixels": encoder.prompt_min_pixels,
            "max_pixels": encoder.prompt_max_pixels,
        },
        "crops": {"min_pixels": encoder.crop_min_pixels, "max_pixels": encoder.crop_max_pixels},
        "trajectories": records,
        "agreement": None,
        "configuration": config.to_dict(),
    }


def _add_agreement(
    answer: dict[str, Any], agreement: agreeing.Agreement, consensus: agreeing.Consensus, request: Request
) -> None:
    """The most frequent answer takes the place of the first sample's."""
    answer["answer"] = agreement.majority
    answer["answer_text"] = shown_answer(agreement.majority, request.options)
    answer["agreement"] = agreement_json(agreement, consensus, request.options)
    for record, agrees, iou in zip(answer["trajectories"], agreement.agrees, consensus.iou, strict=True):
        record["agrees"], record["consensus_iou"] = bool(agrees), round(float(iou), 5)
