"""One update of a group: ours over P + M T tokens, against the PyTorch model over M full sequences as TRL trains it.

    python tests/benchmarks/update.py [--model=small] [--runs=5] [--prompt=text|image] [--output=DIR]

One group of 16 trajectories of 256 response tokens behind a prompt of about 1,000. `--prompt=text` (the default)
compares the decoders alone: nobody encodes an image. `--prompt=image` adds one image and a crop per trajectory, with
the tower trained: then the peer also encodes the prompt's image 16 times. The whole step: scoring, loss, gradient,
clipping, AdamW. The peer runs TRL's own `_get_per_token_logps_and_entropies` (with the fused head that its trainer
patches in) and `_compute_loss`; its column "bf16 autocast" is the same under `torch.autocast`.

Two protocols: step by step in alternation, and several steps of one side in a row. Asserted: the loss and the gradient
of the first step are the peer's (float32: relative difference of the gradients at most 1e-4), every timed step of ours
has that gradient's norm and moves all parameters, and its arrays hold at most 1.10 times the distinct tokens.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import torch  # noqa: E402

from medvr_jax.models.weights import load_backbone  # noqa: E402
from medvr_jax.training.state import (  # noqa: E402
    Frozen,
    OptimizerSettings,
    initial_train_state,
    make_optimizer,
    split_frozen,
)
from medvr_jax.training.update import UpdateSettings, loss_and_gradient, make_update  # noqa: E402
from tests.benchmarks import measure, models, peers, tables  # noqa: E402
from tests.benchmarks.train_groups import GroupOfWork, make_group  # noqa: E402
from tests.benchmarks.trl_update import TrlUpdate  # noqa: E402

LEARNING_RATE, CLIP, MAX_GRAD_NORM = 1e-6, (0.2, 0.28), 1.0


def update_settings(dtype: str) -> UpdateSettings:
    """The objective of the recipes without a reference. Remat "dots" touches 2.5 times less memory than "none"."""
    return UpdateSettings(
        clip_low=CLIP[0], clip_high=CLIP[1], kl_weight=0.0, aggregation="token", temperature=1.0,
        micro_batch_groups=0, logit_chunk=512, remat="dots", compute_dtype=dtype,
    )  # fmt: skip


class OurUpdate:
    """Our update of one group, again and again from where the last one left off."""

    def __init__(self, model: models.Model, work: GroupOfWork) -> None:
        optimizer = make_optimizer(
            OptimizerSettings(
                learning_rate=LEARNING_RATE, schedule="constant", warmup_steps=0, weight_decay=0.0, b1=0.9, b2=0.999,
                epsilon=1e-8, max_grad_norm=MAX_GRAD_NORM, moment_dtype="float32", steps=1000,
            )
        )  # fmt: skip
        self.model, self.settings = model, update_settings(model.dtype)
        self.frozen = Frozen(vision_tower=not work.pictures)
        copied = jax.tree.map(jnp.copy, model.params)
        self.state = initial_train_state(copied, optimizer, model.training_layout, self.frozen)
        self.banned = jnp.zeros(model.config.text.vocab_size, bool)
        self.batch = model.put(work.batch)
        self._update = make_update(model.graphdef, optimizer, self.settings, self.state, model.training_layout)

    def step(self) -> dict[str, float]:
        """The whole update; its metrics."""
        self.state, metrics = jax.block_until_ready(self._update(self.state, None, self.batch, self.banned))
        return {name: float(value) for name, value in metrics.items()}

    def gradient(self) -> tuple[dict[str, float], Any]:
        """Loss and gradient at the model's own parameters."""
        trainable, fixed = split_frozen(self.model.params, self.frozen)
        function = jax.jit(loss_and_gradient, static_argnums=(0, 6))
        metrics, gradient = function(
            self.model.graphdef, trainable, fixed, None, self.batch, self.banned, self.settings
        )
        return {name: float(value) for name, value in metrics.items()}, gradient


def gradient_difference(ours: Any, peer: torch.nn.Module, folder: Path, frozen: Frozen) -> float:
    """||g - g_ref|| / ||g_ref|| in float64; the peer's gradients take the way of a checkpoint folder."""
    values = [p.data for p in peer.parameters()]
    for p in peer.parameters():
        p.data = p.grad if p.grad is not None else torch.zeros_like(p)
    peer.save_pretrained(folder)
    for p, value in zip(peer.parameters(), values, strict=True):
        p.data = value
    expected, _ = split_frozen(load_backbone(folder)[1], frozen)
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
    ]
    return float(np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs)))


