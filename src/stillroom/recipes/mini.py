"""The embedded default: the whole way on two CPU cores, with made rooms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from stillroom.distill.config import DistillConfig, LossConfig, SlotConfig, StudentSizes
from stillroom.distill.pretrain_config import PretrainConfig
from stillroom.students.encoders.vggt_config import mini_config
from stillroom.teachers.teach_config import TeachConfig
from stillroom.training.config import TrainConfig


def pretrain_cpu() -> PretrainConfig:
    """The first sitting of encoder_mini, a VGGT of 1.7 M parameters (its card has the second).

    On depth, points, cameras and patch objects; 83 minutes on one core of a shared AMD EPYC.
    """
    return PretrainConfig(
        train=TrainConfig(
            steps=6500,
            scenes_per_step=8,
            learning_rate=1.2e-3,
            evaluate_every=325,
            save_every=100,
        ),
        encoder=mini_config(qk_gain=1.7),
        early_round=1,
        validation_scenes=60,
    )


def pretrain_cpu_no_objects() -> PretrainConfig:
    """Ablation: encoder_mini without the per-patch object targets."""
    return replace(pretrain_cpu(), object_targets=False)


def teach_cpu() -> TeachConfig:
    """teacher_mini: a LLaVA-3D of 5.3 M parameters, taught from truth with depth and poses.

    2.3 hours on two cores of a shared AMD EPYC machine.
    """
    return TeachConfig(
        train=TrainConfig(
            steps=7500,
            scenes_per_step=4,
            micro_batches=2,
            workers=2,
            learning_rate=1.2e-3,
            evaluate_every=500,
            save_every=100,
        ),
        description_share=0.1,
        other_share=0.15,
    )


def mini_cpu() -> DistillConfig:
    """The embedded default: 1.7 M student, K = 8 learned slots, prefix mask; minutes on 2 cores.

    Its budget is small, so that its slots learn from the boxes of what a question names and from
    the numbers behind its answer too; the paper's learn from the answer alone (mini_cpu_paper).
    """
    return DistillConfig(
        train=TrainConfig(
            steps=1200,
            scenes_per_step=4,
            micro_batches=2,
            workers=2,
            learning_rate=1.5e-3,
            evaluate_every=300,
            save_every=50,
        ),
        student=StudentSizes(layers=5, intermediate_size=240, mention_level=3, measure_level=4),
        slots=SlotConfig(supervision="extra"),
        losses=LossConfig(measures=True),
        scenes_per_pass=8,
        validation_scenes=60,
        other_share=0.1,
        description_share=0.1,
    )


def mini_cpu_long() -> DistillConfig:
    """student_mini as shipped: mini_cpu with 60,000 room passes instead of 4,800.

    72 minutes on two cores of an AMD EPYC machine with nothing else to do.
    """
    base = mini_cpu()
    budget = replace(
        base.train, steps=15_000, learning_rate=1.2e-3, evaluate_every=1000, save_every=200
    )
    return replace(base, train=budget)


def mini_cpu_blind() -> DistillConfig:
    """Control: mini_cpu without its pictures, the stronger of the two blind rows."""
    return replace(mini_cpu(), vision=False)


PRETRAIN: Mapping[str, Callable[[], PretrainConfig]] = {
    "mini_cpu": pretrain_cpu,
    "mini_cpu_no_objects": pretrain_cpu_no_objects,
}
TEACH: Mapping[str, Callable[[], TeachConfig]] = {"mini_cpu": teach_cpu}
DISTILL: Mapping[str, Callable[[], DistillConfig]] = {
    "mini_cpu": mini_cpu,
    "mini_cpu_long": mini_cpu_long,
    "mini_cpu_blind": mini_cpu_blind,
}
