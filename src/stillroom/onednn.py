"""What oneDNN multiplies on a CPU: matrices in its own order, and large ones in PyTorch's."""

from __future__ import annotations

import torch
from torch import Tensor

#: From so many products on oneDNN is the faster one for a weight that is not packed, too.
MANY_PRODUCTS = 2 << 20


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
