"""The one entry point:

    python -m medvr_jax.main --config=FILE[:variant] --workdir=DIR [--mode=MODE] [--config.field=value …]
    python -m medvr_jax.main --config=FILE[:variant] --mode=plan --topology=NAME [--workdir=DIR] [--config.…]
    python -m medvr_jax.main --mode=ask --image=FILE --question=TEXT [--option=TEXT …] --workdir=DIR [--config=…]

Several processes share a run when the environment says so: see `processes.py`, and `launch/` for scripts that set it.

Exit status 0: done; 2: the configuration or input is wrong, one line on standard error says what; 130: interrupted;
anything else is a fault of the program. Heavy imports wait until the configuration has been checked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import FrozenConfigDict

from medvr_jax import configuration, workdir
from medvr_jax.asking.request import Request, read_image, read_request
from medvr_jax.errors import UserError
from medvr_jax.evaluation.options import answered_elsewhere
from medvr_jax.processes import COUNT, read_processes

MODES = ("train", "evaluate", "export", "report", "leaks", "plan", "ask", "experiment")
ANSWERS = "runs"  # where --mode=ask writes ask/<time>/ when it is given no run
SHARED_MODES = ("train", "evaluate", "export")  # those in which several processes can take part

_CONFIG = flags.DEFINE_string(
    "config", None, "Recipe: FILE[:variant]. Its fields are changed by --config.field=value; see configs/base.py."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it does not exist.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "--mode=plan: the hardware, e.g. v5p:4x4x2, v5e:8x8, v6e:4x4, h100:8 or cpu."
)
_IMAGE = flags.DEFINE_string("image", None, "--mode=ask: the image file; PNG, JPEG, TIFF, WebP, DICOM and more.")
_QUESTION = flags.DEFINE_string("question", None, "--mode=ask: the question.")
_OPTIONS = flags.DEFINE_multi_string("option", [], "--mode=ask: a choice; given several times, A, B, … in this order.")
_SAMPLES = flags.DEFINE_integer("samples", 1, "--mode=ask: 1 = a greedy answer; more = how far samples agree.")
_FRAME = flags.DEFINE_integer("frame", None, "--mode=ask: of a file with several, from 0; without it the first.")
_WINDOW = flags.DEFINE_string("window", None, "--mode=ask: CENTRE,WIDTH of the grey levels of DICOM and 16-bit images.")
_OF_ASK = (_IMAGE, _QUESTION, _OPTIONS, _SAMPLES, _FRAME, _WINDOW)
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do with the run. train resumes by itself.")


def main(overrides: Sequence[tuple[str, str]]) -> None:
    """Checks everything a user can get wrong, then does what --mode says."""
    mode, folder = _MODE.value, _WORKDIR.value
    processes = read_processes(os.environ)
    check_ask_flags()
    config = read_config(overrides)
    if mode == "ask" and not folder:  # a model folder is asked
        folder = ANSWERS
    if mode == "plan" and not processes.several:
        run_plan(config, folder)
        return
    if mode == "experiment" and not processes.several:
        run_grid(config, overrides, folder)
        return
    elsewhere = mode == "evaluate" and answered_elsewhere(config.evaluate)
    limit_images(config)
    if not processes.several:
        workdir.prepare_workdir(folder, config, mode)
        if not elsewhere:
            start_devices(config)
        run_mode(config, folder, mode)
        return

    if mode not in SHARED_MODES or config.trainer == "supervised" or elsewhere:
        found = f"--mode={mode}" if mode not in SHARED_MODES else "trainer = 'supervised'"
        if elsewhere:
            found = "an evaluation without our policy"
        raise UserError(f"{COUNT}: found {os.environ[COUNT]!r}, but {found} runs in one process; leave it unset")
    start_devices(config)
    from medvr_jax import distributed

    distributed.initialise(processes)
    with distributed.ending_together():
        with distributed.together():
            workdir.prepare_workdir(folder, config, mode, write=distributed.is_main())
        run_mode(config, folder, mode)


def run_mode(config: FrozenConfigDict, folder: str, mode: str) -> None:
    """Does what --mode says."""
    if mode == "train" and config.trainer == "supervised":
        from medvr_jax.training.warmup import run_warmup

        run_warmup(config, folder)
    elif mode == "train":
        from medvr_jax.training.loop import train

        train(config, folder)
    elif mode == "evaluate" and answered_elsewhere(config.evaluate):
        from medvr_jax.evaluation.elsewhere import evaluate_elsewhere

        evaluate_elsewhere(config, folder)
    elif mode == "evaluate":
        from medvr_jax.evaluation.run import evaluate

        evaluate(config, folder)
    elif mode == "export":
        from medvr_jax.training.export import export

        export(config, folder)
    elif mode == "ask":
        request = request_of_flags()
        picture = read_image(request)
        from medvr_jax.asking.run import ask

        ask(config, folder, request, picture)
    elif mode == "leaks":
        from medvr_jax.evaluation.leak_check import check_leaks

        check_leaks(config, folder)
    elif mode == "report":
        from medvr_jax.reports.page import write_report

        print(f"report in {write_report(folder, config.report.groups, config.rewards.raster)}")


def run_plan(config: FrozenConfigDict, folder: str | None) -> None:
    """Plans on this machine's processor, whatever else it has: the devices in question are only described."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported
    from medvr_jax.planning.run import plan

    plan(config, _TOPOLOGY.value, _CONFIG.value, folder)


