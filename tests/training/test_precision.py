"""bf16, and layers of a language model that are computed twice or compiled."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedModel

from stillroom.cpu import ASKS_MKL, linear
from stillroom.engine.packing import IGNORE_INDEX, pack_questions, stack_rows
from stillroom.engine.prefix import read_packed
from stillroom.records import BadInputError
from stillroom.training.precision import (
    check_precision,
    decoder_layers,
    lean_layers,
    moved,
    swift_layers,
)
from stillroom.training.runlog import read_log

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LEAN = replace(tiny_run.CONFIG, checkpoint_activations=True)


@pytest.fixture(params=["neox", "llama"])
def lm(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    configs = {"neox": GPTNeoXConfig(**SIZES), "llama": LlamaConfig(**SIZES)}
    return AutoModelForCausalLM.from_config(configs[request.param])


def learn(lm: PreTrainedModel) -> tuple[Tensor, list[Tensor], int]:
    """Loss and gradients of rows whose questions share V, and the bytes kept for the way back."""
    pairs = [([7, 8, 9], [4, 2]), ([5], [6, 6, 2]), ([3] * 6, [2])]
    packed = stack_rows([pack_questions(pairs, prefix_length=6, slots=2, start_id=1)])
    vision = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(1))
    weights = {parameter.data_ptr() for parameter in lm.parameters()}
    size = 0

    def keep(value: Tensor) -> Tensor:
        nonlocal size
        if value.data_ptr() not in weights:
            size += value.nbytes
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        text = lm.get_input_embeddings()(packed.ids[:, 6:])
        states = read_packed(lm, vision, text, packed, visibility="prefix", levels=(1,))
        logits = lm.get_output_embeddings()(states.text)
        labels = packed.labels[:, 6:]
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX
        )
        loss = loss + states.levels[1][0].square().mean()
    gradients = torch.autograd.grad(loss, list(lm.parameters()))
    return loss.detach(), list(gradients), size


def test_layers_that_are_computed_twice_give_the_same_and_keep_less(lm: PreTrainedModel) -> None:
    lm.train()
    loss, gradients, size = learn(lm)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    inner = lm.base_model.layers[0].mlp
    handle = inner.register_forward_pre_hook(count)
    with lean_layers(lm, LEAN):
        lean_loss, lean_gradients, lean_size = learn(lm)
    handle.remove()
    # The scene and its questions, each there and back.
    assert calls == 4
    assert lean_size < size / 2
    torch.testing.assert_close(lean_loss, loss, rtol=0, atol=0)
    for one, other in zip(lean_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert all("forward" not in vars(layer) for layer in lm.base_model.layers)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own insides
def test_compiled_layers_give_the_same_but_for_rounding(lm: PreTrainedModel) -> None:
    loss, gradients, _ = learn(lm)
    with lean_layers(lm, replace(tiny_run.CONFIG, compile=True)):
        compiled_loss, compiled_gradients, _ = learn(lm)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=1e-5)
    for one, other in zip(compiled_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not ASKS_MKL, reason="this PyTorch has no oneDNN, or no MKL")
def test_large_products_are_the_same_both_ways_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        asked.append(tuple(x.shape))
        return linear(x, weight, bias)

    monkeypatch.setattr("stillroom.training.precision.linear", counted)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 200), nn.GELU(), nn.Linear(200, 40, bias=False))
    few, many = torch.randn(2, 3, 96), torch.randn(2, 400, 96)

    def learnt(x: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        said = model(x)
        return [said, *torch.autograd.grad(said.square().sum(), [x, *model.parameters()])]

    plain = [learnt(few), learnt(many)]
    assert not asked
    with swift_layers(model, tiny_run.CONFIG):
        swift = [learnt(few), learnt(many)]
        assert [*map(len, asked)] == [3, 3, 2, 2, 2, 2]  # there by the row, back in the flat
        seen = len(asked)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(many).dtype == torch.bfloat16
        assert len(asked) == seen
        # Rows that share memory, and a frozen weight, for which its input is not kept.
        model[0].weight.requires_grad_(False)
        kept: list[Tensor] = []
        shared = torch.randn(96)[None].expand(800, 96).clone().requires_grad_()
        wide = torch.randn(800, 200)[None, :, :96].requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda value: kept.append(value) or value, lambda value: value
        ):
            model[0](shared), model[0](wide)
        assert [tuple(value.shape) for value in kept] == [(200, 96)] * 2
        model[0].weight.requires_grad_(True)
        row = torch.randn(1, 96)
        (of_weight,) = torch.autograd.grad(model[0](row.expand(800, 96)).sum(), [model[0].weight])
        torch.testing.assert_close(of_weight, 800 * row.expand(200, 96), rtol=1e-4, atol=1e-3)
    assert all("forward" not in vars(layer) for layer in model)
    for ones, others in zip(plain, swift, strict=True):
        for one, other in zip(ones, others, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-3)
    with swift_layers(model, replace(tiny_run.CONFIG, compile=True)):
        assert all("forward" not in vars(layer) for layer in model)


def test_compiling_what_is_computed_twice_is_refused() -> None:
    with pytest.raises(BadInputError, match="exclude each other"):
        replace(LEAN, compile=True)


def test_frozen_layers_are_left_as_they_are(lm: PreTrainedModel) -> None:
    lm.base_model.layers[0].requires_grad_(False)
    assert decoder_layers(lm) == [lm.base_model.layers[1]]


@pytest.mark.parametrize("option", ["compile", "checkpoint_activations"])
def test_a_model_without_such_layers_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(BadInputError, match="TinyModel has no language model layers"):
        tiny_run.run(tmp_path, config=replace(tiny_run.CONFIG, **{option: True}))


def test_bf16_trains_32_bit_weights_to_nearly_the_same(tmp_path: Path) -> None:
    losses = []
    for name in ("fp32", "bf16"):
        config = replace(tiny_run.CONFIG, precision=name)
        _, model, _ = tiny_run.run(tmp_path / name, config=config)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        losses.append([row["loss"] for row in read_log(tmp_path / name, kind="step")])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_what_a_step_computes_in_bf16_is_bf16(tmp_path: Path) -> None:
    model = tiny_run.make_model()
    seen = []
    model.depth.register_forward_hook(lambda module, given, said: seen.append(said.dtype))
    tiny_run.run(tmp_path, config=replace(tiny_run.CONFIG, steps=1, precision="bf16"), model=model)
    # The step and the evaluation after it.
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_a_device_without_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_precision("fp32", torch.device("meta"))
    check_precision("bf16", torch.device("cpu"))
    with pytest.raises(BadInputError, match=r"meta does not compute in bfloat16.*fp32"):
        check_precision("bf16", torch.device("meta"))
    # A card from before Ampere can only pretend to.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(BadInputError, match="cuda:0 does not compute in bfloat16"):
        check_precision("bf16", torch.device("cuda", 0))


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A part of a batch."""

    ids: Tensor
    length: int


def test_a_batch_moves_with_all_its_parts() -> None:
    batch = {
        "inner": Inner(ids=torch.zeros(2), length=2),
        "pair": (torch.zeros(1), "word"),
        "none": None,
    }
    assert moved(batch, torch.device("cpu")) is batch
    there = moved(batch, torch.device("meta"))
    assert there["inner"].ids.device.type == there["pair"][0].device.type == "meta"
    assert (there["inner"].length, there["pair"][1], there["none"]) == (2, "word", None)
    assert batch["inner"].ids.device.type == "cpu"
