"""The objective against TRL's GRPOTrainer, float64 NumPy, and itself under micro-batching."""

from __future__ import annotations

import itertools
from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvr_jax.training.losses import (
    chunked_log_probabilities,
    grpo_loss,
    k3,
    log_probabilities_and_entropy,
    token_weights,
)

B, M, T, D, V = 3, 4, 9, 8, 23
CLIP = {"clip_low": 0.2, "clip_high": 0.28}


@pytest.fixture(scope="module")
def numbers() -> dict[str, np.ndarray]:
    """Log-probabilities far enough apart that every branch of the clip is taken; masks with holes, one empty row."""
    rng = np.random.default_rng(0)
    old = rng.normal(-1.5, 0.7, (B, M, T))
    mask = rng.random((B, M, T)) < rng.uniform(0.3, 0.95, (B, M, 1))
    mask[..., 0] = True
    return {
        "policy": (old + rng.normal(0, 0.4, (B, M, T))).astype(np.float32),
        "old": old.astype(np.float32),
        "reference": (old + rng.normal(0, 0.3, (B, M, T))).astype(np.float32),
        "advantages": rng.normal(size=(B, M)).astype(np.float32),
        "mask": mask,
    }


def our_loss(numbers: dict[str, np.ndarray], aggregation: str, kl_weight: float):
    weights = token_weights(jnp.asarray(numbers["mask"]), aggregation)

    def loss(policy):
        terms = grpo_loss(
            policy, numbers["old"], numbers["reference"], numbers["advantages"], weights, kl_weight=kl_weight, **CLIP
        )
        return terms.loss, terms

    (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(numbers["policy"]))
    return float(value), terms, np.asarray(gradient)


def numpy_loss(numbers: dict[str, np.ndarray], aggregation: str, kl_weight: float) -> float:
    policy, old, reference, advantages = (
        numbers[key].astype(np.float64) for key in ("policy", "old", "reference", "advantages")
    )
    losses, lengths = [], []
    for b in range(B):
        for m in range(M):
            own = []
            for t in range(T):
                if not numbers["mask"][b, m, t]:
                    continue
                ratio = np.exp(policy[b, m, t] - old[b, m, t])
                gain = min(ratio * advantages[b, m], np.clip(ratio, 0.8, 1.28) * advantages[b, m])
                gap = reference[b, m, t] - policy[b, m, t]
                own.append(-gain + kl_weight * (np.exp(gap) - gap - 1))
            losses.append(sum(own))
            lengths.append(len(own))
    if aggregation == "token":
        return sum(losses) / sum(lengths)
    return float(np.mean([loss / length for loss, length in zip(losses, lengths, strict=True)]))


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
@pytest.mark.parametrize("kl_weight", [0.0, 0.05])
def test_equals_numpy(numbers, aggregation: str, kl_weight: float) -> None:
    value, _, _ = our_loss(numbers, aggregation, kl_weight)
    assert value == pytest.approx(numpy_loss(numbers, aggregation, kl_weight), abs=1e-6)


def trl_loss(numbers: dict[str, np.ndarray], loss_type: str, kl_weight: float):
    """TRL's own `_compute_loss` with the log-probabilities handed to it; returns value, gradient and its metrics."""
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    flat = {key: torch.tensor(x.reshape(B * M, *x.shape[2:])) for key, x in numbers.items()}
    policy = flat["policy"].requires_grad_()
    mask = flat["mask"].long()
    itself = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros_like(policy), None),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        beta=kl_weight,
        loss_type=loss_type,
        epsilon_low=CLIP["clip_low"],
        epsilon_high=CLIP["clip_high"],
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(B * M, 1, dtype=torch.long),
        "prompt_mask": torch.ones(B * M, 1, dtype=torch.long),
        "completion_ids": torch.zeros(B * M, T, dtype=torch.long),
        "completion_mask": torch.ones(B * M, T, dtype=torch.long),
        "tool_mask": mask,
        "advantages": flat["advantages"],
        "old_per_token_logps": flat["old"],
        "ref_per_token_logps": flat["reference"],
        "num_items_in_batch": mask.sum(),
    }
    loss = trainer._compute_loss(itself, None, inputs)
    loss.backward()
    metrics = {key: values[0] for key, values in itself._metrics["train"].items()}
    return loss.item(), policy.grad.numpy().reshape(B, M, T), metrics


