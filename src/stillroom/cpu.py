"""What a CPU does sooner than by PyTorch's own choice: large products, attention of few tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

#: From so many products on oneDNN is the faster one for a weight that is not packed, too.
MANY_PRODUCTS = 2 << 20
#: Up to so many scores attention by two products is the sooner one, where no gradient is kept: more
#: take fresh memory that costs more than it saves. A query or two alone are not worth three calls.
FEW_SCORES, ENOUGH_QUERIES = 1 << 18, 16


def can_pack() -> bool:
    """Whether this PyTorch has oneDNN's packed kernels."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


#: Whether there is oneDNN to ask in place of MKL.
ASKS_MKL = can_pack() and torch.backends.mkl.is_available()


def linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` by oneDNN, with a packed weight or a plain one."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")  # type: ignore[no-any-return]


def is_large(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies these sooner than PyTorch, though the weight is not packed.

    PyTorch asks MKL for float32, which on the AMD machine that this was measured on has half of
    oneDNN's speed (docs/speed.md).
    """
    return (
        not torch.compiler.is_compiling()
        and x.numel() * weight.shape[0] >= MANY_PRODUCTS
        and x.dtype == weight.dtype == torch.float32
        and x.is_cpu
        and ASKS_MKL
        and bool(torch.backends.mkldnn.enabled)
    )


def packed_weight(weight: Tensor) -> Tensor:
    """A weight in oneDNN's order."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())  # type: ignore[no-any-return]


def attend(
    q: Float[Tensor, "n heads t d"],
    k: Float[Tensor, "n heads l d"],
    v: Float[Tensor, "n heads l d"],
) -> Float[Tensor, "n heads t d"]:
    """``F.scaled_dot_product_attention``; among few tokens by two products.

    PyTorch's cuts queries and keys into blocks for rows that do not fit a cache. Where they do,
    that takes up to twice as long (docs/speed.md).
    """
    if (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or not q.is_cpu
        or q.dtype != torch.float32
        or q.shape[2] < ENOUGH_QUERIES
        or q.shape[:3].numel() * k.shape[2] > FEW_SCORES
    ):
        return F.scaled_dot_product_attention(q, k, v)
    queries, keys, values = (part.flatten(0, 1) for part in (q, k, v))
    scores = torch.bmm(queries * q.shape[3] ** -0.5, keys.mT)
    return torch.bmm(scores.softmax(dim=-1), values).unflatten(0, q.shape[:2])
