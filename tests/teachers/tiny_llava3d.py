"""A LLaVA-3D small enough for every test."""

from __future__ import annotations

import torch

from stillroom.teachers.llava3d import LLaVA3DTeacher
from stillroom.teachers.llava3d_config import ClipSize, LLaVA3DConfig
from stillroom.teachers.llava3d_model import LLaVA3D
from stillroom.teachers.options import TeacherOptions
from stillroom.text.tokenizer import load_tokenizer

CONFIG = LLaVA3DConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=1024,
    max_position_embeddings=512,
    mm_vision_tower="",
    clip=ClipSize(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=28,
        patch_size=7,
    ),
    num_frames=2,
    frame="view0",
    prompt="mini",
    max_new_tokens=6,
)


def tiny_model(config: LLaVA3DConfig = CONFIG) -> LLaVA3D:
    """Random weights, the same in every call."""
    torch.manual_seed(0)
    return LLaVA3D(config).eval()


def tiny_teacher(
    config: LLaVA3DConfig = CONFIG, options: TeacherOptions | None = None
) -> LLaVA3DTeacher:
    """A teacher of random weights with the made worlds' tokenizer."""
    return LLaVA3DTeacher(tiny_model(config), load_tokenizer(), options)


def lively_teacher(
    config: LLaVA3DConfig = CONFIG, options: TeacherOptions | None = None
) -> LLaVA3DTeacher:
    """The same with attention that is far from even and answers that differ."""
    teacher = tiny_teacher(config, options)
    with torch.no_grad():
        for layer in teacher.model.model.layers:
            layer.self_attn.q_proj.weight *= 12
            layer.self_attn.k_proj.weight *= 12
            layer.self_attn.v_proj.weight *= 6
        teacher.model.lm_head.weight *= 20
        teacher.model.model.mm_projector[2].weight *= 6
    return teacher
