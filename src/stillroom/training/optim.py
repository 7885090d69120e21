"""AdamW with honest parameter groups, and the learning rate as arithmetic on the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

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
#: Marks the optimizer's groups that hold a weighting's parameters.
_OF_WEIGHTING = "of_weighting"


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


def make_optimizer(
    model: nn.Module, *, config: TrainConfig, weighting: nn.Module | None = None
) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, those of ``weighting`` in a group of their own that
    does not decay. Raises ValueError if the model has none."""
    groups = parameter_groups(model, weight_decay=config.weight_decay)
    if not any(group["params"] for group in groups):
        raise ValueError("the model has no trainable parameter")
    learnt = [] if weighting is None else [p for p in weighting.parameters() if p.requires_grad]
    if learnt:
        groups.append({"params": learnt, "weight_decay": 0.0, _OF_WEIGHTING: True})
    # What lies in shards and what does not cannot share one of AdamW's fused operations.
    groups = [{**group, "params": part} for group in groups for part in _by_form(group["params"])]  # type: ignore[arg-type]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, step: int, *, config: TrainConfig
) -> dict[str, float]:
    """Give every group the learning rate of a step counted from 0; by name as the log has them:
    ``lr``, and ``weighting_lr`` where a weighting learns."""
    rates = {"lr": learning_rate_at(step, config=config)}
    for group in optimizer.param_groups:
        if group.get(_OF_WEIGHTING):
            rates["weighting_lr"] = group["lr"] = learning_rate_at(
                step, config=weighting_rates(config)
            )
        else:
            group["lr"] = rates["lr"]
    return rates


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients there are, over all shards."""
    norms = [
        nn.utils.get_total_norm([value.grad for value in part if value.grad is not None])
        for part in _by_form(value for value in parameters if value.grad is not None)
    ]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole))


def clip_gradients(parameters: Sequence[nn.Parameter], norm: Tensor, longest: float) -> None:
    """Shorten gradients of length ``norm`` to ``longest``; 0 leaves them as they are."""
    for part in _by_form(parameters):
        nn.utils.clip_grads_with_norm_(part, longest or math.inf, norm)


def parameters_by_part(trained: nn.Module) -> Mapping[str, list[nn.Parameter]]:
    """Trainable parameters of ``{"model": ..., "weighting": ...}`` by the part they belong to: a
    child of the model, under its name, or the weighting."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, value in trained.named_parameters():
        if value.requires_grad:
            whose, _, rest = name.partition(".")
            part = rest.partition(".")[0] if whose == "model" else whose
            parts.setdefault(part, []).append(value)
    return parts


def _by_form(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those in shards, those that are whole; one list where there is one form only."""
    given = list(parameters)
    parts = [[v for v in given if isinstance(v, DTensor) is cut] for cut in (True, False)]
    return [part for part in parts if part] or [[]]


def weighting_rates(config: TrainConfig) -> TrainConfig:
    """The same training with the learning rate and schedule of the weighting as its own."""
    return replace(
        config,
        learning_rate=config.weighting_learning_rate,
        schedule=config.weighting_schedule,
    )


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
