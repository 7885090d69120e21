"""How the terms become one loss: learned bounded uncertainty, or fixed weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.distill.config import LossConfig

#: s = log sigma^2 stays within plus and minus this.
BOUND = 8.0


class BoundedUncertainty(nn.Module):
    """The paper's Eq. 2: ``sum_i 0.5 exp(-s_i) L_i + 0.5 s_i``, learning ``s_i = log sigma_i^2``.

    A term that is absent adds neither. Best ``sigma_i^2`` is ``L_i`` itself, where the term comes
    to ``0.5 + 0.5 ln L_i``: the total may be negative and is no basis for comparing runs.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        # A parameter each, not one vector: an absent term then has no gradient at all, and the
        # optimizer's momentum does not move it either.
        self.log_variance = nn.ParameterDict({name: torch.zeros(()) for name in names})

    def forward(
        self, terms: Mapping[str, Float[Tensor, ""]], *, share: float = 1.0
    ) -> Float[Tensor, ""]:
        """The weighted total; ``share`` is the micro-batch's part of the optimizer step."""
        self._pull_inside()
        parts = []
        for name, value in terms.items():
            s = self._of(name)
            parts.append(0.5 * (-s).exp() * value + 0.5 * share * s)
        return torch.stack(parts).sum()

    def report(self) -> dict[str, dict[str, float]]:
        """``weights`` 0.5 exp(-s) and ``sigmas`` exp(s / 2) by term."""
        s = {
            name: min(max(value.item(), -BOUND), BOUND) for name, value in self.log_variance.items()
        }
        return {
            "weights": {name: 0.5 * math.exp(-value) for name, value in s.items()},
            "sigmas": {name: math.exp(0.5 * value) for name, value in s.items()},
        }

    def _of(self, name: str) -> Tensor:
        if name not in self.log_variance:
            raise ValueError(f"term {name!r} has no weight; known: {sorted(self.log_variance)}")
        return self.log_variance[name]

    @torch.no_grad()
    def _pull_inside(self) -> None:
        # A clamp inside the sum would stop the gradient at the bound, and a parameter that the
        # optimizer carried past it could never come back.
        for value in self.log_variance.values():
            value.clamp_(-BOUND, BOUND)


class StaticWeights(nn.Module):
    """``sum_i w_i L_i`` with fixed weights: the paper's ablation, and single-term runs."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def forward(
        self, terms: Mapping[str, Float[Tensor, ""]], *, share: float = 1.0
    ) -> Float[Tensor, ""]:
        """The weighted total. ``share`` changes nothing: all of it depends on the terms."""
        unknown = sorted(terms.keys() - self.weights.keys())
        if unknown:
            raise ValueError(f"term {unknown[0]!r} has no weight; known: {sorted(self.weights)}")
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def report(self) -> dict[str, dict[str, float]]:
        """``weights`` by term."""
        return {"weights": dict(self.weights)}


class Composite(nn.Module):
    """Terms that are sums of several means, each with its own count, before another weighting.

    A part that is labelled nowhere in a step is absent, and a term without any part too.
    """

    def __init__(self, weighting: nn.Module, parts: Mapping[str, Mapping[str, float]]) -> None:
        super().__init__()
        self.weighting = weighting
        #: By part: the term it belongs to, and its fixed weight there.
        self.place = {
            part: (term, weight)
            for term, shares in parts.items()
            for part, weight in shares.items()
        }

    def forward(
        self, terms: Mapping[str, Float[Tensor, ""]], *, share: float = 1.0
    ) -> Float[Tensor, ""]:
        """The weighted total of the terms that the parts come to."""
        joined: dict[str, Tensor] = {}
        for part, value in terms.items():
            term, weight = self.place.get(part, (part, 1.0))
            value = weight * value
            joined[term] = joined[term] + value if term in joined else value
        total: Tensor = self.weighting(joined, share=share)
        return total

    def report(self) -> dict[str, dict[str, float]]:
        """Weights (and sigmas) by term, as the weighting within has them."""
        said: dict[str, dict[str, float]] = self.weighting.report()  # type: ignore[operator]
        return said


def make_weighting(config: LossConfig) -> nn.Module:
    """The weighting of the terms that are on."""
    weighting: nn.Module
    if config.weighting == "uncertainty":
        weighting = BoundedUncertainty(config.terms)
    else:
        weighting = StaticWeights(dict.fromkeys(config.terms, 1.0) | config.weights)
    return Composite(weighting, config.parts) if config.parts else weighting
