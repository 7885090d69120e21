"""AdamW with honest parameter groups, and the learning rate as arithmetic on the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from stillroom.training.config import TrainConfig

# Decay is for matrices that multiply activations, nothing else: norms, biases, embeddings,
# tokens, slots and uncertainty parameters are directions or scales of their own.
_DECAYED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Bilinear,
    nn.MultiheadAttention,
)


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, object]]:
    """Every trainable parameter of ``model`` once: with decay first, then without."""
    decayed: set[int] = set()
    embedded: set[int] = set()
    for module in model.modules():
        own = {id(parameter) for parameter in module.parameters(recurse=False)}
        if isinstance(module, nn.Embedding):
            embedded |= own
        elif isinstance(module, _DECAYED):
            decayed |= {id(p) for p in module.parameters(recurse=False) if p.ndim >= 2}
    # An output matrix tied to the embedding is an embedding.
    decayed -= embedded
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, object]] = [
        {"params": [p for p in trainable if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) not in decayed], "weight_decay": 0.0},
    ]
    held = [id(p) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(held) == sorted(id(p) for p in trainable), "a trainable parameter is in no group"
    return groups


def make_optimizer(model: nn.Module, *, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters. Raises ValueError if there are none."""
    groups = parameter_groups(model, weight_decay=config.weight_decay)
    if not any(group["params"] for group in groups):
        raise ValueError("the model has no trainable parameter")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def learning_rate_at(step: int, *, config: TrainConfig) -> float:
    """The learning rate of a step counted from 0: linear warm-up, then the schedule."""
    warmup = round(config.warmup_fraction * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    # The first step after the warm-up has the peak, the last the floor.
    done = (step - warmup) / max(1, config.steps - 1 - warmup)
    floor = config.min_lr_fraction
    return config.learning_rate * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)