@pytest.mark.parametrize(("aggregation", "loss_type"), [("token", "dapo"), ("token", "bnpo"), ("sequence", "grpo")])
@pytest.mark.parametrize("kl_weight", [0.0, 0.05])
def test_equals_trl(numbers, aggregation: str, loss_type: str, kl_weight: float) -> None:
    value, terms, gradient = our_loss(numbers, aggregation, kl_weight)
    expected, expected_gradient, metrics = trl_loss(numbers, loss_type, kl_weight)
    difference = abs(value - expected), np.abs(gradient - expected_gradient).max()
    print(f"{loss_type}, KL {kl_weight}: loss differs by {difference[0]:.1e}, gradient by {difference[1]:.1e}")
    assert max(difference) <= 1e-6
    if aggregation == "token":
        assert float(terms.clipped) == pytest.approx(metrics["clip_ratio/region_mean"], abs=1e-6)
        if kl_weight:
            assert float(terms.kl) == pytest.approx(metrics["kl"], abs=1e-6)
    assert metrics["clip_ratio/low_mean"] > 0 and metrics["clip_ratio/high_mean"] > 0  # both sides were cut


def test_log_probabilities_equal_trl() -> None:
    torch = pytest.importorskip("torch")
    utils = pytest.importorskip("trl.trainer.utils")
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(0, 3, (5, 7, V)).astype(np.float32), rng.integers(0, V, (5, 7))
    found, entropy = log_probabilities_and_entropy(
        jnp.asarray(logits), jnp.asarray(targets), jnp.zeros(V, bool), temperature=0.7
    )
    scaled = torch.tensor(logits) / 0.7
    expected = utils.selective_log_softmax(scaled, torch.tensor(targets)).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(entropy, utils.entropy_from_logits(scaled).numpy(), atol=2e-6)


