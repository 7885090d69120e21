"""A student's folder to one with weights of 8 or 4 bits, by torchao's arithmetic."""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.export.folder import finished, write_record, written_whole
from stillroom.records import BadInputError
from stillroom.students.card import CARD_FILE, PROVENANCE_FILE
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.students.quantised import GROUP, Int4Linear, Int8Embedding, Int8Linear, Weights

logger = logging.getLogger(__name__)


def quantise(where: Path | str, out: Path, *, weights: Weights) -> dict[str, Any]:
    """Write the student of a folder or hub id to ``out`` with weights of so many bits.

    What is not quantised is written in bfloat16. Returns sizes on disk in bytes, before and after;
    of an export that is there already, its own.

    Raises:
        BadInputError: no student there, one that is quantised already, ``out`` is taken, or torchao
            is missing.
    """
    done = finished(where, out, weights)
    if done is not None:
        return done
    _require_torchao()
    student: StillroomStudent = StillroomStudent.from_pretrained(where, dtype=torch.float32)
    if student.config.weights != "full":
        raise BadInputError(
            f"{where} is a student of {student.config.weights} weights; quantise the one it was "
            "made of"
        )
    processor = StillroomProcessor.from_pretrained(where)
    with written_whole(out) as folder:
        quantised(student, weights).save_pretrained(folder)
        processor.save_pretrained(folder)
        for name in (PROVENANCE_FILE, CARD_FILE):
            if (Path(where) / name).is_file():
                shutil.copyfile(Path(where) / name, folder / name)
        before, after = _bytes(Path(where)), _bytes(folder)
        said = {"weights": weights, "bytes_before": before, "bytes": after}
        write_record(folder, where, weights, said)
    return said


@torch.no_grad()
def quantised(student: StillroomStudent, weights: Weights) -> StillroomStudent:
    """The same student with its weights in so many bits, the rest in bfloat16."""
    config = copy.deepcopy(student.config)
    config.weights = weights
    made: Any = StillroomStudent(config)
    made.to(torch.bfloat16)
    taken = set()
    for name, module in made.named_modules():
        if not isinstance(module, (Int8Linear, Int4Linear, Int8Embedding)):
            continue
        plain: Any = _counterpart(student, name, module)
        taken.add(id(plain.weight))
        if isinstance(module, Int4Linear):
            _fill_int4(module, plain.weight)
        else:
            _fill_int8(module, plain.weight)
        bias: Any = getattr(module, "bias", None)
        if bias is not None:
            bias.copy_(plain.bias)
            taken.add(id(plain.bias))
    rest = {name: p for name, p in student.named_parameters() if id(p) not in taken}
    for name, parameter in made.named_parameters():
        if name in rest:
            parameter.copy_(rest.pop(name))
    assert not rest, f"not carried over: {sorted(rest)[:3]}"
    finished: StillroomStudent = made.eval()
    return finished


def _counterpart(student: StillroomStudent, name: str, module: nn.Module) -> nn.Module:
    if isinstance(module, Int8Embedding):
        return student.get_input_embeddings()
    return student.get_submodule(name)


def _fill_int8(module: Int8Linear | Int8Embedding, weight: Tensor) -> None:
    """A scale a row, symmetric about 0."""
    numbers, scale, _ = _affine(weight, weight.shape[1], symmetric=True)
    module.weight_int8.copy_(numbers)
    module.weight_scale.copy_(scale.flatten())


def _fill_int4(module: Int4Linear, weight: Tensor) -> None:
    """A scale and a zero for each group of a row."""
    numbers, scale, zero = _affine(weight, GROUP, symmetric=False)
    module.weight_int4.copy_(numbers[:, 0::2] | (numbers[:, 1::2] << 4))
    module.weight_scale.copy_(scale)
    module.weight_zero.copy_(zero)


def _affine(weight: Tensor, group: int, *, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Whole numbers, scales and zeros of a matrix, ``[o i]`` and twice ``[o groups]``."""
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        quantize_affine,
    )

    kind = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
    dtype, low, high = (torch.int8, -127, 127) if symmetric else (torch.uint8, 0, 15)
    weight = weight.float()
    # In the precision that scales are stored in: the numbers are then the best for those.
    scale, zero = choose_qparams_affine(
        weight,
        kind,
        (1, group),
        dtype,
        low,
        high,
        scale_dtype=torch.bfloat16,
        zero_point_dtype=dtype,
    )
    scale, zero = scale.view(len(weight), -1), zero.view(len(weight), -1)
    numbers = quantize_affine(weight, (1, group), scale.float(), zero, dtype, low, high)
    return numbers, scale, zero


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _require_torchao() -> None:
    try:
        import torchao  # noqa: F401
    except ImportError:
        raise BadInputError("int8 and int4 need torchao: pip install 'stillroom[quant]'") from None