def run(
    name: str, runs: int, *, prompt: str, slots: int, prompt_tokens: int, response: int, observation: int,
    image_side: int, crop_side: int, autocast: bool, output: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Measures, checks and reports."""
    with tempfile.TemporaryDirectory() as folder:
        model = models.load_model(name, Path(folder))
        work = make_group(
            model, prompt_tokens=prompt_tokens, response=response, slots=slots, observation=observation,
            image_side=image_side if prompt == "image" else 0, crop_side=crop_side,
        )  # fmt: skip
        peer = peers.load_peer(model.folder, model.dtype)
        dtype = next(peer.parameters()).dtype
        inputs = peers.make_inputs(work.sequences, work.pictures, model.config.image_token_id, dtype)
        theirs = TrlUpdate(
            peer, inputs, work.prompt_length, work.sampled, work.advantages, clip=CLIP, learning_rate=LEARNING_RATE,
            max_grad_norm=MAX_GRAD_NORM,
        )  # fmt: skip
        ours = OurUpdate(model, work)

        metrics, gradient = ours.gradient()
        loss = theirs.gradient()
        difference = gradient_difference(gradient, peer, Path(folder) / "gradient", ours.frozen)
        norm = float(optax.tree.norm(gradient))
        del gradient
        print(f"loss {metrics['loss']:.7f}, peer {loss:.7f}; gradients differ by {difference:.2e}", file=sys.stderr)
        exact = model.dtype == "float32"
        assert abs(metrics["loss"] - loss) <= (1e-5 if exact else 2e-2)
        assert difference <= (1e-4 if exact else 0.1), f"gradients differ by {difference:.2e}"
        processed = work.tokens_processed
        assert processed <= 1.10 * work.distinct_tokens

        def check(kind: str, result: Any) -> None:
            if kind != "ours":
                assert np.isfinite(result)
                return
            # The learning rate is small: each step's gradient is nearly the one that was compared.
            assert abs(result["loss"] - metrics["loss"]) <= 0.05 and abs(result["grad_norm"] / norm - 1) <= 0.05, result

        def prepare(kind: str) -> None:
            theirs.autocast = kind == "TRL, bf16 autocast"

        contenders = {"ours": ours.step, "TRL": theirs.step}
        if autocast:
            contenders["TRL, bf16 autocast"] = theirs.step
        times = measure.take_turns(contenders, runs, check, prepare)
        before, after = (jax.tree.leaves(split_frozen(p, ours.frozen)[0]) for p in (model.params, ours.state.params))
        assert all(bool((a != b).any()) for a, b in zip(before, after, strict=True)), "a parameter was not trained"
        rows, in_a_row = [], {}
        for kind, function in contenders.items():
            prepare(kind)
            in_a_row[kind] = measure.back_to_back(kind, function, runs, lambda result, kind=kind: check(kind, result))
        for protocol, found in (("in alternation", times), ("in a row", in_a_row)):
            row: dict[str, Any] = {"steps": protocol, "ours, s": statistics.median(found["ours"])}
            for kind in list(contenders)[1:]:
                row[f"{kind}, s"] = statistics.median(found[kind])
                row[f"times faster than {kind}"] = row[f"{kind}, s"] / row["ours, s"]
            rows.append(row)
        return tables.report(
            f"update_{name}_{prompt}",
            rows,
            protocol="'in alternation': one step of each side in turn; 'in a row': all steps of one side, then of the"
            " other; the first of each does not count",
            sizes={
                "model": model.sizes(), "trajectories": slots, "prompt_tokens": prompt_tokens,
                "response_tokens": response, "image_side": image_side if prompt == "image" else None,
                "tokens_processed": processed, "distinct_tokens": work.distinct_tokens,
                "peer_tokens_processed": theirs.tokens_processed,
            },
            seconds={"in alternation": times, "in a row": in_a_row},
            figures={
                "loss": metrics["loss"], "peer_loss": loss, "gradient_difference": difference,
                "tokens_per_distinct_token": processed / work.distinct_tokens,
                "sampled_tokens_per_second": {
                    kind: int(work.sampled.sum()) / statistics.median(values) for kind, values in times.items()
                },
                "ratios": {kind: measure.ratios(times, "ours", kind) for kind in list(contenders)[1:]},
            },
            output=output,
        )  # fmt: skip


def main() -> None:
    """Reads the command line."""
    parser = tables.parser(__doc__)
    parser.add_argument("--model", default="small", choices=models.NAMES)
    parser.add_argument("--prompt", default="text", choices=("text", "image"))
    parser.add_argument("--trajectories", type=int, default=16, help="M")
    parser.add_argument("--prompt_tokens", type=int, default=1001, help="P + 1")
    parser.add_argument("--response", type=int, default=256, help="T")
    parser.add_argument("--image_side", type=int, default=728, help="pixels of the image as the model sees it")
    parser.add_argument("--no_autocast", action="store_true", help="leave the peer's bfloat16 column out")
    arguments = models.start(parser)
    run(
        arguments.model, arguments.runs, prompt=arguments.prompt, slots=arguments.trajectories,
        prompt_tokens=arguments.prompt_tokens, response=arguments.response, observation=80,
        image_side=arguments.image_side, crop_side=224, autocast=not arguments.no_autocast, output=arguments.output,
    )  # fmt: skip


if __name__ == "__main__":
    main()
