"""A student put together from a recipe: the frozen encoder from its checkpoint, the rest fresh."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from stillroom.distill.config import DistillConfig, StudentSizes
from stillroom.engine.initial import begin_copying, match_queries
from stillroom.records import BadInputError
from stillroom.scenes.rooms import CATEGORIES
from stillroom.students.config import StillroomConfig, neox_config
from stillroom.students.encoders.vggt import VGGTConfig
from stillroom.students.encoders.vggt_load import load_vggt
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.teachers.measures import MEASURES
from stillroom.text.tokenizer import load_tokenizer

#: All a student keeps of an encoder's heads: it reads patch tokens and its own depth.
KEPT_HEADS = ("depth_head",)


def student_config(
    config: DistillConfig,
    encoder: VGGTConfig,
    language_model: Path | str = "",
    *,
    feature_width: int = 0,
) -> StillroomConfig:
    """The transformers config of the student that a recipe describes.

    ``language_model`` is where ``config.language_model`` lies; ``feature_width`` is that of the
    teacher's features, 0 where there are none.
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
        mention_level=size.mention_level,
        measure_level=size.measure_level,
        **_heads(config, feature_width),
    )


def _heads(config: DistillConfig, feature_width: int) -> dict[str, Any]:
    """Settings of the heads that the losses ask for; one that nothing trains is not made."""
    size, losses, found = config.student, config.losses, dict[str, Any]()
    if losses.measures:
        found["measures"] = len(MEASURES)
    if losses.detection:
        found |= {
            "detection_queries": size.detection_queries,
            "detection_width": size.detection_width,
            "detection_layers": size.detection_layers,
            "detection_kinds": list(CATEGORIES),
        }
    if losses.spatial:
        found["relation_width"] = size.relation_width
    if losses.spatial or losses.feature:
        found["feature_width"] = feature_width
    return found


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
    config: DistillConfig,
    encoder: Path | str,
    language_model: Path | str = "",
    *,
    feature_width: int = 0,
) -> tuple[StillroomStudent, StillroomProcessor]:
    """A student ready to be trained, drawn from the recipe's seed.

    ``encoder`` and ``language_model`` are where those of the recipe lie. A student to go on from
    gets the heads that the losses ask for and it lacks. ``feature_width`` as in ``student_config``.

    Raises:
        BadInputError: no such encoder or language model, or ``start_from`` is no student's
            checkpoint.
    """
    if config.start_from:
        student = StillroomStudent.from_pretrained(config.start_from, dtype=torch.float32)
        student = _with_heads(student, _heads(config, feature_width), config.train.seed)
        return student, StillroomProcessor.from_pretrained(config.start_from)
    vggt = load_vggt(encoder, heads=KEPT_HEADS)
    built = student_config(config, vggt.config, language_model, feature_width=feature_width)
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


def _with_heads(student: StillroomStudent, heads: dict[str, Any], seed: int) -> StillroomStudent:
    """The same student with heads it lacks, fresh; those it has stay as they were trained."""
    mine, width = student.config, heads.get("feature_width", 0)
    if width and mine.feature_width not in (0, width):
        raise BadInputError(
            f"the student to go on from was taught by features {mine.feature_width} wide, these "
            f"labels have {width}; start from scratch, or label with the same teacher"
        )
    if 0 < mine.detection_queries < heads.get("detection_queries", 0):
        raise BadInputError(
            f"the student to go on from has {mine.detection_queries} detection_queries, the recipe "
            f"{heads['detection_queries']}: it could not find that many things; ask for at most "
            f"--student.detection-queries {mine.detection_queries}"
        )
    wanted = copy.deepcopy(mine)
    for switch in ("measures", "detection_queries", "relation_width", "feature_width"):
        if heads.get(switch) and not getattr(mine, switch):
            kind = switch.split("_")[0]
            for name in (name for name in heads if name.startswith(kind)):
                setattr(wanted, name, heads[name])
    if wanted.to_dict() == mine.to_dict():
        return student
    torch.manual_seed(seed)
    grown = StillroomStudent(wanted)
    loaded = grown.load_state_dict(student.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    return grown
