"""What we would ship: licences that permit it, and a language model that can already speak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from stillroom.distill.config import DistillConfig, LoraConfig, LossConfig, StudentSizes
from stillroom.recipes.paper import HEADS, TRAINING


def edge() -> DistillConfig:
    """Qwen2.5-0.5B with LoRA on VGGT-1B-Commercial, until a smaller encoder can be read.

    Its encoder is to be Depth Anything 3 Small or Base (Apache-2.0, 0.03 to 0.12 B), which
    stillroom cannot read yet; VGGT-1B-Commercial stands in for it, and is what makes this student
    1.4 B rather than 0.6 B. Needs peft: pip install 'stillroom[lora]'.
    """
    return DistillConfig(
        train=replace(TRAINING, learning_rate=2e-4),
        student=StudentSizes(
            hidden_size=896,
            layers=24,
            heads=14,
            intermediate_size=4864,
            tie_embeddings=True,
            **HEADS,
        ),
        losses=LossConfig(detection=True, spatial=True, multi_view=True, feature=True),
        encoder="facebook/VGGT-1B-Commercial",
        encoder_precision="bf16",
        language_model="Qwen/Qwen2.5-0.5B",
        lora=LoraConfig(rank=16),
    )


def edge_full() -> DistillConfig:
    """edge with the whole language model trained instead of low-rank updates."""
    base = edge()
    return replace(base, lora=LoraConfig(rank=0), train=replace(base.train, learning_rate=5e-5))


DISTILL: Mapping[str, Callable[[], DistillConfig]] = {"edge": edge, "edge_full": edge_full}
