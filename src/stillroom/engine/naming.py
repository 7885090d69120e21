"""Which words a visual token is like: classes are told by the language model's own embeddings.

As in open-vocabulary detection (Minderer et al. 2022, section 3) a class is the embedding of its
name. What a picture shows then lies where the words for it lie, and a word finds it by likeness.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

#: What a token that shows no object counts for beside one that does.
BACKGROUND = 0.25
#: Scale of the dot products. Below 1 a token must come close to its word to be sure of it.
SHARPNESS = 0.4


def naming_error(
    tokens: Float[Tensor, "*p d"], words: Float[Tensor, "k d"], which: Int[Tensor, "*p"]
) -> Float[Tensor, "*p"]:
    """-log p(word) of every visual token, in nats; ``which`` counts from 1, 0 is none of them.

    Where ``which`` is negative nobody knows, and the error is 0.

    Tokens are normalised and compared with the ``words`` by their scaled dot product; being like
    none has the logit 0. Tokens of ``which`` 0 count ``BACKGROUND``.
    """
    said = SHARPNESS * F.layer_norm(tokens, tokens.shape[-1:]) @ words.T
    logits = F.pad(said.float(), (1, 0)).flatten(0, -2)
    target = which.flatten().long()
    error = F.cross_entropy(logits, target, reduction="none", ignore_index=-1).view(which.shape)
    return error.where(which > 0, BACKGROUND * error)


def naming_weight(which: Int[Tensor, "*p"]) -> float:
    """What the positions of ``naming_error`` count for together."""
    return float((which > 0).sum() + BACKGROUND * (which == 0).sum())
