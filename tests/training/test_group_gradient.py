"""The group forward's loss and gradient equal those of M full sequences through transformers' model and autograd."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from medvr_jax.inputs.images import PreparedImage, pack_images
from medvr_jax.models.backbone import PromptInputs
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.packing import pack_rows
from medvr_jax.models.partitioning import Layout
from medvr_jax.models.rope import multimodal_positions
from medvr_jax.models.weights import load_backbone
from medvr_jax.training.sharding import TRAINING, MeshShape, make_layout, make_mesh
from medvr_jax.training.state import Frozen, split_frozen
from medvr_jax.training.update import TrainBatch, UpdateSettings, loss_and_gradient, make_scorer
from tests import torch_reference as reference

B, M, P, T = 4, 3, 24, 12
GRID, MERGE = (1, 4, 6), 2  # 24 patches, 6 visual tokens
SETTINGS = UpdateSettings(
    clip_low=0.2, clip_high=0.28, kl_weight=0.1, aggregation="token", temperature=0.8,
    micro_batch_groups=0, logit_chunk=1 << 20, remat="none",
)  # fmt: skip


@dataclasses.dataclass
class Case:
    config: BackboneConfig
    layout: Layout
    graphdef: nnx.GraphDef
    params: nnx.State
    reference: nnx.State
    torch_model: torch.nn.Module
    torch_reference: torch.nn.Module
    batch: TrainBatch
    banned: np.ndarray
    prompts: list[np.ndarray]
    patches: np.ndarray


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("models")
    hf = reference.small_config({"num_hidden_layers": 2}, {"depth": 2, "fullatt_block_indexes": [1]}, tied=True)
    models = [reference.random_model(hf, seed) for seed in (0, 1)]
    # A reference policy near the policy, as in training: far apart, exp(d) of the KL estimate drowns the comparison.
    with torch.no_grad():
        for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            other.copy_(mine + 0.02 * (other - mine))
    for name, model in zip(("policy", "reference"), models, strict=True):
        model.save_pretrained(folder / name)
    graphdef, params = load_backbone(folder / "policy")
    _, reference_params = load_backbone(folder / "reference")
    config = BackboneConfig.from_folder(folder / "policy")
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(B, 24, config.vision.patch_dim)).astype(np.float32)
    batch, prompts = make_batch(config, patches, rng)
    banned = np.zeros(config.text.vocab_size, bool)
    banned[[reference.IMAGE, reference.VIDEO, reference.VISION_START, reference.VISION_END]] = True
    banned[505:] = True
    layout = make_layout(TRAINING, make_mesh(MeshShape(), jax.devices()[:1]), config)
    return Case(config, layout, graphdef, params, reference_params, *models, batch, banned, prompts, patches)


def make_batch(
    config: BackboneConfig, patches: np.ndarray, rng: np.random.Generator
) -> tuple[TrainBatch, list[np.ndarray]]:
    """Prompts of different lengths with one image, responses of different lengths with unsampled stretches."""
    prompts, rows = [], {name: [] for name in ("tokens", "positions", "valid", "index")}
    tokens, positions = np.zeros((B, M, T), np.int32), np.zeros((B, M, T, 3), np.int32)
    sampled, length = np.zeros((B, M, T), bool), np.zeros((B, M), int)
    parent, fork_position = np.full((B, M), -1), np.full((B, M), -1)
    for b in range(B):
        text = rng.integers(1, 499, size=5 + 3 * b)
        ids = np.concatenate(
            [text[:3], [reference.VISION_START], np.full(6, reference.IMAGE), [reference.VISION_END], text[3:]]
        ).astype(np.int32)
        prompts.append(ids)
        where, following = multimodal_positions(ids, [GRID], image_token_id=reference.IMAGE, merge_size=MERGE)
        n = len(ids) - 1
        is_image = ids == reference.IMAGE
        index = np.where(is_image, np.cumsum(is_image) - 1, -1)
        rows["tokens"].append(np.pad(ids[:n], (0, P - n)))
        rows["positions"].append(np.pad(where[:n], ((0, P - n), (0, 0))))
        rows["valid"].append(np.arange(P) < n)
        rows["index"].append(np.pad(index[:n], (0, P - n), constant_values=-1))
        for m in range(M):
            end = length[b, m] = int(rng.integers(5, T + 1))
            tokens[b, m, 0], positions[b, m, 0] = ids[-1], where[-1]
            tokens[b, m, 1:end] = rng.integers(1, 499, size=end - 1)
            positions[b, m, 1:] = (following + np.arange(T - 1))[:, None]
            sampled[b, m, 1:end] = rng.random(end - 1) < 0.7
            if m == M - 1:  # a fork of trajectory 0
                parent[b, m], start = 0, 2 + b % 3
                fork_position[b, m] = start
                tokens[b, m, :start], sampled[b, m, :start] = tokens[b, 0, :start], sampled[b, 0, :start]
                sampled[b, :, start] = True
    image = [PreparedImage(p, GRID, (84, 56), (84, 56)) for p in patches]
    images = jax.tree.map(lambda leaf: leaf[:, None], pack_images(image, 32, config.vision))
    kinds = (np.int32, np.int32, bool, np.int32)
    prompt = PromptInputs(
        *(np.stack(rows[name]).astype(kind) for name, kind in zip(rows, kinds, strict=True)),
        features=np.zeros((B, 8, config.text.hidden_size), np.float32),
    )  # fmt: skip
    return TrainBatch(
        prompt=prompt,
        tokens=tokens,
        positions=positions,
        feature_index=np.full((B, M, T), -1, np.int32),
        packing=pack_rows(length, parent, fork_position, sampled, M * T - T // 2),
        crop_features=None,
        sampled=sampled,
        log_probabilities=np.zeros((B, M, T), np.float32),
        old_log_probabilities=None,
        advantages=rng.normal(size=(B, M)).astype(np.float32),
        counted=np.array([True, True, False, True]),
        images=images,
        crops=jax.tree.map(lambda leaf: leaf[:, :0], images),
    ), prompts


def ours(case: Case, batch: TrainBatch | None = None, **changes: object) -> tuple[dict, nnx.State]:
    settings = dataclasses.replace(SETTINGS, **changes)
    trainable, frozen = split_frozen(case.params, Frozen())
    run = jax.jit(loss_and_gradient, static_argnums=(0, 6))
    return run(case.graphdef, trainable, frozen, case.reference, batch or case.batch, case.banned, settings)


def torch_log_probabilities(case: Case, model: torch.nn.Module, b: int, m: int, length: int) -> torch.Tensor:
    """[length - 1], of response tokens 1 ... length - 1 on the flat sequence."""
    prompt = case.prompts[b]
    ids = torch.tensor(np.concatenate([prompt, case.batch.tokens[b, m, 1:length]]), dtype=torch.long)[None]
    logits = model(
        input_ids=ids,
        pixel_values=torch.tensor(case.patches[b]),
        image_grid_thw=torch.tensor([GRID]),
        mm_token_type_ids=(ids == reference.IMAGE).int(),
    ).logits[0]
    logits = logits.masked_fill(torch.tensor(case.banned), -torch.inf) / SETTINGS.temperature
    rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return rows.gather(1, ids[0, len(prompt) :, None])[:, 0]


def torch_loss(case: Case, aggregation: str) -> torch.Tensor:
    """GRPO with k3 KL, sequence by sequence; written from the formula."""
    counted = [b for b in range(B) if case.batch.counted[b]]
    pairs = [(b, m) for b in counted for m in range(M)]
    total = sum(int(case.batch.sampled[b, m].sum()) for b, m in pairs)
    loss = torch.zeros(())
    for b, m in pairs:
        mask = torch.tensor(case.batch.sampled[b, m, 1:])
        length = int(np.flatnonzero(case.batch.sampled[b, m])[-1]) + 1
        mask = mask[: length - 1].float()
        now = torch_log_probabilities(case, case.torch_model, b, m, length)
        with torch.no_grad():
            then = torch_log_probabilities(case, case.torch_reference, b, m, length)
        ratio = torch.exp(now - now.detach())
        kl = torch.exp(then - now) - (then - now) - 1
        per_token = -ratio * float(case.batch.advantages[b, m]) + SETTINGS.kl_weight * kl
        share = total if aggregation == "token" else float(mask.sum()) * len(pairs)
        loss = loss + (per_token * mask).sum() / share
    return loss


def gradient_in_our_layout(case: Case, folder: Path) -> nnx.State:
    """The torch gradients, taken through a checkpoint folder."""
    values = [p.data.clone() for p in case.torch_model.parameters()]
    for p in case.torch_model.parameters():
        p.data = p.grad if p.grad is not None else torch.zeros_like(p)
    case.torch_model.save_pretrained(folder)
    for p, value in zip(case.torch_model.parameters(), values, strict=True):
        p.data = value
    return load_backbone(folder)[1]


def largest_difference(first: nnx.State, second: nnx.State) -> float:
    """Relative to the largest entry of each leaf, over leaves whose gradient is not noise."""
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(second))
    return max(
        float(jnp.abs(a - b).max()) / max(float(jnp.abs(b).max()), 1e-3 * scale)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_loss_and_gradient_equal_full_sequences_in_torch(case: Case, aggregation: str, tmp_path: Path) -> None:
    metrics, gradient = ours(case, aggregation=aggregation)
    case.torch_model.zero_grad()
    loss = torch_loss(case, aggregation)
    loss.backward()
    assert abs(float(metrics["loss"]) - float(loss.detach())) < 1e-5
    expected = gradient_in_our_layout(case, tmp_path / "gradient")
    assert largest_difference(gradient, expected) < 1e-4
    assert float(metrics["kl"]) > 1e-4  # the reference does differ


@pytest.mark.parametrize("groups", [1, 2])
def test_micro_batches_change_nothing(case: Case, groups: int) -> None:
    whole, gradient = ours(case)
    parts, other = ours(case, micro_batch_groups=groups)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-5, rtol=1e-5)
    assert largest_difference(other, gradient) < 1e-5


@pytest.mark.parametrize("changes", [{"logit_chunk": 36}, {"remat": "dots"}, {"remat": "block"}])
def test_memory_options_change_nothing(case: Case, changes: dict) -> None:
    whole, gradient = ours(case)
    parts, other = ours(case, **changes)
    np.testing.assert_allclose(parts["loss"], whole["loss"], atol=1e-6)
    assert largest_difference(other, gradient) < 1e-5


def test_old_log_probabilities_bring_the_clip_to_life(case: Case) -> None:
    """With the policy's own log-probabilities nothing is clipped; moved ones clip, and only then."""
    own = make_scorer(case.graphdef, SETTINGS, case.layout)(case.params, case.batch, case.banned)
    metrics, gradient = ours(case, case.batch.replace(old_log_probabilities=own))
    plain, plain_gradient = ours(case)
    assert float(metrics["clipped"]) == 0 and largest_difference(gradient, plain_gradient) < 1e-5
    assert abs(float(metrics["loss"]) - float(plain["loss"])) < 1e-6
    moved, _ = ours(case, case.batch.replace(old_log_probabilities=own - 1.0))
    assert float(moved["clipped"]) > 0.1


def test_scorer_in_micro_batches(case: Case) -> None:
    whole = make_scorer(case.graphdef, SETTINGS, case.layout)(case.params, case.batch, case.banned)
    settings = dataclasses.replace(SETTINGS, micro_batch_groups=2)
    parts = make_scorer(case.graphdef, settings, case.layout)(case.params, case.batch, case.banned)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
