"""Which tokens are coordinates: the same on the host as in the sampling loop, whose H_tool is the reference."""

from __future__ import annotations

import jax
import numpy as np

from medvr_jax import assembly
from medvr_jax.evaluation.coordinates import box_entropies
from medvr_jax.inputs.chat import encode_prompts
from medvr_jax.inputs.tokenizer import make_token_tables
from medvr_jax.rollout.loop import VocabularyTables
from medvr_jax.training import sharding
from tests.tiny_run import small_config

ARGUMENTS = '{"bbox_2d": [1, 20, 56, 7], "label": "a [b] c"}'
CALL = f'<tool_call>{{"name": "image_zoom_in_tool", "arguments": {ARGUMENTS}}}</tool_call>'


def tables_and_tokens(*turns: str) -> tuple[VocabularyTables, list[np.ndarray], object]:
    parts = assembly.assemble(small_config(), jax.devices()[:1])
    tables = VocabularyTables.from_tokenizer(make_token_tables(parts.encoder.tokenizer, parts.backbone.text.vocab_size))
    encode = parts.encoder.tokenizer.encode
    return tables, [np.array(encode(turn, add_special_tokens=False), np.int32) for turn in turns], parts


def test_only_the_first_list_of_a_call_counts() -> None:
    texts = ("<think>[9, 9]</think>" + CALL + "<|im_end|>", "a crop [3]", "<answer>A</answer>")
    tables, (call, crop, last), parts = tables_and_tokens(*texts)
    tokens = np.concatenate([[0], call, crop, last])
    sampled = np.concatenate([[0], np.ones(len(call)), np.zeros(len(crop)), np.ones(len(last))]).astype(bool)
    words = [parts.encoder.tokenizer.decode([int(token)]) for token in tokens]
    inside = CALL[CALL.index("[") + 1 : CALL.index("]")]
    start = next(
        i for i in range(len(words)) if "".join(words[i:]).startswith(inside) and i > words.index("<tool_call>")
    )
    count = next(n for n in range(1, 40) if "".join(words[start : start + n]).startswith(inside))
    entropy = np.random.default_rng(0).random(len(tokens)).astype(np.float32)
    expected = float(np.mean(entropy[start : start + count].astype(np.float64)))
    (found,) = box_entropies(tokens, sampled, entropy, [True, False], tables)
    assert abs(found - expected) < 1e-5
    assert box_entropies(tokens, sampled, entropy, [False, False], tables) == []
    sampled[len(call)] = False  # nothing is assumed of calls that are not closed by the policy itself
    assert box_entropies(tokens, sampled, entropy, [True, False], tables)[0] == found
    without, (plain,), _ = tables_and_tokens('<tool_call>{"bbox_2d": 3}</tool_call>')
    assert box_entropies(plain, np.ones(len(plain), bool), np.ones(len(plain)), [True], without) == [None]


def test_equals_the_loops_own_window() -> None:
    """H_tool of the fork decisions is the mean over the same tokens, as long as they fit its window."""
    config = small_config(data__prompts_per_step=4, data__evaluation_batch=4, evr__window=64, evr__threshold=-100)
    parts = assembly.assemble(config, jax.devices()[:1])
    params = jax.device_put(parts.params, sharding.parameter_shardings(parts.params, parts.sampling_layout))
    engine = parts.engine(assembly.training_rollout(config, parts.backbone))
    rollout = engine.run(params, encode_prompts(parts.source.train(0, 4), parts.encoder), jax.random.key(0))
    compared = 0
    for b, decisions in enumerate(rollout.decisions):
        for decision in decisions:
            m, host = decision["slot"], rollout.host
            zoomed = [turn.zoom is not None for turn in rollout.trajectories[b][m].turns]
            arrays = (host.tokens[b, m], host.sampled[b, m], host.entropy[b, m])
            if decision["pass"] == 0 and zoomed[:1] == [True]:
                assert abs(box_entropies(*arrays, zoomed, engine.tables)[0] - decision["h_tool"]) < 2e-5
                compared += 1
    assert compared >= 8