@jax.jit
def loss_and_gradient(kernel, part):
    """The whole way from hidden states to the gradient of shared parameters, on a slice of a batch."""

    def loss(kernel):
        found, _ = chunked_log_probabilities(
            part["hidden"], lambda x: x @ kernel, part["targets"], jnp.zeros(V, bool), 1.0, chunk=4
        )
        reference = part["old"] - 0.1
        return grpo_loss(
            found, part["old"], reference, part["advantages"], part["weights"], kl_weight=0.05, **CLIP
        ).loss

    return jax.value_and_grad(loss)(kernel)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_micro_batches_add_up(aggregation: str) -> None:
    """Any division of the batch, into equal parts or not, gives the same loss and the same gradient."""
    rng = np.random.default_rng(7)
    count = 12
    hidden = rng.normal(size=(count, M, T, D)).astype(np.float32)
    kernel = rng.normal(size=(D, V)).astype(np.float32)
    targets = rng.integers(0, V, (count, M, T))
    start, _ = chunked_log_probabilities(jnp.asarray(hidden), lambda x: x @ kernel, targets, np.zeros(V, bool), 1.0, T)
    # Groups of very different lengths, some without a token: where a mean of means would go wrong.
    lengths = rng.integers(1, T + 1, (count, M, 1)) * (np.arange(count) % 3 > 0)[:, None, None]
    batch = {
        "hidden": hidden,
        "targets": targets,
        "old": np.asarray(start) + 0.3 * rng.normal(size=start.shape).astype(np.float32),
        "advantages": rng.normal(size=(count, M)).astype(np.float32),
        "weights": np.asarray(token_weights(jnp.arange(T) < lengths, aggregation)),
    }
    value, gradient = loss_and_gradient(kernel, batch)
    assert float(value) != 0 and np.abs(gradient).max() > 1e-3
    for edges in ([*range(13)], [*range(0, 13, 2)], [0, 3, 6, 9, 12], [0, 6, 12], [0, 1, 6, 8, 12]):
        pieces = [
            loss_and_gradient(kernel, jax.tree.map(lambda x, a=a, b=b: x[a:b], batch))
            for a, b in itertools.pairwise(edges)
        ]
        np.testing.assert_allclose(sum(piece[0] for piece in pieces), value, atol=1e-6)
        np.testing.assert_allclose(sum(piece[1] for piece in pieces), gradient, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_weights(aggregation: str) -> None:
    mask = jnp.asarray(np.random.default_rng(3).random((B, M, T)) < 0.5)
    assert float(token_weights(mask, aggregation).sum()) == pytest.approx(1.0)
    assert not np.asarray(token_weights(mask, aggregation))[~np.asarray(mask)].any()
    assert not np.asarray(token_weights(jnp.zeros_like(mask), aggregation)).any()
    some = token_weights(mask, aggregation, counted=jnp.array([True, False, True]))
    np.testing.assert_allclose(some[::2], token_weights(mask[::2], aggregation), rtol=1e-6)
    assert not np.asarray(some[1]).any()


def test_unknown_aggregation() -> None:
    with pytest.raises(ValueError, match="aggregation"):
        token_weights(jnp.ones((1, 1, 1)), "median")


def test_what_was_not_sampled_has_no_influence(numbers) -> None:
    """Numbers outside the mask, even infinite ones, change neither loss nor gradient."""
    value, _, gradient = our_loss(numbers, "token", 0.05)
    spoiled = dict(numbers)
    for key, junk in (("policy", -np.inf), ("old", np.nan), ("reference", np.inf)):
        spoiled[key] = np.where(numbers["mask"], numbers[key], np.float32(junk))
    again, _, same = our_loss(spoiled, "token", 0.05)
    assert again == value
    np.testing.assert_array_equal(same, gradient)


def test_on_policy_ratio_is_one(numbers) -> None:
    """With old = stop_gradient(policy) the loss is -mean(A) and its gradient that of -A log p."""
    weights = token_weights(jnp.asarray(numbers["mask"]), "token")

    def loss(policy):
        return grpo_loss(policy, jax.lax.stop_gradient(policy), None, numbers["advantages"], weights, **CLIP).loss

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(numbers["policy"]))
    pulled = -np.asarray(weights) * numbers["advantages"][..., None]
    assert float(value) == pytest.approx(pulled.sum(), abs=1e-6)
    np.testing.assert_allclose(gradient, pulled, atol=1e-7)


def test_k3_is_never_negative_and_zero_at_home() -> None:
    gap = jnp.linspace(-5, 5, 1001)
    values = np.asarray(k3(jnp.zeros_like(gap), gap))
    assert (values >= -1e-7).all() and float(k3(jnp.zeros(()), jnp.zeros(()))) == 0


# ---- log-probabilities in chunks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head_case():
    rng = np.random.default_rng(2)
    hidden = rng.normal(size=(2, 3, 11, D)).astype(np.float32)
    kernel = rng.normal(size=(D, V)).astype(np.float32)
    banned = rng.random(V) < 0.3
    targets = rng.choice(np.flatnonzero(~banned), (2, 3, 11))
    return hidden, kernel, banned, targets


