"""What we would ship: licences that permit it, and a language model that can already speak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from stillroom.distill.config import DistillConfig, LoraConfig, LossConfig, StudentSizes
from stillroom.recipes.paper import HEADS, TRAINING


def edge() -> DistillConfig:
    """Depth Anything 3 Small, frozen, and Qwen2.5-0.5B with LoRA, 0.52 B; licences that permit it.

    The encoder's trunk is read without its depth head, so that the student has no depth of its own
    but what its tokens tell. Photos are squares of 336 px, as the teacher's: nine patches to a cell
    of the 8 x 8 that are kept. At 504 px looking at eight photos has 3.5 times the operations.
    Needs peft: pip install 'stillroom[lora]'.
    """
    return DistillConfig(
        train=replace(TRAINING, learning_rate=2e-4),
        student=StudentSizes(
            hidden_size=896,
            layers=24,
            heads=14,
            intermediate_size=4864,
            tie_embeddings=True,
            image_size=336,
            **HEADS,
        ),
        losses=LossConfig(detection=True, spatial=True, multi_view=True, feature=True),
        encoder="depth-anything/DA3-SMALL",
        encoder_precision="bf16",
        language_model="Qwen/Qwen2.5-0.5B",
        lora=LoraConfig(rank=16),
    )


def edge_base() -> DistillConfig:
    """edge with Depth Anything 3 Base: four times the encoder."""
    return replace(edge(), encoder="depth-anything/DA3-BASE")


def edge_full() -> DistillConfig:
    """edge with the whole language model trained instead of low-rank updates."""
    base = edge()
    return replace(base, lora=LoraConfig(rank=0), train=replace(base.train, learning_rate=5e-5))


DISTILL: Mapping[str, Callable[[], DistillConfig]] = {
    "edge": edge,
    "edge_base": edge_base,
    "edge_full": edge_full,
}
