"""A student whose weights are whole numbers of 8 or 4 bits, with a scale for each row or group.

Weights alone are quantised: every product is computed in the precision of its input. The modules
here take the place of linear layers and of the token embedding; their tensors are ordinary ones, so
that a quantised student is saved and loaded like any other. ``export/quantise.py`` fills them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from stillroom.engine.packed import identity

Weights = Literal["full", "int8", "int4"]

#: Weights that share a scale and a zero in 4 bits. In 8 bits a row shares one, its zero is 0.
GROUP = 32
#: Rows up to which the kernels for few rows are used; for more the weight is unfolded first.
FEW_ROWS = 64
_HALF = (torch.bfloat16, torch.float16)


class Int8Linear(nn.Module):
    """A linear layer of 8 bits: ``weight_int8 [out in]`` times ``weight_scale [out]``."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight_int8 = _buffer(self, "weight_int8", (out_features, in_features), torch.int8)
        self.weight_scale = _scale(out_features)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    def unfolded(self, dtype: torch.dtype) -> Float[Tensor, "o i"]:
        """The weight as numbers that can be multiplied with."""
        return self.weight_int8.to(dtype) * self.weight_scale.to(dtype)[:, None]

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """As a linear layer."""
        return _product(x, self.weight_int8, self.weight_scale, self.unfolded, self.bias)


