"""A world and a recipe in which an arm is trained within a second."""

from __future__ import annotations

from pathlib import Path

from stillroom.distill.config import DistillConfig, LossConfig, SlotConfig, StudentSizes
from stillroom.students.encoders.vggt import VGGT
from stillroom.students.encoders.vggt_load import save_vggt
from stillroom.teachers.label import label_scenes
from stillroom.testing import FixedTeacher, tiny_encoder_config, tiny_store
from stillroom.text.tokenizer import load_tokenizer
from stillroom.training.config import TrainConfig

#: Ten scenes: four to train on, two to choose by, four that are asked about.
SPLITS = ("train", "train", "val", "test", "test")

TINY = DistillConfig(
    train=TrainConfig(
        steps=2, scenes_per_step=2, learning_rate=1e-2, evaluate_every=2, save_every=2
    ),
    student=StudentSizes(hidden_size=16, layers=2, heads=2, intermediate_size=32, vision_grid=2),
    slots=SlotConfig(count=2),
    losses=LossConfig(depth=True, grounding=False),
    questions_per_scene=4,
)


def write_world(home: Path) -> Path:
    """``scenes``, ``labels`` of a fixed teacher, and two random encoders."""
    tiny_store(home / "scenes", scenes=10, questions=8, splits=SPLITS)
    label_scenes(
        home / "scenes",
        FixedTeacher,
        home / "labels",
        teacher={"name": "fixed"},
        signals=("answers", "topk_logits"),
        vocabulary=load_tokenizer().vocabulary(),
    )
    for seed, name in enumerate(("encoder", "no_objects")):
        save_vggt(VGGT(tiny_encoder_config(), seed=seed), home / name)
    return home