@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_chunks_equal_numpy(head_case, chunk: int, temperature: float) -> None:
    hidden, kernel, banned, targets = head_case
    found, entropy = jax.jit(
        lambda h: chunked_log_probabilities(h, lambda x: x @ kernel, jnp.asarray(targets), banned, temperature, chunk)
    )(hidden)
    logits = np.where(banned, -np.inf, hidden.astype(np.float64) @ kernel.astype(np.float64)) / temperature
    logits -= logits.max(-1, keepdims=True)
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.log(np.take_along_axis(probability, targets[..., None], -1)[..., 0])
    safe = np.where(probability > 0, probability, 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(entropy, -(safe * np.log(safe)).sum(-1), atol=1e-5)
    assert found.dtype == entropy.dtype == jnp.float32


@pytest.mark.parametrize("chunk", [2, 11])
def test_chunked_gradient_equals_whole(head_case, chunk: int) -> None:
    hidden, kernel, banned, targets = map(jnp.asarray, head_case)

    def total(hidden, kernel):
        return chunked_log_probabilities(hidden, lambda x: x @ kernel, targets, banned, 0.8, chunk)[0].sum()

    def plain(hidden, kernel):
        scores = jax.nn.log_softmax(jnp.where(banned, -jnp.inf, hidden @ kernel) / 0.8)
        return jnp.take_along_axis(scores, targets[..., None], -1).sum()

    for found, expected in zip(*(jax.grad(f, (0, 1))(hidden, kernel) for f in (total, plain)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_flat_tokens_are_the_same(head_case) -> None:
    hidden, kernel, banned, targets = map(jnp.asarray, head_case)
    whole = chunked_log_probabilities(hidden, lambda x: x @ kernel, targets, banned, 1.0, 4)
    flat = chunked_log_probabilities(hidden.reshape(-1, D), lambda x: x @ kernel, targets.ravel(), banned, 1.0, 5)
    for one, other in zip(whole, flat, strict=True):
        np.testing.assert_allclose(one.ravel(), other, atol=1e-6)


def test_banned_targets_are_finite_and_push_nothing(head_case) -> None:
    """Observations hold image placeholders, which are banned: they must not turn the batch into NaN."""
    hidden, kernel, banned, targets = map(jnp.asarray, head_case)
    forbidden = jnp.full_like(targets, int(np.flatnonzero(np.asarray(banned))[0]))

    def total(kernel):
        found, entropy = chunked_log_probabilities(hidden, lambda x: x @ kernel, forbidden, banned, 1.0, 4)
        return found.sum() + 0.0 * entropy.sum()

    value, gradient = jax.value_and_grad(total)(kernel)
    assert float(value) == 0 and not np.asarray(gradient).any()


def test_logits_of_all_tokens_never_exist_at_once() -> None:
    """The compiled gradient holds no array of [tokens, V] floats, only of [chunk, V]."""
    tokens, vocabulary, chunk = 512, 1024, 32
    kernel, targets = jnp.zeros((D, vocabulary)), jnp.zeros(tokens, int)
    banned = jnp.zeros(vocabulary, bool)

    def total(kernel, hidden):
        return chunked_log_probabilities(hidden, lambda x: x @ kernel, targets, banned, 1.0, chunk)[0].sum()

    memory = jax.jit(jax.grad(total)).lower(kernel, jnp.zeros((tokens, D))).compile().memory_analysis()
    assert memory.temp_size_in_bytes < tokens * vocabulary * 4 / 4


def test_chunks_keep_no_copies_of_the_head() -> None:
    """Each chunk's backward pass makes its logits anew, and all of them read the same kernel."""
    width, vocabulary, chunk = 64, 4096, 8

    def loss(kernel: jax.Array, hidden: jax.Array, targets: jax.Array, wanted: jax.Array) -> jax.Array:
        def head(part: jax.Array) -> jax.Array:
            return part @ kernel

        found, _ = chunked_log_probabilities(
            hidden, head, targets, jnp.zeros(vocabulary, bool), 1.0, chunk, wanted=wanted
        )
        return found.sum()

    def temporaries(chunks: int) -> int:
        n = chunks * chunk
        shapes = (((width, vocabulary), "float32"), ((1, n, width), "float32"), ((1, n), "int32"), ((1, n), "bool"))
        arguments = (jax.ShapeDtypeStruct(*shape) for shape in shapes)
        return jax.jit(jax.grad(loss)).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(32) - temporaries(8) < 4 * width * vocabulary
