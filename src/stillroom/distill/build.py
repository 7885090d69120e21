"""A student put together from a recipe: the frozen encoder from its checkpoint, the rest fresh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from stillroom.distill.config import DistillConfig, StudentSizes
from stillroom.engine.initial import begin_copying, match_queries
from stillroom.records import BadInputError
from stillroom.students.config import StillroomConfig, neox_config
from stillroom.students.encoders.vggt import VGGTConfig
from stillroom.students.encoders.vggt_load import load_vggt
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.text.tokenizer import load_tokenizer

#: All a student keeps of an encoder's heads: it reads patch tokens and its own depth.
KEPT_HEADS = ("depth_head",)


def student_config(
    config: DistillConfig, encoder: VGGTConfig, language_model: Path | str = ""
) -> StillroomConfig:
    """The transformers config of the student that a recipe describes.

    ``language_model`` is where ``config.language_model`` lies.
    """
    size = config.student
    return StillroomConfig(
        encoder=encoder.to_dict(),
        text_config=_language_config(language_model, size)
        if language_model
        else language_config(size),
        vision_grid=size.vision_grid,
        slot_kind=config.slots.kind,
        slot_count=config.slots.used,
        slot_position=config.slots.position,
        visibility=config.mask,
        image_size=encoder.image_size,
        max_views=size.max_views,
        blind=not config.vision,
    )


def _language_config(where: Path | str, sizes: StudentSizes) -> PretrainedConfig:
    found: PretrainedConfig = _opened(AutoConfig.from_pretrained, where)
    # Its weights may be stored in half precision; training wants them whole.
    found.dtype = torch.float32
    words, known = load_tokenizer().vocab_size, getattr(found, "vocab_size", None)
    if known != words:
        raise BadInputError(
            f"{where} knows {known} tokens, the made worlds' tokenizer has {words}; name a "
            "language model that was trained on it"
        )
    wanted = language_config(sizes).to_dict()
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if getattr(found, name, None) != wanted[name]:
            raise BadInputError(
                f"the recipe's student has {name} {wanted[name]}, the language model {where} has "
                f"{getattr(found, name, None)}; change --student, or start from scratch with "
                "--language-model ''"
            )
    return found


def language_config(sizes: StudentSizes) -> PretrainedConfig:
    """The language model of a student from scratch, over the made worlds' tokenizer."""
    return neox_config(
        hidden_size=sizes.hidden_size,
        layers=sizes.layers,
        heads=sizes.heads,
        intermediate_size=sizes.intermediate_size,
        vocab_size=load_tokenizer().vocab_size,
        tie_embeddings=sizes.tie_embeddings,
        rotary_share=sizes.rotary_share,
        rope_theta=sizes.rope_theta,
    )


def _opened(open_it: Callable[..., Any], where: Path | str, **options: Any) -> Any:
    try:
        return open_it(where, **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInputError(f"{where} is no language model's checkpoint: {reason}") from None


def build_student(
    config: DistillConfig, encoder: Path | str, language_model: Path | str = ""
) -> tuple[StillroomStudent, StillroomProcessor]:
    """A student ready to be trained, drawn from the recipe's seed.

    ``encoder`` and ``language_model`` are where those of the recipe lie.

    Raises:
        BadInputError: no such encoder or language model, or ``start_from`` is no student's
            checkpoint.
    """
    if config.start_from:
        student = StillroomStudent.from_pretrained(config.start_from, dtype=torch.float32)
        return student, StillroomProcessor.from_pretrained(config.start_from)
    vggt = load_vggt(encoder, heads=KEPT_HEADS)
    built = student_config(config, vggt.config, language_model)
    torch.manual_seed(config.train.seed)
    student = StillroomStudent(built)
    if language_model:
        spoken = _opened(AutoModelForCausalLM.from_pretrained, language_model, dtype=torch.float32)
        student.language_model.load_state_dict(spoken.state_dict())
    else:
        match_queries(student.language_model)
        if config.student.rotary_share == 1.0:
            begin_copying(student.language_model)
    student.encoder.load_state_dict(vggt.state_dict())
    return student, StillroomProcessor(image_size=built.image_size, max_views=built.max_views)
