"""Who sees whom: the one attention mask of training, generation, cache and export.

A row is ``[V] [T Q A]_1 [T Q A]_2 ...``: the scene once, then its questions (``packing.py``).
Nothing of one question ever sees another question. With one question of two tokens each, the
three visibilities are (rows look at columns, ``x`` = sees)::

              prefix           full_prefix      causal
            V V Q Q A A       V V Q Q A A      V V Q Q A A
        V   x x . . . .       x x x x . .      x . . . . .
        V   x x . . . .       x x x x . .      x x . . . .
        Q   x x x x . .       x x x x . .      x x x . . .
        Q   x x x x . .       x x x x . .      x x x x . .
        A   x x x x x .       x x x x x .      x x x x x .
        A   x x x x x x       x x x x x x      x x x x x x

T stands like Q, before or after it. Under ``prefix`` the keys and values of V are the same for
every question of a scene, which is why a scene is encoded once; under ``causal`` a T before Q
cannot know the question (``specs``: the papers' literal reading).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

Visibility = Literal["prefix", "full_prefix", "causal"]


class Kind(IntEnum):
    """What stands at a position of a row."""

    V = 0
    T = 1
    Q = 2
    A = 3
    PAD = 4


def attention_mask(
    kind: Int[Tensor, "b l"],
    segment: Int[Tensor, "b l"],
    position: Int[Tensor, "b l"],
    *,
    visibility: Visibility,
    query_start: int = 0,
) -> Bool[Tensor, "b 1 q l"]:
    """True where a position (rows) may look at another (columns), for SDPA.

    ``segment`` is 0 on V and i >= 1 on question i; ``position`` orders what stands within one
    question. ``query_start`` leaves out the rows before it: what a key-value cache already holds.

    Padding sees itself alone, because a row of the softmax must not be empty; nobody sees it.
    """
    valid = kind != Kind.PAD
    seen = _visible(kind, segment, position, visibility, query_start)  # [b q l]
    seen &= valid[:, None, :] & valid[:, query_start:, None]
    index = torch.arange(kind.shape[1], device=kind.device)
    seen |= index[query_start:, None] == index[None, :]
    return seen[:, None]


def _visible(
    kind: Tensor, segment: Tensor, position: Tensor, visibility: Visibility, start: int
) -> Tensor:
    """Who sees whom among valid positions, [b q l]."""
    q_kind, q_segment, q_position = (x[:, start:, None] for x in (kind, segment, position))
    k_kind, k_segment, k_position = (x[:, None, :] for x in (kind, segment, position))
    own = q_segment == k_segment
    earlier = k_position <= q_position
    if visibility == "causal":
        return (own | (k_kind == Kind.V)) & earlier
    # The prefix (T, Q and V itself) has no order; an answer is read in order and only by itself.
    k_answer, q_answer = k_kind == Kind.A, q_kind == Kind.A
    within = own & (~k_answer | (q_answer & earlier))
    if visibility == "prefix":
        return within | (k_kind == Kind.V)
    if visibility == "full_prefix":
        return within | (k_kind == Kind.V) | ((q_kind == Kind.V) & ~k_answer)
    raise ValueError(f"visibility must be prefix, full_prefix or causal, got {visibility!r}")


def for_attention(
    lm: PreTrainedModel, mask: Bool[Tensor, "b 1 q l"], dtype: torch.dtype
) -> Bool[Tensor, "b 1 q l"] | Float[Tensor, "b 1 q l"]:
    """The mask in the form that the model's attention reads: bool for SDPA, additive for eager.

    Raises:
        ValueError: the model's attention takes no free mask (flash kernels).
    """
    implementation = lm.config._attn_implementation
    if implementation == "sdpa":
        return mask
    if implementation == "eager":
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
            ~mask, torch.finfo(dtype).min
        )
    raise ValueError(
        f"attention {implementation!r} takes no free mask; load the language model with "
        "attn_implementation='sdpa' or 'eager'"
    )
