"""How large a student is, part by part, before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from stillroom.students.config import StillroomConfig
from stillroom.students.model import StillroomStudent


def count_parameters(part: nn.Module) -> int:
    """Numbers that a part holds; a tied one counts once."""
    return sum(parameter.numel() for parameter in part.parameters())


def weight_bytes(part: nn.Module) -> int:
    """Bytes that a part's checkpoint takes: 2 for what is a number, 1 for quantised ones."""
    held = part.state_dict(keep_vars=True).values()
    different = {id(tensor): tensor for tensor in held}.values()
    return sum(t.numel() * (2 if t.is_floating_point() else 1) for t in different)


def parameter_table(
    config: StillroomConfig, *, size_of: Callable[[nn.Module], int] = count_parameters
) -> dict[str, int]:
    """Parameters by part, and ``total``; counted on the meta device.

    A VGGT and the connector are shown by their own parts. ``size_of`` may count something
    else than parameters, bytes for instance.
    """
    with torch.device("meta"):
        student = StillroomStudent(config)
    table = {"language_model": size_of(student.language_model)}
    for name, part in student.named_children():
        if name in ("encoder", "connector") and not list(part.parameters(recurse=False)):
            table |= {child: size_of(module) for child, module in part.named_children()}
        elif name != "language_model":
            table[name] = size_of(part)
    table["total"] = size_of(student)
    return table
