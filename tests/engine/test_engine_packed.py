"""Packed linear layers compute what plain ones do, and stay what they were to everybody else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stillroom.cpu import can_pack
from stillroom.engine.packed import PackedLinear, is_plain, pack, pack_anew

needs_packing = pytest.mark.skipif(not can_pack(), reason="this PyTorch has no oneDNN")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.inner = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.embed(ids)))


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_packed_layers_say_what_plain_ones_say(
    dtype: torch.dtype, kept_bytes: int, rows: int
) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(24, 64), nn.GELU(), nn.Linear(64, 24, bias=False)).to(dtype)
    x = torch.randn(2, rows, 24, dtype=dtype)
    with torch.no_grad():
        expected = layers(x)
        assert pack(layers, kept_bytes=kept_bytes) == 2
        torch.testing.assert_close(layers(x), expected)


@needs_packing
def test_large_weights_are_held_once_count_and_are_saved_as_they_were() -> None:
    layers = nn.Sequential(nn.Linear(24, 64), nn.Linear(64, 24))
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    count = sum(p.numel() for p in layers.parameters())
    pack(layers, kept_bytes=0)
    assert all(layer.weight.is_mkldnn for layer in layers)
    assert sum(p.numel() for p in layers.parameters()) == count
    after = layers.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@needs_packing
def test_a_tied_weight_keeps_its_rows() -> None:
    model = Tied()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = model(ids)
        pack(model, kept_bytes=0)
        torch.testing.assert_close(model(ids), expected)
    assert model.head.weight is model.embed.weight
    assert not model.embed.weight.is_mkldnn
    assert model.inner.weight.is_mkldnn


@needs_packing
def test_a_packed_layer_can_still_be_trained_and_then_uses_its_new_weight() -> None:
    layer = nn.Linear(8, 8)
    x = torch.randn(5, 8)
    pack(layer)
    assert type(layer) is PackedLinear
    layer(x).square().mean().backward()
    assert layer.weight.grad is not None
    torch.optim.SGD(layer.parameters(), lr=1.0).step()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)


@needs_packing
@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
def test_autocast_and_casts_still_work(kept_bytes: int) -> None:
    layer = nn.Linear(16, 16)
    x = torch.randn(5, 16)
    with torch.no_grad():
        expected = layer(x)
        pack(layer, kept_bytes=kept_bytes)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(layer(x).float(), expected, atol=0.05, rtol=0.05)
        layer.to(torch.bfloat16)
        torch.testing.assert_close(layer(x.bfloat16()).float(), expected, atol=0.05, rtol=0.05)
        assert type(layer) is nn.Linear
        assert layer.weight.dtype == torch.bfloat16


@needs_packing
@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
def test_a_copy_is_plain_and_the_original_stays_packed(kept_bytes: int) -> None:
    model = Tied()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = model(ids)
        pack(model, kept_bytes=kept_bytes)
        copied = copy.deepcopy(model)
        torch.testing.assert_close(copied(ids), expected)
        copied.inner.weight.zero_()
        torch.testing.assert_close(model(ids), expected)
    assert type(copied.inner) is nn.Linear
    assert copied.head.weight is copied.embed.weight
    assert type(model.inner) is PackedLinear


@needs_packing
def test_a_weight_that_was_exchanged_is_noticed_and_one_written_behind_its_back_on_demand() -> None:
    layer = nn.Linear(8, 8, bias=False)
    x = torch.randn(5, 8)
    with torch.no_grad():
        pack(layer)
        layer.weight.data = torch.ones(8, 8)
        torch.testing.assert_close(layer(x), x @ torch.ones(8, 8))
        assert not layer.up_to_date
        pack_anew(layer)
        assert layer.up_to_date
        layer.weight.data.fill_(2.0)  # which PyTorch does not count
        pack_anew(layer)
        torch.testing.assert_close(layer(x), x @ torch.full((8, 8), 2.0))


@needs_packing
def test_a_decoder_of_small_layers_is_left_alone() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(16, 16), "decoder": nn.Linear(16, 16)})
    assert pack(model, decoder=model["decoder"]) == 1
    assert type(model["decoder"]) is nn.Linear
    assert type(model["encoder"]) is PackedLinear
    larger = nn.Sequential(nn.Linear(16, 16), nn.Linear(512, 512))
    assert pack(nn.ModuleList([larger]), decoder=larger) == 2


def test_what_is_no_plain_linear_layer_is_left_alone() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(Own(4, 4), nn.Conv2d(1, 1, 1), nn.Linear(4, 4).to(torch.float64))
    assert pack(model) == 0
    assert not is_plain(model[0])
    assert pack(nn.Linear(4, 4, device="meta")) == 0
