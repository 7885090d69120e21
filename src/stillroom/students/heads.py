"""Heads that read the connector's tokens, so that their losses reach the answer path."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class DepthBins(nn.Module):
    """A distribution over log-spaced depth bins for every cell of every view."""

    def __init__(self, hidden_size: int, *, bins: int, near: float, far: float) -> None:
        super().__init__()
        self.bins, self.near, self.far = bins, near, far
        self.norm = nn.LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, bins)

    def forward(self, cells: Float[Tensor, "b v c d"]) -> Float[Tensor, "b v g g bins"]:
        """Logits over the bins, cells back in their grid."""
        grid = round(cells.shape[2] ** 0.5)
        return self.linear(self.norm(cells)).unflatten(2, (grid, grid))

    def reset_parameters(self) -> None:
        """Start values: every bin equally likely."""
        self.norm.reset_parameters()
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def centers(self, device: torch.device | None = None) -> Float[Tensor, "bins"]:
        """Geometric middle of each bin, in metres."""
        steps = (torch.arange(self.bins, device=device, dtype=torch.float32) + 0.5) / self.bins
        return self.near * (self.far / self.near) ** steps

    def expected(self, logits: Float[Tensor, "*s bins"]) -> Float[Tensor, "*s"]:
        """Depth in metres: the mean of log depth under the distribution."""
        log_centers = self.centers(logits.device).log()
        # A product of matrices would be rounded to half precision under autocast.
        return (logits.float().softmax(dim=-1) * log_centers).sum(dim=-1).exp()


class MentionBoxes(nn.Module):
    """Where the thing lies that a name in a question means, and how large it is."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, 6)

    def forward(self, states: Float[Tensor, "n d"]) -> Float[Tensor, "n 6"]:
        """Centre in view0 [m] and logarithm of the edge lengths [m], from states at the names."""
        return self.linear(self.norm(states))

    def reset_parameters(self) -> None:
        """Start values: everything in the middle, a metre large."""
        self.norm.reset_parameters()
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)


class Measures(nn.Module):
    """The numbers behind an answer: distances between the things named, and what decides."""

    def __init__(self, hidden_size: int, kinds: int) -> None:
        super().__init__()
        self.apart_norm = nn.LayerNorm(hidden_size)
        self.apart_linear = nn.Linear(hidden_size, 2)
        self.norm = nn.LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, 2 * kinds)
        self.reset_parameters()

    def apart(self, named: Float[Tensor, "n d"]) -> Float[Tensor, "n 2"]:
        """Log metres from the thing named here to the first and the second one of the question."""
        return self.apart_linear(self.apart_norm(named))

    def forward(self, begins: Float[Tensor, "n d"], kind: Int[Tensor, "n"]) -> Float[Tensor, "n 2"]:
        """The two numbers of each answer's ``kind``, from states where the answer begins."""
        said: Tensor = self.linear(self.norm(begins)).unflatten(-1, (-1, 2))
        return said[torch.arange(len(begins), device=begins.device), kind]

    def reset_parameters(self) -> None:
        """Start values: every number close to 0."""
        for norm, linear in ((self.apart_norm, self.apart_linear), (self.norm, self.linear)):
            norm.reset_parameters()
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)


class Relations(nn.Module):
    """How two regions of the scene lie to each other: left, above, in front."""

    #: What a logit above 0 says of the first region of a pair.
    AXES = ("left of", "above", "in front of")

    def __init__(self, hidden_size: int, *, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.inner = nn.Linear(2 * hidden_size, width)
        self.linear = nn.Linear(width, len(self.AXES))
        self.reset_parameters()

    def forward(
        self, first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n 3"]:
        """Logits of ``AXES`` for pairs of regions; exchanging the two turns every sign."""
        first, second = self.norm(first), self.norm(second)
        return self._lean(first, second) - self._lean(second, first)

    def _lean(self, one: Tensor, other: Tensor) -> Tensor:
        states = nn.functional.gelu(self.inner(torch.cat([one, other], dim=-1)))
        said: Tensor = self.linear(states)
        return said

    def reset_parameters(self) -> None:
        """Start values: every relation close to even."""
        self.norm.reset_parameters()
        nn.init.normal_(self.inner.weight, std=self.inner.in_features**-0.5)
        nn.init.zeros_(self.inner.bias)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)


class FeatureProjector(nn.Module):
    """W of the paper's Eq. 1: vision tokens in the width of a teacher's features.

    The student is brought to the teacher and not the other way round: a learned map of the
    teacher's features has its best value at zero.
    """

    def __init__(self, hidden_size: int, feature_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, feature_width)
        self.reset_parameters()

    def forward(self, cells: Float[Tensor, "b v c d"]) -> Float[Tensor, "b v c f"]:
        """What the teacher's normalised features are compared with."""
        return self.linear(cells)

    def reset_parameters(self) -> None:
        """Start values: about unit size, as normalised features have."""
        nn.init.normal_(self.linear.weight, std=self.linear.in_features**-0.5)
        nn.init.zeros_(self.linear.bias)
