"""Qwen2.5-VL as one module over groups: B prompts, each stored once, with M trajectories each.

Prefill, extend (decode is an extend by one token) and score are the same decoder layers over the same two-part
attention. Prompts and responses are padded on the right; a response starts at slot 0.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from medvr_jax.models.attention_backend import XLA, AttentionBackend
from medvr_jax.models.config import BackboneConfig
from medvr_jax.models.decoder import DecoderLayers, Rotary, group_layer, prompt_layer, residual, response_layer
from medvr_jax.models.layers import (
    Initialiser,
    Weights,
    axes_of,
    gathered,
    layer_of,
    loop_axes,
    loop_weights,
    rms_norm,
    run_stack,
    times_transposed,
    used,
    weights_of,
)
from medvr_jax.models.packing import Packing, pack
from medvr_jax.models.partitioning import constrain, constrain_groups
from medvr_jax.models.rope import text_rotary
from medvr_jax.models.vision import ImageBatch, VisionTower

# Decoders with at least so many layers are scanned; smaller ones are unrolled, which is faster on a CPU.
SCAN_FROM = 16
SCORE_SCAN_FROM = 8  # in training, where one layer's backward pass leaves its memory to the next


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PromptInputs:
    """tokens [B, P]; positions [B, P, 3]; valid [B, P]; feature_index [B, P] into features [B, F, D], -1 = text."""

    tokens: jax.Array
    positions: jax.Array
    valid: jax.Array
    feature_index: jax.Array
    features: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class ResponseInputs:
    """tokens [B, M, T]; positions [B, M, T, 3]; feature_index [B, M, T] into the group's features [B, F, D], -1 = text;
    [B, M, E] alike where tokens are fed."""

    tokens: jax.Array
    positions: jax.Array
    feature_index: jax.Array
    features: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PromptCache:
    """Per layer keys [B, K, H, P] and values [B, K, P, H]; valid [B, P]."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    valid: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class ResponseCache:
    """Per layer keys [B, M, K, H, T] and values [B, M, K, T, H]."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SamplingWeights:
    """What `extend` and `logits` read at every step, sliced per layer, cast and transposed once before a loop.

    layers: see `layers.loop_weights`; embedding [V, D]; head [V, D], None where it is the embedding.
    """

    layers: tuple[Weights, ...]
    embedding: jax.Array
    head: jax.Array | None


class Backbone(nnx.Module):
    """The vision-language model; its methods are pure functions of its parameters."""

    def __init__(
        self,
        config: BackboneConfig,
        *,
        key: jax.Array,
        dtype: jnp.dtype = jnp.float32,
        compute_dtype: jnp.dtype = jnp.float32,
    ) -> None:
        """`dtype` is the parameters', `compute_dtype` the activations'; norms, softmax and rope are float32."""
        text = config.text
        self.config, self.compute_dtype = config, jnp.dtype(compute_dtype)
        self.attention, self.images_at_once = XLA, 0  # see with_settings
        make = Initialiser(key, text.initializer_range, jnp.dtype(dtype))
        self.embedding = make.normal((text.vocab_size, text.hidden_size), ("vocabulary", "embed"))
        self.layers = DecoderLayers(text, make)
        self.final_norm = make.ones((text.hidden_size,), ("embed",))
        if not text.tie_word_embeddings:
            self.head = make.normal((text.hidden_size, text.vocab_size), ("embed", "vocabulary"))
        vision_key = jax.random.fold_in(key, 1)
        make_vision = Initialiser(vision_key, config.vision.initializer_range, jnp.dtype(dtype))
        self.vision = VisionTower(config.vision, make_vision, self.compute_dtype)

    def encode_images(self, images: ImageBatch, remat: str = "none") -> jax.Array:
        """Features [I, S // merge², D] of the images, in the order of the prompt's image tokens."""
        return self.vision(images, remat, self.attention)

    def prefill(self, prompt: PromptInputs) -> PromptCache:
        """Keys and values of the prompts, one copy per group."""
        text, stack = self.config.text, weights_of(self.layers)
        x = self._embed(prompt.tokens, prompt.feature_index, prompt.features)
        rotary = self._rotary(prompt.positions)
        if text.num_layers >= SCAN_FROM:  # one compiled body; the last layer's output is computed for nobody

            def layer_function(x: jax.Array, layer: Weights) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
                x, k, v = prompt_layer(x, layer, rotary, prompt.valid, text, self.attention, last=False)
                return x, (k, v)

            _, (keys, values) = jax.lax.scan(layer_function, x, stack)
            return PromptCache(tuple(keys), tuple(values), prompt.valid)
        keys, values = [], []
        for layer in range(text.num_layers):
            last = layer == text.num_layers - 1
            x, k, v = prompt_layer(x, layer_of(stack, layer), rotary, prompt.valid, text, self.attention, last=last)
            keys.append(k)
            values.append(v)
        return PromptCache(tuple(keys), tuple(values), prompt.valid)

    def init_response_cache(self, B: int, M: int, T: int, dtype: jnp.dtype | None = None) -> ResponseCache:
        """An empty cache for T response slots of each trajectory."""
        text, dtype = self.config.text, dtype or self.compute_dtype
        K, H = text.num_kv_heads, text.head_width

        def empty(*shape: int) -> tuple[jax.Array, ...]:
            names = ("groups", None, "kv_heads", None, None)
            return tuple(constrain(jnp.zeros(shape, dtype), *names) for _ in range(text.num_layers))

        return ResponseCache(empty(B, M, K, H, T), empty(B, M, K, T, H))

    def sampling_weights(self) -> SamplingWeights:
        """Made once before a sampling loop and given to `extend` and `logits` in it."""
        dtype, stack, axes = self.compute_dtype, weights_of(self.layers), self.sampling_axes()
        layers = tuple(
            {
                name: constrain(value.astype(dtype), *places[name])
                for name, value in loop_weights(layer_of(stack, layer)).items()
            }
            for layer, places in enumerate(axes.layers)
        )
        embedding, head = constrain(self.embedding[...].astype(dtype), *axes.embedding), None
        if axes.head is not None:
            head = constrain(self.head[...].T.astype(dtype), *axes.head)
        return SamplingWeights(layers, embedding, head)

    def sampling_axes(self) -> SamplingWeights:
        """The logical axes of `sampling_weights`, a tuple in the place of each array."""
        text, of_vocabulary = self.config.text, ("vocabulary", "embed")
        layer = loop_axes(self.layers)
        head = None if text.tie_word_embeddings else of_vocabulary
        return SamplingWeights(tuple(layer for _ in range(text.num_layers)), of_vocabulary, head)

    def extend(
        self,
        prompt_cache: PromptCache,
        response_cache: ResponseCache,
        new: ResponseInputs,
        starts: jax.Array,
        counts: jax.Array,
        weights: SamplingWeights | None = None,
    ) -> tuple[jax.Array, ResponseCache]:
        """Feeds E new tokens of each trajectory at slots starts … starts + counts - 1 (starts, counts [B, M]).

        Tokens from `counts` on are padding: they write nothing and their hidden values are arbitrary. Returns hidden
        [B, M, E, D] after the final norm, and the cache. Writing a slot again is legal.
        """
        if weights is None:
            weights = self.sampling_weights()
        fed = _Fed(
            x=self._embed(new.tokens, new.feature_index, new.features, weights.embedding),
            rotary=self._rotary(new.positions),
            slots=starts[..., None] + jnp.arange(new.tokens.shape[2], dtype=starts.dtype),
            starts=starts,
            counts=counts,
        )
        if new.tokens.shape[2] > 1 and self.config.text.num_layers >= SCAN_FROM:
            x, cache = self._extend_scanned(prompt_cache, response_cache, fed)
        else:
            x, cache = self._extend_unrolled(prompt_cache, response_cache, fed, weights)
        return self._final(x), cache

    def _extend_unrolled(
        self, prompt_cache: PromptCache, response_cache: ResponseCache, fed: _Fed, weights: SamplingWeights
    ) -> tuple[jax.Array, ResponseCache]:
        """`extend` layer by layer; the caches are written in place."""
        x, keys, values = fed.x, [], []
        for layer, layer_weights in enumerate(weights.layers):
            old = (response_cache.keys[layer], response_cache.values[layer])
            prompt = (prompt_cache.keys[layer], prompt_cache.values[layer], prompt_cache.valid)
            write = functools.partial(fed.write, old)
            x, k, v = response_layer(x, layer_weights, fed.rotary, prompt, fed.slots, self.config.text, write)
            keys.append(k)
            values.append(v)
        return x, ResponseCache(tuple(keys), tuple(values))

    def _extend_scanned(
        self, prompt_cache: PromptCache, response_cache: ResponseCache, fed: _Fed
    ) -> tuple[jax.Array, ResponseCache]:
        """`extend` with one compiled layer: worth copies of the caches where many tokens are fed at once."""

        def layer_function(x: jax.Array, layer: tuple) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            layer_weights, prompt_keys, prompt_values, *old = layer
            written = []

            def write(new_keys: jax.Array, new_values: jax.Array) -> tuple[jax.Array, jax.Array]:
                written.extend((new_keys, new_values))
                return fed.write(old, new_keys, new_values)

            prompt = (prompt_keys, prompt_values, prompt_cache.valid)
            layer_weights = {name: value.astype(self.compute_dtype) for name, value in layer_weights.items()}
            x, _, _ = response_layer(x, layer_weights, fed.rotary, prompt, fed.slots, self.config.text, write)
            return x, tuple(written)

        caches = (prompt_cache.keys, prompt_cache.values, response_cache.keys, response_cache.values)
        x, new = jax.lax.scan(layer_function, fed.x, (weights_of(self.layers), *map(jnp.stack, caches)))
        layers = zip(response_cache.keys, response_cache.values, *new, strict=True)
        keys, values = zip(*(fed.write(layer[:2], *layer[2:]) for layer in layers), strict=True)
        return x, ResponseCache(keys, values)

    def score(self, prompt: PromptInputs, response: ResponseInputs, packing: Packing, remat: str = "none") -> jax.Array:
        """Hidden [B, N, D] of the packed response tokens after the final norm, in one differentiable pass.

        packing: which slots of the responses they are. remat: see `layers.REMAT_POLICIES`.
        """
        text, stack, axes = self.config.text, weights_of(self.layers), axes_of(self.layers)
        x = self._embed(prompt.tokens, prompt.feature_index, prompt.features)
        tokens, positions, index = (
            pack(part, packing) for part in (response.tokens, response.positions, response.feature_index)
        )
        y = self._embed(tokens, index, response.features)
        x, y = residual(x), residual(y)
        rotaries = (self._rotary(prompt.positions), self._rotary(positions))

        def layer_function(
            carry: tuple[jax.Array, jax.Array], layer: Weights, last: bool = False
        ) -> tuple[jax.Array, jax.Array]:
            return group_layer(*carry, packing, layer, rotaries, prompt.valid, text, self.attention, last=last)

        if remat == "none" and text.num_layers < SCORE_SCAN_FROM:
            for layer in range(text.num_layers):
                weights = {name: gathered(value, axes[name]) for name, value in layer_of(stack, layer).items()}
                x, y = layer_function((x, y), weights, layer == text.num_layers - 1)
        else:
            x, y = run_stack(layer_function, (x, y), stack, axes, unroll=False, remat=remat)
        return self._final(y)

    def head_kernel(self) -> jax.Array:
        """[D, V]: the head, or the transposed embedding where they are tied."""
        return used(self.embedding).T if self.config.text.tie_word_embeddings else used(self.head)

    def logits(self, hidden: jax.Array, weights: SamplingWeights | None = None) -> jax.Array:
        """float32 [..., V] of hidden [..., D]."""
        if weights is None:
            head = self.head_kernel().astype(hidden.dtype)
            logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
        else:
            head = weights.embedding if weights.head is None else weights.head
            logits = times_transposed(hidden, head, jnp.float32)
        return constrain(logits, "groups", *(None,) * (logits.ndim - 2), "vocabulary")

    def _embed(
        self, tokens: jax.Array, index: jax.Array, features: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """[B, ..., D]: the tokens' embeddings, or the group's features [B, F, D] where `index` [B, ...] is not -1."""
        table = used(self.embedding) if embedding is None else embedding
        x = constrain_groups(table[tokens].astype(self.compute_dtype))
        if features.shape[1] == 0:
            return x
        image = jax.vmap(lambda rows, index: rows[index])(features, jnp.maximum(index, 0))
        return constrain_groups(jnp.where((index >= 0)[..., None], image.astype(x.dtype), x))

    def _rotary(self, positions: jax.Array) -> Rotary:
        text = self.config.text
        return text_rotary(positions, section=text.mrope_section, theta=text.rope_theta)

    def _final(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, used(self.final_norm), self.config.text.rms_norm_eps)


def with_settings(
    graphdef: nnx.GraphDef, params: nnx.State, *, attention: AttentionBackend = XLA, images_at_once: int = 0
) -> nnx.GraphDef:
    """The same backbone computed otherwise; its parameters are as before.

    attention: the back end of every attention; images_at_once: of each group in the tower, 0 = all.
    """
    backbone = nnx.merge(graphdef, params)
    backbone.attention, backbone.images_at_once = attention, images_at_once
    return nnx.graphdef(backbone)


@dataclasses.dataclass(frozen=True)
class _Fed:
    """E tokens on their way through the layers of `extend`: x [B, M, E, D], their rotary tables, the slots [B, M, E]
    that they take, and the first slot and the number of tokens of each row [B, M]."""

    x: jax.Array
    rotary: Rotary
    slots: jax.Array
    starts: jax.Array
    counts: jax.Array

    def write(
        self, old: Sequence[jax.Array], new_keys: jax.Array, new_values: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The layer's `old` keys [B, M, K, H, T] and values [B, M, K, T, H] with those of the tokens."""
        keys, values = old
        return (
            write_slots(keys, new_keys, self.starts, self.counts, axis=4),
            write_slots(values, new_values, self.starts, self.counts, axis=3),
        )


def write_slots(cache: jax.Array, new: jax.Array, starts: jax.Array, counts: jax.Array, *, axis: int) -> jax.Array:
    """Places `new` [B, M, …E…] at slots starts … starts + counts - 1 of `cache` [B, M, …T…], both along `axis`.

    A scatter with B and M as batch axes: it works in place inside a loop and partitions over both.
    """
    T, E = cache.shape[axis], new.shape[axis]
    tokens = jnp.arange(E, dtype=starts.dtype)
    # padding goes beyond the cache, where it is dropped; indices stay sorted and unique
    slots = jnp.where(tokens < counts[..., None], starts[..., None] + tokens, T + tokens)

    def write_row(row: jax.Array, values: jax.Array, slots: jax.Array) -> jax.Array:
        at = row.at[(slice(None),) * (axis - 2) + (slots,)]
        return at.set(values, mode="drop", unique_indices=True, indices_are_sorted=True)

    return jax.vmap(jax.vmap(write_row))(cache, new.astype(cache.dtype), slots)