def run_grid(config: FrozenConfigDict, overrides: Sequence[tuple[str, str]], folder: str) -> None:
    """Runs the arms of the recipe in processes of their own; this one only tells them what to do."""
    from medvr_jax.experiments.run import run_experiment

    run_experiment(config, _CONFIG.value, overrides, folder)


def read_config(overrides: Sequence[tuple[str, str]]) -> FrozenConfigDict:
    """The recipe of --config or, when an existing run is only looked at, by default the one it was trained with."""
    if _MODE.value == "plan":  # needs no run, no data and no weights
        for flag, example in ((_CONFIG, "configs/medvr_qwen2_5_vl_7b.py"), (_TOPOLOGY, "v5p:4x4x2")):
            if not flag.value:
                raise UserError(f"--{flag.name}: missing; --mode=plan needs it, e.g. --{flag.name}={example}")
        return configuration.load_config(_CONFIG.value, overrides, files=False)
    if _TOPOLOGY.value:
        raise UserError(f"--topology: found {_TOPOLOGY.value!r}, but only --mode=plan takes it")
    if not _WORKDIR.value and not (_MODE.value == "ask" and _CONFIG.value):
        raise UserError("--workdir: missing; give the folder of the run, e.g. --workdir=runs/tiny")
    files = _MODE.value != "report"  # it reads nothing but the run's folder
    if _CONFIG.value:
        return configuration.load_config(_CONFIG.value, overrides, files=files, mode=_MODE.value)
    if _MODE.value == "train":
        raise UserError("--config: missing; give FILE[:variant], e.g. --config=configs/tiny_cpu.py")
    if _MODE.value == "experiment":
        raise UserError("--config: missing; --mode=experiment needs the recipe, e.g. --config=configs/tiny_cpu.py")
    if _MODE.value == "ask" and not workdir.has_checkpoints(_WORKDIR.value):
        raise UserError(
            f"--workdir: {_WORKDIR.value} holds no checkpoint; train there first, or give --config=… whose model.path"
            " is the model folder to ask"
        )
    return workdir.saved_config(_WORKDIR.value, overrides, files=files, mode=_MODE.value)


def request_of_flags() -> Request:
    """What --mode=ask is asked."""
    return read_request(*(flag.value for flag in _OF_ASK))


def check_ask_flags() -> None:
    """UserError for flags of --mode=ask that are wrong, or that another mode was given."""
    if _MODE.value == "ask":
        request_of_flags()
        return
    for flag in _OF_ASK:
        if flags.FLAGS[flag.name].present:
            raise UserError(f"--{flag.name}: found {flag.value!r}, but only --mode=ask takes it")


def limit_images(config: FrozenConfigDict) -> None:
    """No image of this process may be larger than the configuration allows."""
    from medvr_jax.inputs.image_formats import limit_pixels

    limit_pixels(config.data.max_image_pixels)


def start_devices(config: FrozenConfigDict) -> None:
    """Divides a CPU host into devices and keeps compiled programs; this must come before jax makes its backends."""
    from medvr_jax import devices

    devices.start_devices(config.mesh.host_devices, config.programs.cache)


def parse_flags(argv: Sequence[str]) -> list[tuple[str, str]]:
    """Reads absl's flags and returns the overrides `--config.field=value` as (field, text)."""
    overrides, rest = [], []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, text = argument.lstrip("-").partition("=")
        if not (argument.startswith("-") and name.startswith("config.")):
            rest.append(argument)
            continue
        if not equals:
            text = next(arguments, None)
            if text is None:
                raise UserError(f"--{name}: found no value; give --{name}=VALUE")
        overrides.append((name.removeprefix("config."), text))
    try:
        positional = flags.FLAGS(rest)[1:]
    except flags.UnrecognizedFlagError as error:
        known = (_CONFIG, _WORKDIR, _MODE, *_OF_ASK)
        nearest = configuration.nearest_flag(error.flagname, (flag.name for flag in known))
        raise UserError(f"--{error.flagname}: unknown flag, the nearest valid one is --{nearest}") from error
    except flags.Error as error:
        raise UserError(str(error)) from error
    except SystemExit:  # --help: absl has printed it, and would end as if that were a failure
        raise SystemExit(0) from None
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = logging.WARNING  # app.run would choose INFO, at which orbax writes page after page
    if positional:
        raise UserError(f"found argument {positional[0]!r}; everything is given as --flag=value")
    return overrides


def run() -> None:
    """Runs `main` under absl and turns what went wrong into an exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it advises to install torch
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are local folders
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        print(f"medvr_jax: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)  # threads that read a damaged checkpoint would go on to print what they think of it
    except KeyboardInterrupt:
        print("medvr_jax: interrupted; the same command goes on from what was saved last", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
