"""Which words a visual token is like: classes are told by the language model's own embeddings.

As in open-vocabulary detection (Minderer et al. 2022, section 3) a class is the embedding of its
name. What a picture shows then lies where the words for it lie, and a word finds it by likeness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

#: Number of the word where nobody knows what a token shows.
UNKNOWN = -1
#: What a token that shows no object counts for beside one that does.
BACKGROUND = 0.25
#: Where the error of a box turns from square to linear, in metres and in log metres.
BOX_BETA = 0.1
#: Scale of the dot products. Below 1 a token must come close to its word to be sure of it.
SHARPNESS = 0.4


@dataclass(frozen=True, kw_only=True)
class Words:
    """Token ids of several words, end to end, and where each word begins."""

    ids: Int[Tensor, "n"]
    starts: Int[Tensor, "k"]

    @classmethod
    def of(cls, pieces: Sequence[Sequence[int]]) -> Words:
        """From the ids of each word."""
        lengths = torch.tensor([len(piece) for piece in pieces])
        return cls(
            ids=torch.tensor([i for piece in pieces for i in piece]),
            starts=lengths.cumsum(0) - lengths,
        )

    def embedded(self, lm: PreTrainedModel) -> Float[Tensor, "k d"]:
        """The embedding of each word in a language model: the mean of its tokens'."""
        table: Any = lm.get_input_embeddings()
        weight: Tensor = table.weight
        device = weight.device
        return F.embedding_bag(self.ids.to(device), weight, self.starts.to(device), mode="mean")


def naming_error(
    tokens: Float[Tensor, "*p d"], words: Float[Tensor, "k d"], which: Int[Tensor, "*p"]
) -> Float[Tensor, "*p"]:
    """-log p(word) of every visual token, in nats; ``which`` counts from 1, 0 is none of them.

    Where ``which`` is ``UNKNOWN`` nobody knows, and the error is 0.

    Tokens are normalised and compared with the ``words`` by their scaled dot product; being like
    none has the logit 0. Tokens of ``which`` 0 count ``BACKGROUND``.
    """
    said = SHARPNESS * F.layer_norm(tokens, tokens.shape[-1:]) @ words.T
    logits = F.pad(said.float(), (1, 0)).flatten(0, -2)
    target = which.flatten().long()
    error = F.cross_entropy(logits, target, reduction="none", ignore_index=UNKNOWN).view(
        which.shape
    )
    return error.where(which > 0, BACKGROUND * error)


def naming_weight(which: Int[Tensor, "*p"]) -> float:
    """What the positions of ``naming_error`` count for together."""
    return float((which > 0).sum() + BACKGROUND * (which == 0).sum())


def box_error(said: Float[Tensor, "*p 6"], truth: Float[Tensor, "*p 6"]) -> Float[Tensor, "*p 6"]:
    """Smooth L1 of centre [m] and logarithm of the edge lengths [m], value by value."""
    return F.smooth_l1_loss(said.float(), truth, reduction="none", beta=BOX_BETA)
