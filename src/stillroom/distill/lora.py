"""Low-rank updates of a student's pretrained language model, through peft."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.distill.config import LoraConfig
from stillroom.records import BadInputError
from stillroom.students.model import StillroomStudent


def add_lora(student: StillroomStudent, config: LoraConfig) -> None:
    """Freeze the language model and put updates of rank ``config.rank`` beside its matrices.

    Every linear layer of the decoder gets one; embeddings and output do not. An update begins at
    zero, so that the student says at first what it said before.

    Raises:
        BadInputError: peft is not installed.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError:
        raise BadInputError(
            "lora.rank needs peft: pip install 'stillroom[lora]', or set lora.rank 0 to train the "
            "whole language model"
        ) from None
    settings = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        # Leaves the output matrix out, which "all-linear" alone would take in.
        task_type="CAUSAL_LM",
    )
    lm: Any = student.language_model
    lm.requires_grad_(False)
    inject_adapter_in_model(settings, lm)


def merged_state(student: StillroomStudent) -> dict[str, Tensor]:
    """The student's weights by the names they have without peft, updates added in.

    Nothing of the student changes; weights without an update are not copied.
    """
    state: dict[str, Tensor] = student.state_dict()
    for name, module in student.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        layer: Any = module
        for key in [key for key in state if key.startswith(f"{name}.lora_")]:
            del state[key]
        for key in [key for key in state if key.startswith(f"{name}.base_layer.")]:
            state[key.replace(".base_layer.", ".")] = state.pop(key)
        with torch.no_grad():
            for adapter in layer.active_adapters:
                update = layer.get_delta_weight(adapter)
                state[f"{name}.weight"] = state[f"{name}.weight"] + update
    return state
