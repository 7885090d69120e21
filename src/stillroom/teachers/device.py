"""Where a teacher computes."""

from __future__ import annotations

import torch

from stillroom.records import BadInputError
from stillroom.teachers.options import Device


def chosen_device(wanted: Device) -> torch.device:
    """The device of that name; auto is the GPU if there is one.

    Raises:
        BadInputError: a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BadInputError("device cuda is asked for, but torch sees no GPU; choose cpu or auto")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)
