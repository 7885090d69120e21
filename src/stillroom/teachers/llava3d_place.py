"""Where a LLaVA-3D computes and in which precision: quantised, offloaded, on a device.

Only the linear layers of the language model are quantised (6.5 of 7.1 G parameters of the 7B);
CLIP, the point encoders, the projector, embeddings and the head keep their precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stillroom.records import BadInputError
from stillroom.teachers.device import chosen_device
from stillroom.teachers.llava3d_model import LLaVA3D
from stillroom.teachers.options import TeacherOptions

#: Weights that share a scale in int4.
_INT4_GROUP = 128


def computing_dtype(options: TeacherOptions) -> torch.dtype | None:
    """Precision of all that is not quantised; None: as it is stored (see ``load_llava3d``)."""
    if options.dtype in ("float32", "bfloat16", "float16"):
        return getattr(torch, options.dtype)
    # torchao's int4 kernels read nothing else.
    return torch.bfloat16 if options.dtype == "int4" else None


def place(model: LLaVA3D, options: TeacherOptions) -> None:
    """Quantise a freshly loaded model if asked to, and bring it to its device or offload it.

    Raises:
        BadInputError: no such device, a missing package, or a precision that the device lacks.
    """
    device = chosen_device(options.device)
    if options.dtype in ("int8", "int4"):
        _QUANTIZERS[options.quantizer](model, options.dtype, device)
    if options.offload:
        _offload(model, device)
    else:
        # nn.Module.to, because transformers wraps it in a signature of its own.
        nn.Module.to(model, device)


def _offload(model: LLaVA3D, device: torch.device) -> None:
    """Weights stay in main memory; each layer's come to the device while it computes."""
    try:
        from accelerate import cpu_offload
    except ImportError:
        raise _needs("offload", "accelerate") from None
    model.computes_on = device
    cpu_offload(model, execution_device=device)


def _with_torchao(model: LLaVA3D, dtype: str, device: torch.device) -> None:
    if dtype == "int4" and device.type != "cuda":
        raise BadInputError("int4 needs a GPU; choose int8 with the quantizer torchao")
    try:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise _needs(dtype, "torchao") from None
    config: Any = Int8WeightOnlyConfig()
    if dtype == "int4":
        _check_int4(model)
        config = Int4WeightOnlyConfig(
            group_size=_INT4_GROUP, int4_packing_format="tile_packed_to_4d"
        )
    try:
        # Layer by layer to the device, so that it never holds the unquantised model.
        quantize_(model.model.layers, config, device=device)
    except ImportError as error:
        raise BadInputError(f"torchao cannot quantise to {dtype} here: {error}") from None


def _check_int4(model: LLaVA3D) -> None:
    for linear in (m for m in model.model.layers.modules() if isinstance(m, nn.Linear)):
        if linear.in_features % _INT4_GROUP:
            raise BadInputError(
                f"int4 groups {_INT4_GROUP} weights, but a layer reads {linear.in_features} "
                "features; choose int8"
            )


def _with_bitsandbytes(model: LLaVA3D, dtype: str, device: torch.device) -> None:
    if device.type != "cuda":
        raise BadInputError(
            f"{dtype} through bitsandbytes needs a GPU; choose int8 with the quantizer torchao"
        )
    try:
        import bitsandbytes
    except ImportError:
        raise _needs(f"{dtype} with bitsandbytes", "bitsandbytes") from None

    def quantised(linear: nn.Linear) -> nn.Module:
        sizes = (linear.in_features, linear.out_features)
        if dtype == "int8":
            made = bitsandbytes.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
        else:
            made = bitsandbytes.nn.Linear4bit(
                *sizes, bias=False, quant_type="nf4", compute_dtype=linear.weight.dtype
            )
        made.load_state_dict(linear.state_dict())
        # It is this move that quantises.
        return made.to(device).requires_grad_(False)

    _replace_linears(model.model.layers, quantised)


def _replace_linears(parent: nn.Module, change: Callable[[nn.Linear], nn.Module]) -> None:
    for name, child in parent.named_children():
        if isinstance(child, nn.Linear):
            setattr(parent, name, change(child))
        else:
            _replace_linears(child, change)


def _needs(what: str, package: str) -> BadInputError:
    return BadInputError(f"{what} needs {package}: pip install 'stillroom[teacher]'")


_QUANTIZERS: dict[str, Callable[[LLaVA3D, str, torch.device], None]] = {
    "torchao": _with_torchao,
    "bitsandbytes": _with_bitsandbytes,
}
