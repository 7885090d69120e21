"""Where a batch lies, how finely it is computed with, and what of a model's layers is kept."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from stillroom.cpu import is_large, linear
from stillroom.records import BadInputError
from stillroom.training.config import TrainConfig

T = TypeVar("T")


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse, with a BadInputError, what the device cannot compute in."""
    if precision == "fp32":
        return
    able = torch.amp.is_autocast_available(device.type)
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    if not able:
        raise BadInputError(
            f"{device} does not compute in bfloat16; set --train.precision fp32, or --train.device"
        )


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Around a forward pass: matrices are multiplied in this precision. Counts for one thread."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def moved(batch: T, device: torch.device) -> T:
    """A batch on a device: its tensors, also within data classes, mappings, tuples and lists."""
    if device.type == "cpu":
        return batch
    return _moved(batch, device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _moved(getattr(value, f.name), device) for f in fields(value) if f.init}
        return replace(value, **parts)
    if isinstance(value, Mapping):
        return {name: _moved(inner, device) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_moved(inner, device) for inner in value)
    return value


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The trainable transformer layers that ``transformers`` itself would compute twice."""
    # A model that has such layers has imported their class.
    known = sys.modules.get("transformers.modeling_layers")
    if known is None:
        return []
    return [
        module
        for module in model.modules()
        if isinstance(module, known.GradientCheckpointingLayer)
        and any(parameter.requires_grad for parameter in module.parameters())
    ]


@contextmanager
def lean_layers(model: nn.Module, config: TrainConfig) -> Iterator[None]:
    """Layers that are compiled, or computed again on the way back, as long as this lasts.

    ``transformers`` has a switch for the latter, but it takes away the cache through which
    questions read their scene. A cache must come out the same when a layer enters it twice.

    Raises:
        BadInputError: the model has no such layers.
    """
    wanted = config.checkpoint_activations or config.compile
    layers = decoder_layers(model) if wanted else []
    if wanted and not layers:
        raise BadInputError(
            f"{type(model).__name__} has no language model layers to compile or to compute again; "
            "leave out --train.checkpoint-activations and --train.compile"
        )
    for layer in layers:
        run = layer.forward
        # Within the layer's __call__ and its hooks, where FSDP has gathered the weights.
        layer.forward = (  # type: ignore[method-assign]
            torch.compile(run) if config.compile else functools.partial(_twice, run)
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def swift_layers(model: nn.Module, config: TrainConfig) -> Iterator[None]:
    """Linear layers that ask oneDNN for large products on a CPU, as long as this lasts.

    Layers that are compiled, cut by FSDP or computed in bfloat16 stay with PyTorch.
    """
    layers: list[Any] = [
        module
        for module in (() if config.compile else model.modules())
        if type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and not {"forward", "_hf_hook"} & vars(module).keys()
    ]
    for layer in layers:
        layer.forward = functools.partial(_multiplied, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _multiplied(layer: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    if is_large(x, weight) and not torch.is_autocast_enabled("cpu"):
        said: Tensor = _OneDnnLinear.apply(x, weight, bias)
        return said
    return F.linear(x, weight, bias)


class _OneDnnLinear(torch.autograd.Function):
    """``F.linear`` by oneDNN, both ways; it keeps what the gradients that are wanted need."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        ctx.shape = x.shape
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        of_x = of_weight = of_bias = None
        if weight is not None:
            of_x = linear(grad, weight.t(), None).view(ctx.shape)
        if x is not None:
            rows = x.reshape(-1, x.shape[-1]).contiguous()
            of_weight = linear(grad.t(), rows.t(), None)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum(dim=0)
        return of_x, of_weight, of_bias


def two_ways_back() -> AbstractContextManager[Any]:
    """Around a training with ``Sheltered`` parameters: what layers compiled in it keep for the way
    back is there for a second one."""
    patched: AbstractContextManager[Any] = torch._functorch.config.patch(donated_buffer=False)
    return patched


def _twice(run: Any, *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return run(*inputs, **options)
    return checkpoint(run, *inputs, use_reentrant=False, **options)
