"""Linear layers for a CPU: weights once in the order in which its kernels read them.

oneDNN's kernels want a matrix in blocks. Left as PyTorch keeps it, it is put in order again at
every call; packed, a large matrix and a few tokens take 0.2 to 0.6 of the time (docs/speed.md).
A model that is copied, moved or cast has plain layers again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.cpu import can_pack, linear, packed_weight

#: A layer up to this size keeps its plain weight beside the packed one: a single token is faster
#: with it, and it can still be trained and saved. Larger ones are turned into packed ones.
KEPT_BYTES = 2 << 20
#: The largest layer of a decoder that is left alone.
SMALL_BYTES = 512 << 10
#: Up to so many rows, and weights of so many bytes, the plain kernel is the faster one in fp32.
FEW_ROWS, FEW_BYTES = 4, 384 << 10

_DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Linear):
    """A linear layer with a packed weight; where a gradient is kept it is the plain one."""

    _packed: Tensor
    _of: tuple[Any, ...]

    @property
    def up_to_date(self) -> bool:
        """Whether the packed weight is the layer's own."""
        return self.weight.is_mkldnn or self._of == identity(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        plain = not weight.is_mkldnn
        if plain and (torch.is_grad_enabled() or not self.up_to_date):
            return F.linear(x, weight, self.bias)
        if x.dtype != self._packed.dtype or not x.is_cpu:
            return self._unusual(x)
        if plain and plain_is_faster(x, weight):
            return F.linear(x, weight, self.bias)
        return linear(x, self._packed, self.bias)

    def _unusual(self, x: Tensor) -> Tensor:
        """Under autocast, or after the layer was moved or cast."""
        weight = self.weight
        return F.linear(x, weight.to_dense() if weight.is_mkldnn else weight, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or cast: the layer is a plain one from then on."""
        if self.weight.is_mkldnn:
            self.weight = nn.Parameter(self.weight.to_dense(), requires_grad=False)
        del self._packed, self._of
        self.__class__ = nn.Linear  # type: ignore[assignment]
        return nn.Linear._apply(self, fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """A copy is a plain layer: what is packed cannot be copied."""
        bare = {
            name: value for name, value in self.__dict__.items() if name not in ("_packed", "_of")
        }
        if self.weight.is_mkldnn:
            dense = nn.Parameter(self.weight.to_dense(), requires_grad=False)
            bare["_parameters"] = {**self._parameters, "weight": dense}
        made = nn.Linear.__new__(nn.Linear)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(bare, memo))
        return made

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.is_mkldnn:
            destination[prefix + "weight"] = self.weight.detach().to_dense()


def identity(weight: Any) -> tuple[Any, ...]:
    """What tells a weight from another one, or from itself before it was written to, moved or cast.

    Writes through ``weight.data`` cannot be told.
    """
    if not isinstance(weight, Tensor):
        return (id(weight),)
    place = 0 if weight.is_mkldnn else weight.data_ptr()
    return (id(weight), weight._version, weight.dtype, weight.device, place)


def plain_is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether a product this small is done sooner without packing."""
    few = x.numel() <= FEW_ROWS * x.shape[-1] and weight.nbytes <= FEW_BYTES
    return few and x.dtype == torch.float32


def pack(
    model: nn.Module, *, kept_bytes: int = KEPT_BYTES, decoder: nn.Module | None = None
) -> int:
    """Pack the linear layers of a model that only answers from now on; how many were packed.

    A ``decoder``, which reads a question's few tokens, is left as it is if all of its layers are
    small: packing gained nothing in the miniatures (docs/speed.md).

    Nothing happens off a CPU, to quantised or offloaded layers, or without oneDNN. The weight of a
    layer above ``kept_bytes`` is held packed alone, so that no memory is taken twice: it still
    counts and is saved, but cannot be trained or moved. A tied weight keeps its plain form.
    """
    if not can_pack():
        return 0
    shared = _tied(model)
    left = set() if decoder is None or not _is_small(decoder) else set(decoder.modules())
    layers: list[Any] = [
        module for module in model.modules() if module not in left and _can_be_packed(module)
    ]
    for layer in layers:
        weight = layer.weight
        layer.__class__ = PackedLinear
        layer._packed, layer._of = packed_weight(weight), identity(weight)
        if weight.nbytes > kept_bytes and id(weight) not in shared:
            layer.weight = nn.Parameter(layer._packed, requires_grad=False)
    return len(layers)


def pack_anew(model: nn.Module) -> None:
    """Pack layers that keep their plain weight again, whatever they say of themselves."""
    for layer in model.modules():
        if type(layer) is PackedLinear and not layer.weight.is_mkldnn:
            layer._packed, layer._of = packed_weight(layer.weight), identity(layer.weight)


def is_plain(module: nn.Module) -> bool:
    """A linear layer whose weight is an ordinary tensor in its place, packed beside it or not."""
    return (
        type(module) in (nn.Linear, PackedLinear)
        and type(module.weight) is nn.Parameter
        and not module.weight.is_mkldnn
        and not hasattr(module, "_hf_hook")
    )


def _can_be_packed(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or not is_plain(module):
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype in _DTYPES and weight.numel() > 0


def _is_small(decoder: nn.Module) -> bool:
    layers: list[Any] = [one for one in decoder.modules() if _can_be_packed(one)]
    return max((layer.weight.nbytes for layer in layers), default=0) <= SMALL_BYTES


def _tied(model: nn.Module) -> set[int]:
    """Weights that stand in more than one module: another one reads their rows."""
    seen: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    return {one for one, count in seen.items() if count > 1}