class Int8Embedding(nn.Module):
    """A table of 8 bits: row ``weight_int8[id]`` times ``weight_scale[id]``."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, width
        self.weight_int8 = _buffer(self, "weight_int8", (rows, width), torch.int8)
        self.weight_scale = _scale(rows)

    def unfolded(self, dtype: torch.dtype) -> Float[Tensor, "r d"]:
        """The table as numbers that can be multiplied with."""
        return self.weight_int8.to(dtype) * self.weight_scale.to(dtype)[:, None]

    def forward(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """The rows of these ids."""
        scale = self.weight_scale[ids]
        return self.weight_int8[ids].to(scale.dtype) * scale[..., None]


class TiedHead(nn.Module):
    """The output matrix that is the table of embeddings; it holds nothing of its own."""

    def __init__(self, table: Int8Embedding) -> None:
        super().__init__()
        # Not a submodule: the table is saved once, with the embedding.
        self._table = (table,)
        self.out_features = table.num_embeddings

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """Logits."""
        (table,) = self._table
        return _product(x, table.weight_int8, table.weight_scale, table.unfolded, None)


class Int4Linear(nn.Module):
    """A linear layer of 4 bits, two in a byte, low half first; groups of ``GROUP`` along the input.

    A number q of a group stands for ``(q - zero) * scale``.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        groups = (out_features, in_features // GROUP)
        halves = (out_features, in_features // 2)
        self.weight_int4 = _buffer(self, "weight_int4", halves, torch.uint8)
        self.weight_scale = _scale(*groups)
        self.weight_zero = _buffer(self, "weight_zero", groups, torch.uint8)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None
        #: What the kernel reads, made when the layer is packed (``pack``), and of which weights.
        self._packed: tuple[Tensor, Tensor] | None = None
        self._of: list[tuple[Any, ...]] = []

    @property
    def numbers(self) -> UInt8[Tensor, "o i"]:
        """0 to 15, one by one."""
        return torch.stack([self.weight_int4 & 15, self.weight_int4 >> 4], dim=-1).flatten(1)

    def unfolded(self, dtype: torch.dtype) -> Float[Tensor, "o i"]:
        """The weight as numbers that can be multiplied with."""
        numbers = self.numbers.view(self.out_features, -1, GROUP).to(dtype)
        centred = numbers - self.weight_zero.to(dtype)[..., None]
        return (centred * self.weight_scale.to(dtype)[..., None]).flatten(1)

    def pack(self) -> None:
        """Keep the numbers a second time, in the order of the CPU's kernel for few rows."""
        scale = self.weight_scale.detach().float()
        # The kernel computes (q - 8) * scale + shift.
        both = torch.stack([scale, (8 - self.weight_zero.float()) * scale], dim=-1)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(self.numbers.int(), 1)
        self._packed = (packed, both.transpose(0, 1).contiguous().to(torch.bfloat16))
        self._of = self._now()

    def _now(self) -> list[tuple[Any, ...]]:
        return [identity(one) for one in (self.weight_int4, self.weight_scale, self.weight_zero)]

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """As a linear layer."""
        flat = x.reshape(-1, x.shape[-1])
        few = x.dtype == torch.bfloat16 and len(flat) <= FEW_ROWS
        # After a move or another checkpoint the packed numbers are no longer the layer's.
        if few and self._packed is not None and self._of == self._now():
            numbers, scales = self._packed
            said = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, numbers, GROUP, scales)
            said = said if self.bias is None else said + self.bias
            return said.view(*x.shape[:-1], -1)
        return F.linear(x, self.unfolded(x.dtype), self.bias)


def _product(
    x: Tensor, numbers: Tensor, scale: Tensor, unfolded: Any, bias: Tensor | None
) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    few = len(flat) <= FEW_ROWS and x.device.type == "cpu" and x.dtype in _HALF
    if few and not x.shape[-1] % 32 and not len(numbers) % 32:
        said = torch.ops.aten._weight_int8pack_mm(flat, numbers, scale.to(x.dtype))
        said = said if bias is None else said + bias
        return said.view(*x.shape[:-1], -1)
    return F.linear(x, unfolded(x.dtype), bias)


def _scale(*shape: int) -> nn.Parameter:
    """A parameter, so that it has the precision that the model computes in."""
    return nn.Parameter(torch.zeros(shape), requires_grad=False)


def _buffer(module: nn.Module, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    module.register_buffer(name, torch.zeros(shape, dtype=dtype))
    return module.get_buffer(name)


# A whole student. ---------------------------------------------------------------------------------


def quantised_layers(student: Any, weights: Weights) -> Iterator[tuple[str, nn.Linear, int]]:
    """Name, layer and bits of every linear layer that is quantised.

    In 4 bits are the layers of the language model; those of the encoder, whose few special tokens
    carry extreme values (specs/vggt.md, section 6), and all output matrices keep 8. Connector and
    heads, a few percent of the whole, stay as they are.
    """
    base = student.language_model.base_model
    inner = {id(module) for layer in base.layers for module in layer.modules()}
    for name, module in student.named_modules():
        if type(module) is not nn.Linear:
            continue
        if id(module) in inner:
            fits = module.in_features % GROUP == 0 and module.out_features % GROUP == 0
            yield name, module, 4 if weights == "int4" and fits else 8
        elif name.startswith(student.encoder_trunk):
            yield name, module, 8


def quantise_structure(student: Any, weights: Weights) -> None:
    """Put empty quantised modules in the places of those that they stand for."""
    for name, layer, bits in list(quantised_layers(student, weights)):
        kind = Int4Linear if bits == 4 else Int8Linear
        made = kind(layer.in_features, layer.out_features, bias=layer.bias is not None)
        student.set_submodule(name, made)
    table = student.get_input_embeddings()
    head = student.get_output_embeddings()
    words = Int8Embedding(table.num_embeddings, table.embedding_dim)
    student.set_input_embeddings(words)
    if student.config.tie_word_embeddings:
        student.set_output_embeddings(TiedHead(words))
        # What is tied is one object here: transformers has nothing left to tie.
        for model in (student, student.language_model):
            model._tied_weights_keys, model.all_tied_weights_keys = {}, {}
    else:
        outputs = Int8Linear(head.in_features, head.out_features, bias=head.bias is not None)
        student.set_output_embeddings(outputs)


def weights_of(module: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Every tensor that holds weights, and how many numbers it stands for: none of a scale.

    The numbers are those that ``registry.count_parameters`` finds in a checkpoint.
    """
    module = module._table[0] if isinstance(module, TiedHead) else module
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        leaf = name.rpartition(".")[2]
        if leaf in ("weight_scale", "weight_zero"):
            yield tensor, 0
        elif leaf == "weight_int4":
            yield tensor, 2 * tensor.numel()
        elif leaf == "weight_int8" or isinstance(tensor, nn.Parameter):
            yield tensor, tensor.numel()


def pack_quantised(model: nn.Module) -> None:
    """Let 4-bit layers of a model that answers on a CPU be read by its kernel."""
    for module in model.modules():
        if isinstance(module, Int4Linear) and module.weight_int4.device.type == "cpu":
            module.pack()
