"""What a CPU does sooner by another way is the same thing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stillroom import cpu


@pytest.mark.parametrize(
    ("queries", "keys", "by_products"),
    [(69, 69, True), (16, 1638, True), (15, 69, False), (16, 1639, False)],
)
def test_attention_of_few_tokens_is_attention(
    queries: int, keys: int, by_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a joined projection gives them: no tensor of its own, heads between tokens.
    q = torch.randn(2, queries, 3, 5, 16)[:, :, 0].transpose(1, 2)
    k, v = torch.randn(2, keys, 2, 5, 16).permute(2, 0, 3, 1, 4)
    right = F.scaled_dot_product_attention(q, k, v)
    whole: list[int] = []
    theirs = F.scaled_dot_product_attention

    def counted(*parts: torch.Tensor) -> torch.Tensor:
        whole.append(1)
        return theirs(*parts)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        said = cpu.attend(q, k, v)
    torch.testing.assert_close(said, right, atol=2e-6, rtol=1e-5)
    assert bool(whole) is not by_products


def test_training_and_half_precision_take_pytorchs_own_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q = torch.randn(1, 2, 20, 8)
    monkeypatch.setattr(torch, "bmm", None)
    assert cpu.attend(q, q, q).shape == q.shape
    with torch.no_grad():
        half = q.bfloat16()
        assert cpu.attend(half, half, half).dtype == torch.bfloat16
