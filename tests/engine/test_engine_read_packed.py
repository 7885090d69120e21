"""Reading rows in groups that share V is the dense computation, gradients included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from stillroom.engine.mask import Visibility
from stillroom.engine.packing import Packed, pack_questions, stack_rows
from stillroom.engine.prefix import read_packed

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "neox": GPTNeoXConfig(use_parallel_residual=False, **SIZES),
    "llama": LlamaConfig(num_key_value_heads=2, **SIZES),
    "qwen2": Qwen2Config(num_key_value_heads=2, **SIZES),
}


@pytest.fixture(params=list(CONFIGS))
def lm(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param])


def rows(group_tokens: int) -> Packed:
    """Two rows with different numbers of vision tokens and questions of different lengths."""
    pairs = [([7, 8, 9], [4, 2]), ([5], [6, 6, 2]), ([3] * 6, [2]), ([9, 9], [8, 2])]
    packed = [
        pack_questions(pairs, prefix_length=6, slots=2, start_id=1),
        pack_questions(pairs[:2], prefix_length=4, slots=2, start_id=1),
    ]
    return stack_rows(packed, multiple_of=8, group_tokens=group_tokens)


def labelled(lm: PreTrainedModel, packed: Packed, vision: Tensor, visibility: Visibility) -> Tensor:
    text = lm.get_input_embeddings()(packed.ids[:, 6:])
    states = read_packed(lm, vision, text, packed, visibility=visibility).text
    return states[packed.labels[:, 6:] != -100]


@pytest.mark.parametrize("visibility", ["prefix", "causal"])
@pytest.mark.parametrize("group_tokens", [1, 12, 1000])
def test_groups_change_neither_states_nor_gradients(
    lm: PreTrainedModel, visibility: Visibility, group_tokens: int
) -> None:
    grouped = rows(group_tokens)
    results = []
    for packed in (grouped, replace(grouped, groups=None)):
        vision = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))
        vision.requires_grad_()
        states = labelled(lm, packed, vision, visibility)
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
        parameter = next(lm.base_model.layers[0].parameters())
        gradients = torch.autograd.grad((states * weights).sum(), [vision, parameter])
        results.append((states.detach(), *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_groups_hold_every_place_of_every_question_once_and_whole() -> None:
    packed = rows(12)
    assert packed.groups is not None
    for row, groups in zip(packed.segment[:, 6:], packed.groups, strict=True):
        places = [place for place in groups.flatten().tolist() if place < len(row)]
        assert sorted(places) == [i for i, s in enumerate(row.tolist()) if s > 0]
        homes = [{int(row[p]) for p in group if p < len(row)} for group in groups]
        assert sum(len(home) for home in homes) == len(set().union(*homes))


def test_a_question_longer_than_a_group_has_one_of_its_own() -> None:
    packed = rows(5)
    assert packed.groups is not None
    longest = max((packed.segment[0, 6:] == i).sum().item() for i in range(1, 5))
    assert packed.groups.shape[2] == longest


def test_full_prefix_reads_the_row_in_one_piece() -> None:
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(CONFIGS["neox"])
    packed = stack_rows([pack_questions([([7, 8], [9, 2])], prefix_length=6)])
    vision = torch.randn(1, 6, 32)
    one = labelled(lm, packed, vision, "full_prefix")
    other = labelled(lm, packed, vision, "prefix")
    assert one.shape == other.shape
    assert not torch.allclose(one, other, atol=1e-3)
