"""How the cost of a rollout and of an update grows: with M, P, T, images per prompt and the model's size.

    python tests/benchmarks/scaling.py [--model=small] [--runs=5] [--axes=M,P,T,images,model] [--output=DIR]

One group each time; every axis starts from the same case (M = 8, P = 512, T = 128, one image, `small`) and changes one
thing. A rollout is two turns with a crop per trajectory; an update trains tower and decoder. The sizes of an axis are
measured in turn. Printed: seconds, the exponent of a power law fitted to each axis (1 is linear), and for M the split
of a line fitted to the seconds: what the prompt costs however many trajectories there are, and what each one adds.
With --output also `scaling.svg`.

Asserted: every rollout sampled the tokens that it was asked for; every update got the tokens that whole sequences of
the group have, each once (at most 1.10 times with padding), with the loss that their advantages give by hand, and the
first one changed every parameter.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from tests.benchmarks import bounds, loglog, measure, models, tables  # noqa: E402
from tests.benchmarks.fixed_turns import FixedTurns, make_engine  # noqa: E402
from tests.benchmarks.prompts import make_prompt  # noqa: E402
from tests.benchmarks.rollout import observation_tokens, own_boxes  # noqa: E402
from tests.benchmarks.train_groups import make_group  # noqa: E402
from tests.benchmarks.update import OurUpdate  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Case:
    """One group: M trajectories, P prompt tokens, T response tokens, images of the prompt, their sides in pixels."""

    model: str
    M: int = 8
    P: int = 512
    T: int = 128
    images: int = 1
    image_side: int = 224
    crop_side: int = 112


AXES: dict[str, tuple[Any, ...]] = {
    "M": (2, 4, 8, 16),
    "P": (256, 512, 1024, 2048),
    "T": (128, 256, 512),
    "images": (1, 2, 4),
    "model": ("micro", "small", "130m"),
}
NAMES = {
    "M": "trajectories M", "P": "prompt tokens P", "T": "response tokens T", "images": "images per prompt",
    "model": "decoder's parameters",
}  # fmt: skip


def make_rollout(model: models.Model, case: Case) -> tuple[Callable[[], Any], Callable[[Any], dict[str, float]]]:
    """A rollout of the case, and what asserts its tokens and tells its seconds by phase."""
    encoder = models.make_encoder(model.folder, prompt_side=case.image_side, crop_side=case.crop_side)
    observed = observation_tokens(encoder, case.crop_side)
    first = (case.T - 1 - observed) // 2
    turns = FixedTurns((first, case.T - 1 - observed - first), observed, own_boxes(case.M, case.image_side))
    prompt = make_prompt(encoder, case.P + 1, images=case.images, image_side=2 * case.image_side)
    engine = make_engine(model, encoder, turns, slots=case.M, prompt_tokens=case.P + 1, images=case.images)

    def check(rollout: Any) -> dict[str, float]:
        assert rollout.host.sampled.sum() == case.M * sum(turns.sampled)
        assert (rollout.host.length == case.T).all()
        return rollout.seconds

    return lambda: engine.run(model.params, [prompt], jax.random.key(0)), check


def make_step(model: models.Model, case: Case) -> tuple[Callable[[], Any], Callable[[Any], dict[str, float]]]:
    """An update of the case, and what asserts that it trained."""
    encoder = models.make_encoder(model.folder, prompt_side=case.image_side, crop_side=case.crop_side)
    work = make_group(
        model, prompt_tokens=case.P + 1, response=case.T, slots=case.M, image_side=case.image_side,
        observation=observation_tokens(encoder, case.crop_side), crop_side=case.crop_side, images=case.images,
    )  # fmt: skip
    update = OurUpdate(model, work)
    # bfloat16 weights are too coarse for one small step.
    before = [jax.device_get(leaf) for leaf in _trained(update)] if model.dtype == "float32" else []

    def check(metrics: dict[str, float]) -> dict[str, float]:
        """Of every step; what its arrays hold is counted on the devices, what there is in the peer's sequences."""
        batch = update.batch
        processed = batch.prompt.tokens.size + batch.packing.slots.size
        found = int(batch.prompt.valid.sum()) + len(np.unique(np.asarray(batch.packing.places)))
        assert found <= processed <= 1.10 * work.distinct_tokens, (found, processed, work.distinct_tokens)
        # Each response begins with the prompt's last token; a few may begin alike by chance.
        assert work.distinct_tokens <= found < work.distinct_tokens + 2 * case.M, (found, work.distinct_tokens)
        trained = case.M * (case.T - 1 - work.observed)
        assert int(batch.sampled.sum()) == work.sampled.sum() == trained, (int(batch.sampled.sum()), trained)
        assert abs(metrics["loss"] - work.loss()) <= 1e-3 and metrics["grad_norm"] > 0, (metrics, work.loss())
        if before:
            after = (jax.device_get(leaf) for leaf in _trained(update))
            assert all((a != b).any() for a, b in zip(before, after, strict=True)), "a parameter was not trained"
            before.clear()
        return {}

    return update.step, check


