"""The shorter way of a single token says what the model's own ``forward`` says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from stillroom.engine import layers
from stillroom.engine.generate import ANSWER_ROOM, Decoded, greedy
from stillroom.engine.prefix import prefill

SHARED = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    # Large, so that a tiny random model says different things.
    "initializer_range": 0.2,
}
LONG = ANSWER_ROOM + 9


def language_model(family: str, turned: float = 1.0) -> PreTrainedModel:
    torch.manual_seed(0)
    if family.startswith("neox"):
        rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": turned}
        parallel = family == "neox parallel"
        config = GPTNeoXConfig(use_parallel_residual=parallel, rope_parameters=rope, **SHARED)
        lm: PreTrainedModel = GPTNeoXForCausalLM(config)
    elif family == "llama":
        lm = LlamaForCausalLM(LlamaConfig(num_key_value_heads=4, **SHARED))
    else:
        lm = Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **SHARED))
    for name, weight in lm.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.3)
    return lm.eval()


def answer(lm: PreTrainedModel, *, plain: bool, visibility: Any = "prefix") -> Decoded:
    torch.manual_seed(1)
    prefix = prefill(lm, torch.randn(1, 6, 32), visibility=visibility, plain=plain)
    prompt = torch.randn(5, 32)
    settings = {"max_new_tokens": LONG, "eos_id": -1, "topk": 40, "plain": plain}
    return greedy(lm, prefix, [prompt], visibility=visibility, **settings)[0]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that a single token went through by the shorter way."""
    seen: list[int] = []
    shorter = layers._attend_alone

    def counted(q: Tensor, held: Tensor, number: int, at: Any) -> Tensor:
        seen.append(number)
        return shorter(q, held, number, at)

    monkeypatch.setattr(layers, "_attend_alone", counted)
    return seen


@pytest.mark.parametrize("visibility", ["prefix", "causal", "full_prefix"])
@pytest.mark.parametrize("family", ["neox", "neox parallel", "llama", "qwen2"])
def test_every_token_behind_the_first_goes_the_shorter_way_and_says_the_same(
    family: str, visibility: str, calls: list[int]
) -> None:
    lm = language_model(family)
    own = answer(lm, plain=True, visibility=visibility)
    assert not calls
    said = answer(lm, plain=False, visibility=visibility)
    assert calls == (LONG - 1) * [0, 1, 2]
    assert said.ids == own.ids
    assert len(set(said.ids)) > 2
    assert said.logprob == pytest.approx(own.logprob, abs=1e-3)
    order, others = said.topk_ids.argsort(1), own.topk_ids.argsort(1)
    logits = (torch.tensor(d.topk_logits) for d in (said, own))
    mine, theirs = (x.gather(1, torch.tensor(o)) for x, o in zip(logits, (order, others)))
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_heads_that_are_turned_in_part_go_the_longer_way(calls: list[int]) -> None:
    lm = language_model("neox", turned=0.25)
    assert answer(lm, plain=False).ids == answer(lm, plain=True).ids
    assert not calls


def test_half_precision_keeps_the_models_own_rounding(calls: list[int]) -> None:
    lm = language_model("llama").to(torch.bfloat16)
    torch.manual_seed(1)
    prefix = prefill(lm, torch.randn(1, 6, 32).bfloat16(), visibility="prefix")
    prompt = torch.randn(5, 32).bfloat16()
    settings = {"visibility": "prefix", "max_new_tokens": 4, "eos_id": -1}
    said, own = (greedy(lm, prefix, [prompt], plain=p, **settings)[0].ids for p in (False, True))
    assert said == own
    assert not calls


@pytest.mark.parametrize("family", ["neox", "llama", "qwen2"])
def test_the_last_living_question_of_several_sees_its_own_alone(
    family: str, calls: list[int]
) -> None:
    lm = language_model(family)
    torch.manual_seed(1)
    prefix = prefill(lm, torch.randn(1, 60, 32), visibility="prefix")
    prompts = [torch.randn(5, 32) for _ in range(6)]
    settings = {"visibility": "prefix", "max_new_tokens": LONG}
    alone = [greedy(lm, prefix, [p], plain=True, eos_id=-1, **settings)[0].ids for p in prompts]
    # A last word by which a pair's first ends at once: the second goes on behind its tokens.
    pairs = [
        (first, second, end)
        for first in range(6)
        for second in range(6)
        for end in set(alone[first][:3]) - set(alone[second])
    ]
    assert pairs
    for first, second, end in pairs[:4]:
        short = alone[first][: alone[first].index(end) + 1]
        calls.clear()
        together = [prompts[first], prompts[second]]
        said = [d.ids for d in greedy(lm, prefix, together, eos_id=end, **settings)]
        assert said == [short, alone[second]]
        assert len(calls) == 3 * (LONG - len(short))


def test_a_row_that_outgrows_what_was_lent_leaves_the_prefix_alone(calls: list[int]) -> None:
    lm = language_model("neox")
    torch.manual_seed(1)
    prefix = prefill(lm, torch.randn(1, 6, 32), visibility="prefix")
    before = [[part.clone() for part in layer] for layer in prefix.layers]
    settings = {"visibility": "prefix", "max_new_tokens": 200, "eos_id": -1}
    prompt = torch.randn(5, 32)
    said, own = (greedy(lm, prefix, [prompt], plain=p, **settings)[0].ids for p in (False, True))
    assert said == own
    assert len(calls) == 199 * 3
    for layer, held in zip(prefix.layers, before, strict=True):
        for part, was in zip(layer, held, strict=True):
            assert torch.equal(part, was)


def test_layers_without_biases(calls: list[int]) -> None:
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    config = GPTNeoXConfig(attention_bias=False, rope_parameters=rope, **SHARED)
    lm = GPTNeoXForCausalLM(config).eval()
    assert lm.base_model.layers[0].attention.query_key_value.bias is None
    assert answer(lm, plain=False).ids == answer(lm, plain=True).ids
    assert calls


def test_new_weights_are_read_by_the_shorter_way_too(calls: list[int]) -> None:
    lm = language_model("llama")
    before = answer(lm, plain=False).ids
    with torch.no_grad():
        lm.base_model.layers[1].self_attn.k_proj.weight.mul_(-3)
    after = answer(lm, plain=False).ids
    assert calls
    assert after == answer(lm, plain=True).ids != before
