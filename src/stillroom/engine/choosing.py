"""The next token of every question: the likeliest, or the likeliest that goes on with a choice.

All of it stays on the device, so that a step of decoding waits for no host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Ids of every answer that is allowed, each with its end; none: any text.
Choices = Sequence[Sequence[int]]


class Chooser:
    """Which choices of each question still go on from what has been said."""

    def __init__(
        self,
        choices: Sequence[Choices],
        device: torch.device | str,
        *,
        most: int = 0,
        longest: int = 0,
    ) -> None:
        """``most`` choices of ``longest`` tokens are the least that there is room for."""
        self.bound = any(choices)
        if not self.bound:
            return
        most = max(most, *map(len, choices))
        longest = max([longest, *(len(ids) for allowed in choices for ids in allowed)])
        # The last column, of -1 alone, is where a choice has ended.
        padded = [
            [[*ids, *[-1] * (longest + 1 - len(ids))] for ids in allowed]
            + [[-1] * (longest + 1)] * (most - len(allowed))
            for allowed in choices
        ]
        self.ids = torch.tensor(padded, device=device)  # [b c s]
        self.open = self.ids[:, :, 0] >= 0
        #: Questions that have choices, ``[b 1]``.
        self.asks = self.open.any(dim=1, keepdim=True)
        self.all_ask = all(map(len, choices))

    def pick(self, logits: Float[Tensor, "b v"], step: int | Int[Tensor, "1"]) -> Int[Tensor, "b"]:
        """The next token of every question; of equally likely ones the one with the least id."""
        if not self.bound:
            return logits.argmax(dim=-1)
        last = self.ids.shape[2] - 1
        if isinstance(step, int):
            ids = self.ids[:, :, min(step, last)]
        else:
            ids = self.ids.index_select(2, step.clamp(max=last))[:, :, 0]
        goes_on = (ids >= 0).logical_and_(self.open)
        found = logits.gather(1, ids.clamp(min=0)).masked_fill_(~goes_on, -torch.inf)
        best = goes_on.logical_and_(found == found.amax(dim=1, keepdim=True))
        # Behind its end a question says anything.
        chosen = ids.masked_fill(~best, logits.shape[-1] - 1).amin(dim=1, keepdim=True)
        if not self.all_ask:
            chosen = torch.where(self.asks, chosen, logits.argmax(dim=-1, keepdim=True))
        self.open.logical_and_(ids == chosen)
        return chosen[:, 0]

    def keep(self, questions: Int[Tensor, "k"]) -> None:
        """Go on with these questions alone."""
        if self.bound:
            self.ids, self.open = self.ids[questions], self.open[questions]
            self.asks = self.asks[questions]

    def take(self, other: Chooser) -> None:
        """Become another of the same shapes, in the same memory."""
        if self.bound:
            self.ids.copy_(other.ids)
            self.open.copy_(other.open)
            self.asks.copy_(other.asks)