def _trained(update: OurUpdate) -> list[jax.Array]:
    """The parameters that the update changes."""
    return jax.tree.leaves(update.state.trainable)


def measure_axis(
    axis: str, cases: dict[Any, Case], loaded: dict[str, models.Model], runs: int, kind: str
) -> tuple[measure.Times, dict[str, dict[str, float]]]:
    """Seconds of each size, and of its phases."""
    functions, checks, phases = {}, {}, {}
    for value, case in cases.items():
        make = make_rollout if kind == "rollout" else make_step
        functions[f"{axis} = {value}"], checks[f"{axis} = {value}"] = make(loaded[case.model], case)

    def check(name: str, result: Any) -> None:
        phases[name] = checks[name](result)

    return measure.take_turns(functions, runs, check), phases


def split(sizes: list[float], seconds: list[float]) -> dict[str, float]:
    """A line through the seconds: the constant part, and what one more costs."""
    line = statistics.linear_regression(sizes, seconds)
    return {"constant_s": line.intercept, "per_trajectory_s": line.slope}


def run(
    base: Case, axes: dict[str, tuple[Any, ...]], runs: int, output: str | None, kinds: tuple[str, ...]
) -> dict[str, Any]:
    """Measures, checks and reports."""
    rows, seconds, figures, panels = [], {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        names = {base.model, *axes.get("model", ())}
        loaded = {name: models.load_model(name, Path(folder)) for name in sorted(names)}
        for axis, values in axes.items():
            cases = {value: dataclasses.replace(base, **{axis: value}) for value in values}
            sizes = [float(bounds.weights_read(loaded[v].config.text) if axis == "model" else v) for v in values]
            lines, exponents = {}, {}
            for kind in kinds:
                times, phases = measure_axis(axis, cases, loaded, runs, kind)
                seconds[f"{kind}, {axis}"] = times
                medians = [statistics.median(found) for found in times.values()]
                lines[kind] = list(zip(sizes, medians, strict=True))
                exponents[kind] = measure.exponent(sizes, medians)
                found: dict[str, Any] = {"exponent": exponents[kind], "phases": phases}
                if axis == "M":
                    found |= split(sizes, medians)
                figures[f"{kind}, {axis}"] = found
                rows.append(
                    {
                        "cost of": kind,
                        "against": NAMES[axis],
                        "sizes": ", ".join(f"{v:g}" if isinstance(v, int) else v for v in values),
                        "seconds": ", ".join(f"{s:.3g}" for s in medians),
                        "exponent": round(exponents[kind], 2),
                    }
                )
            panels.append(loglog.panel(NAMES[axis], lines, exponents))
    if output:
        Path(output).mkdir(parents=True, exist_ok=True)
        (Path(output) / "scaling.svg").write_text(loglog.sheet(panels), encoding="utf-8")
    found = tables.report(
        "scaling",
        rows,
        protocol="the sizes of an axis in turn; the first round does not count",
        sizes={"base": dataclasses.asdict(base), "axes": {axis: list(values) for axis, values in axes.items()}},
        seconds=seconds,
        figures=figures,
        output=output,
    )
    if "M" in axes:
        parts = [
            {
                "cost of": kind,
                "constant (the prompt), s": figures[f"{kind}, M"]["constant_s"],
                "each trajectory, s": figures[f"{kind}, M"]["per_trajectory_s"],
            }
            for kind in kinds
        ]
        print("\n" + tables.markdown(parts), flush=True)
    return found


def main() -> None:
    """Reads the command line."""
    parser = tables.parser(__doc__)
    parser.add_argument("--model", default="small", choices=models.NAMES, help="of the axes but 'model'")
    parser.add_argument("--axes", default=",".join(AXES), help="of M, P, T, images, model")
    parser.add_argument("--of", default="rollout,update", help="what to measure")
    arguments = models.start(parser)
    axes = {name: AXES[name] for name in arguments.axes.split(",")}
    run(Case(arguments.model), axes, arguments.runs, arguments.output, tuple(arguments.of.split(",")))


if __name__ == "__main__":
    main()
