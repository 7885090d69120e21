"""Low-rank updates of a student's pretrained language model, through peft."""

from __future__ import annotations

from typing import Any

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


def merge_lora(student: StillroomStudent) -> None:
    """Add the updates to the weights they stand beside and take peft's layers out, in place."""
    lm: Any = student.language_model
    for name, module in list(lm.named_modules()):
        if hasattr(module, "base_layer") and hasattr(module, "merge"):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(lm.get_submodule(parent), child, module.get_base_layer())
