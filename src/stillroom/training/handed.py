"""What a training is handed and what it hands back, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """What a step function found in one micro-batch: scalar sums, never means.

    Each name is also a name of ``count``. ``terms`` carry gradient; ``metrics`` are only logged.
    """

    terms: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Weighting(Protocol):
    """Turns mean terms into one loss; an ``nn.Module``, for it may learn."""

    def __call__(self, terms: Mapping[str, Tensor], *, share: float) -> Tensor:
        """The weighted total. ``terms`` are this micro-batch's part of the step's means; what
        does not depend on them counts by ``share``, the micro-batch's part of the step."""
        ...

    def report(self) -> dict[str, dict[str, float]]:
        """Weights (and sigmas) by term, for the log."""
        ...


class PlainSum(nn.Module):
    """Every term with weight 1."""

    def forward(self, terms: Mapping[str, Tensor], *, share: float) -> Tensor:
        """The sum of the terms."""
        return torch.stack(list(terms.values())).sum()

    def report(self) -> dict[str, dict[str, float]]:
        """Nothing to tell."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Sheltered:
    """Parameters that learn from some terms alone, although others reach them too.

    A step in which none of the others is labelled costs no more than it would without this.
    """

    parameters: Sequence[nn.Parameter]
    # Names of ``StepLosses.terms``: what they learn from, and what else reaches them.
    terms: frozenset[str]
    others: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Handed to ``progress`` after every step, when everything about it is on disk."""

    step: int
    steps: int
    # The step's row of log.jsonl, see runlog.read_log.
    row: Mapping[str, Any]
    # What the evaluation after this step said, if there was one.
    metrics: Mapping[str, float] | None


def count_steps(
    progress: Callable[[int, int], None] | None,
) -> Callable[[Progress], None] | None:
    """A (done, total) callback as what ``train`` calls after every step."""
    return None if progress is None else lambda now: progress(now.step, now.steps)


class TrainingDiverged(RuntimeError):
    """Loss or gradient stopped being finite at ``step``; the weights are those before it."""

    def __init__(self, step: int, bad: Sequence[str]) -> None:
        super().__init__(
            f"training diverged at step {step}: {', '.join(bad)} not finite; the weights were "
            "left as they were. Try a smaller learning rate with another --out."
        )
        self.step = step
