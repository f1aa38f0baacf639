"""The exported folder in transformers' hands: same logits, and the same tool-using greedy trajectory."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from medvr_jax import assembly
from medvr_jax.errors import UserError
from medvr_jax.inputs.chat import encode_observation, encode_prompts
from medvr_jax.inputs.images import load_original
from medvr_jax.models.weights import load_backbone
from medvr_jax.rollout.tools import parse_tool_call, run_tool_call
from medvr_jax.training.export import export_policy
from tests.tiny_run import small_config


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[assembly.Parts, Path]:
    """The tiny policy, moved a little so that it is not the folder it came from."""
    parts = assembly.assemble(small_config(), jax.devices()[:1])
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    moved = jax.tree.map(lambda x: x + 1e-3 * jax.random.normal(next(keys), x.shape), parts.params)
    folder = export_policy(parts, moved, tmp_path_factory.mktemp("export") / "policy")
    config = small_config(model__path=folder)
    return assembly.assemble(config, jax.devices()[:1]), folder


def test_import_gives_the_same_parameters(exported: tuple[assembly.Parts, Path], tmp_path: Path) -> None:
    parts, _ = exported
    again = export_policy(parts, parts.params, tmp_path / "again")
    _, params = load_backbone(again)
    for first, second in zip(jax.tree.leaves(parts.params), jax.tree.leaves(params), strict=True):
        assert np.asarray(first).tobytes() == np.asarray(second).tobytes()


def test_transformers_walks_the_same_trajectory(exported: tuple[assembly.Parts, Path]) -> None:
    """generate(), greedy, turn by turn with the same crops, from the exported folder's own tokenizer and processor."""
    parts, folder = exported
    engine = parts.engine(assembly.greedy_rollout(parts.config, parts.backbone))
    prompts = encode_prompts(parts.source.test(4), parts.encoder)
    rollout = engine.run(parts.params, prompts, jax.random.key(0))
    assert sum(bool(group[0].zooms) for group in rollout.trajectories) >= 2

    model = AutoModelForImageTextToText.from_pretrained(folder).eval().float()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)
    banned = np.flatnonzero(np.asarray(engine.tables.banned)).tolist()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for b, prompt in enumerate(prompts):
        image = load_original(prompt.example.images[0])
        seen = processor(
            images=[image.shown], size={"shortest_edge": 112 * 112, "longest_edge": 112 * 112}, return_tensors="np"
        )
        np.testing.assert_array_equal(seen["pixel_values"], prompt.images[0].patches)
        ids, pixels, grids = prompt.token_ids.tolist(), [prompt.images[0].patches], [prompt.images[0].grid]
        for _ in range(2):
            inputs = torch.tensor([ids])
            output = model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                pixel_values=torch.tensor(np.concatenate(pixels)),
                image_grid_thw=torch.tensor(grids),
                mm_token_type_ids=(inputs == parts.backbone.image_token_id).int(),
                do_sample=False,
                max_new_tokens=100,
                suppress_tokens=banned,
                eos_token_id=end,
                pad_token_id=end,
            )[0].tolist()
            call = parse_tool_call(tokenizer.decode(output[len(ids) :]))
            ids = output
            if call is None:
                break
            result = run_tool_call(call, parts.tools, image, prompt.images[0])
            observation = encode_observation(parts.encoder, 0, crop=result.image, error=result.error or "")
            ids += observation.token_ids.tolist()
            if observation.image is not None:
                pixels.append(observation.image.patches)
                grids.append(observation.image.grid)
        ours = rollout.host.tokens[b, 0, 1 : rollout.host.length[b, 0]].tolist()
        assert ids[len(prompt.token_ids) :] == ours


def test_logits_of_the_folder(exported: tuple[assembly.Parts, Path]) -> None:
    """Float32 logits of a prompt with its image, the folder loaded by both sides."""
    from flax import nnx

    from medvr_jax.inputs.batches import batch_prompts
    from medvr_jax.models.backbone import PromptInputs, ResponseInputs
    from medvr_jax.models.features import image_features
    from medvr_jax.models.packing import pack_all

    parts, folder = exported
    (prompt,) = encode_prompts(parts.source.test(1), parts.encoder)
    batch = batch_prompts([prompt], 96, 1, 64, parts.backbone.vision)
    graphdef, params = load_backbone(folder)
    backbone = nnx.merge(graphdef, params)
    inputs = PromptInputs(
        batch.tokens, batch.positions, batch.valid, batch.feature_index, image_features(backbone, batch.images)
    )
    last = ResponseInputs(
        batch.last_token[:, None, None],
        batch.last_position[:, None, None, :],
        np.full((1, 1, 1), -1, np.int32),
        np.zeros((1, 0, parts.backbone.text.hidden_size), np.float32),
    )
    ours = np.asarray(backbone.logits(backbone.score(inputs, last, pack_all(*last.tokens.shape))))[0, 0]
    model = AutoModelForImageTextToText.from_pretrained(folder).eval().float()
    ids = torch.tensor(prompt.token_ids, dtype=torch.long)[None]
    with torch.no_grad():
        theirs = model(
            input_ids=ids,
            pixel_values=torch.tensor(prompt.images[0].patches),
            image_grid_thw=torch.tensor([prompt.images[0].grid]),
            mm_token_type_ids=(ids == parts.backbone.image_token_id).int(),
        ).logits[0, -1]
    assert np.abs(ours - theirs.numpy()).max() <= 2e-4


def test_an_observation_that_cannot_fit_is_refused_before_the_run() -> None:
    with pytest.raises(UserError, match="rollout.observation_length: found 20"):
        assembly.assemble(small_config(rollout__observation_length=20), jax.devices()[:1])
