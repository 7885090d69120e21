"""Visual tokens against words, and heads that begin by looking at what is like themselves."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Qwen2Config

from stillroom.engine.initial import begin_copying, match_queries
from stillroom.engine.naming import BACKGROUND, UNKNOWN, Words, naming_error, naming_weight
from stillroom.records import BadInputError
from stillroom.students.config import neox_config

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}


def test_a_token_like_a_word_is_named_by_it_and_by_no_other() -> None:
    words = torch.eye(3, 8)
    tokens = torch.cat([8 * words, torch.ones(1, 8)])
    right = naming_error(tokens, words, torch.tensor([1, 2, 3, 0]))
    wrong = naming_error(tokens, words, torch.tensor([2, 3, 1, 1]))
    assert (right[:3] < wrong[:3]).all()
    # LayerNorm of a constant is 0: like none of three words and "none" alike.
    assert right[3].item() == pytest.approx(BACKGROUND * torch.tensor(4.0).log().item())


def test_a_word_of_several_tokens_is_their_mean() -> None:
    lm = AutoModelForCausalLM.from_config(GPTNeoXConfig(**SIZES))
    weight = lm.get_input_embeddings().weight
    found = Words.of([[3], [5, 7], [2, 2, 8]]).embedded(lm)
    expected = [weight[3], weight[[5, 7]].mean(0), weight[[2, 2, 8]].mean(0)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_what_nobody_knows_counts_nothing() -> None:
    which = torch.tensor([[1, UNKNOWN], [0, 2]])
    error = naming_error(torch.randn(2, 2, 8), torch.randn(3, 8), which)
    assert error.shape == which.shape
    assert error[0, 1] == 0
    assert (error[which >= 0] > 0).all()
    assert naming_weight(which) == 2 + BACKGROUND


@pytest.mark.parametrize(
    "config",
    [
        GPTNeoXConfig(**SIZES),
        LlamaConfig(num_key_value_heads=4, **SIZES),
        LlamaConfig(num_key_value_heads=2, **SIZES),
    ],
    ids=["neox", "llama", "grouped"],
)
def test_every_second_head_begins_with_its_keys_as_queries(config: GPTNeoXConfig) -> None:
    lm = AutoModelForCausalLM.from_config(config)
    match_queries(lm)
    states = torch.randn(5, 32)
    layer = lm.base_model.layers[0]
    if config.model_type == "llama":
        queries = layer.self_attn.q_proj(states).unflatten(-1, (4, 8))
        keys = layer.self_attn.k_proj(states).unflatten(-1, (-1, 8))
        keys = keys.repeat_interleave(4 // keys.shape[1], dim=1)
    else:
        fused = layer.attention.query_key_value(states).unflatten(-1, (4, 3, 8))
        queries, keys = fused[:, :, 0], fused[:, :, 1]
    same = (queries == keys).all(dim=-1).all(dim=0)
    assert same.tolist() == [True, False, True, False]


def test_other_models_are_refused() -> None:
    lm = AutoModelForCausalLM.from_config(Qwen2Config(num_key_value_heads=2, **SIZES))
    with pytest.raises(BadInputError, match="qwen2"):
        match_queries(lm)


def test_one_head_begins_by_looking_at_the_word_before() -> None:
    torch.manual_seed(0)
    config = neox_config(hidden_size=32, layers=2, heads=2, rotary_share=1.0, rope_theta=1e7)
    lm = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    match_queries(lm)
    begin_copying(lm)
    # Far behind the start of a scene, as questions are.
    ids, position = torch.randint(40, 900, (1, 12)), torch.arange(384, 396)[None]
    seen = lm(ids, position_ids=position, output_attentions=True).attentions[0][0, 1]
    assert seen[1:].argmax(dim=-1).tolist() == list(range(11))
    assert seen.diagonal(-1).min() > 0.5
    # What a copying head sees it hands on as it is, and not turned into something else.
    attention = lm.base_model.layers[1].attention
    values = attention.query_key_value.weight.unflatten(0, (2, 3, -1))[0, 2]
    out = attention.dense.weight[:, :16]
    state = torch.randn(32)
    assert torch.cosine_similarity(out @ values @ state, state, dim=0) > 0.5


def test_copying_needs_all_channels_turned() -> None:
    lm = AutoModelForCausalLM.from_config(neox_config(hidden_size=32, layers=1, heads=2))
    with pytest.raises(BadInputError, match="needs all 16 channels"):
        begin_copying(lm)
