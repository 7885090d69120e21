"""How many parameters each part of a student has, counted without allocating any."""

from __future__ import annotations

import torch
from torch import nn

from stillroom.students.config import StillroomConfig
from stillroom.students.model import StillroomStudent

#: Heads that only some students have.
OPTIONAL = ("measures", "detector", "relations", "feature_projector")


def parameter_table(config: StillroomConfig) -> dict[str, int]:
    """Parameters by part, and ``total``; counted on the meta device, nothing is allocated."""
    with torch.device("meta"):
        student = StillroomStudent(config)
    table = {"language_model": _count(student.language_model)}
    table |= {name: _count(part) for name, part in student.encoder.named_children()}
    table |= {
        "projector": _count(student.connector.projector),
        "depth_code": _count(student.connector.depth_code),
        "slots": _count(student.slots),
        "depth_bins": _count(student.depth_bins),
        "mention_boxes": _count(student.mention_boxes),
    }
    optional = {name: getattr(student, name) for name in OPTIONAL}
    table |= {name: _count(head) for name, head in optional.items() if head is not None}
    table["total"] = _count(student)
    return table


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
