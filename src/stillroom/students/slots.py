"""Latent thinking slots: embeddings that stand between the scene and the answer, never decoded.

One mechanism for Hidden CoT (learned) and its controls: ``frozen_random`` (the same draw, never
trained) and ``filler`` (one trained embedding at every slot, told apart by position alone).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

SlotKind = Literal["learned", "frozen_random", "filler", "none"]

#: The paper draws slots from N(0, 0.02^2).
SLOT_STD = 0.02


class Slots(nn.Module):
    """``count`` embeddings of ``hidden_size``; ``learned`` has exactly that many parameters."""

    def __init__(self, kind: SlotKind, count: int, hidden_size: int) -> None:
        super().__init__()
        self.kind, self.count, self.hidden_size = kind, count, hidden_size
        if count:
            distinct = 1 if kind == "filler" else count
            self.embeddings = nn.Parameter(
                torch.empty(1, distinct, hidden_size), requires_grad=kind != "frozen_random"
            )

    def forward(self) -> Float[Tensor, "k d"]:
        """The slots in their order; none is an empty array."""
        if not self.count:
            return torch.empty(0, self.hidden_size)
        return self.embeddings[0].expand(self.count, -1)

    def reset_parameters(self) -> None:
        """Draw the start values."""
        if self.count:
            nn.init.normal_(self.embeddings, std=SLOT_STD)
