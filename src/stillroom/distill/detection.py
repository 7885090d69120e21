"""Set prediction: which guess is meant for which thing, and what each is then taught.

Kinds count from 1, 0 is no thing. A box is eight numbers (``students.detector.BOX_NUMBERS``):
centre in view0 [m], log edge lengths [log m], sine and cosine of twice the yaw. One value per
position comes back, as from ``losses.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

#: Focal loss (Lin et al. 2017, eq. 5): how fast sure answers stop counting, and what a thing
#: counts for; none counts for the rest.
FOCAL_GAMMA = 2.0
FOCAL_ALPHA = 0.25
#: What a guess costs as the match of a thing: its probability of the kind, its mean box error.
MATCH_CLASS = 2.0
MATCH_BOX = 5.0
#: The kind of a thing that is none of those told apart: its box is learnt, its class is not.
UNKNOWN_KIND = -1
#: A guess without a thing.
UNMATCHED = -1


@torch.no_grad()
def match(
    logits: Float[Tensor, "b q k"],
    box: Float[Tensor, "b q 8"],
    kind: Int[Tensor, "b m"],
    truth: Float[Tensor, "b m 8"],
) -> Int[Tensor, "b q"]:
    """The thing that each guess is matched with, ``UNMATCHED`` for none: least total cost.

    Hungarian algorithm (Carion et al. 2020, eq. 1) by scipy, scene by scene. Of more things than
    guesses the cheapest ones are matched. For a thing of ``UNKNOWN_KIND`` a guess of any kind is
    as good. A matching carries no gradient.
    """
    found = torch.full(logits.shape[:2], UNMATCHED)
    probs = logits.float().softmax(dim=-1)
    # A model that has diverged is reported by its loss, not by the matching.
    costs = MATCH_BOX * torch.cdist(box.float(), truth.float(), p=1).nan_to_num(1e6) / box.shape[-1]
    for row, kinds in enumerate(kind):
        things = kinds.nonzero()[:, 0]
        named = kinds[things]
        right = torch.where(
            named == UNKNOWN_KIND, 1 - probs[row][:, :1], probs[row][:, named.clamp_min(0)]
        )
        cost = costs[row][:, things] - MATCH_CLASS * right.nan_to_num(0.0)
        guesses, which = linear_sum_assignment(cost.cpu().numpy())
        found[row, torch.from_numpy(guesses)] = things.cpu()[torch.from_numpy(which)]
    return found.to(logits.device)


def focal(logits: Float[Tensor, "*p k"], kind: Int[Tensor, "*p"]) -> Float[Tensor, "*p"]:
    """``-alpha (1 - p)^gamma log p`` of the right kind at every guess, in nats.

    The softmax form of Lin et al. 2017: alpha is ``FOCAL_ALPHA`` for things and the rest for none.
    """
    logprobs = F.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
    right = logprobs.gather(-1, kind[..., None].long())[..., 0]
    # 1 - p by expm1: of a sure guess nothing is left but rounding otherwise.
    value = -((-torch.expm1(right)) ** FOCAL_GAMMA) * right
    return value * torch.where(kind > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA)


def box_l1(said: Float[Tensor, "*p 8"], truth: Float[Tensor, "*p 8"]) -> Float[Tensor, "*p 8"]:
    """|said - truth| number by number: metres, log metres, and no unit for the yaw."""
    return (said if said.dtype == torch.float64 else said.float()).sub(truth).abs()


def giou_error(said: Float[Tensor, "*p 8"], truth: Float[Tensor, "*p 8"]) -> Float[Tensor, "*p"]:
    """1 - generalised IoU of the boxes' bounds along the axes of view0, from 0 to 2.

    Rezatofighi et al. 2019, algorithm 1, in space. Of turned boxes the bounds are compared, not the
    boxes: exact overlap is no smooth function of the yaw.
    """
    (low, high), (other_low, other_high) = _bounds(said), _bounds(truth)
    inner = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp_min(0).prod(-1)
    outer = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(-1)
    union = (high - low).prod(-1) + (other_high - other_low).prod(-1) - inner
    return 1 - inner / union + (outer - union) / outer


def _bounds(box: Float[Tensor, "*p 8"]) -> tuple[Float[Tensor, "*p 3"], Float[Tensor, "*p 3"]]:
    """Least and largest corner of the bounds along the axes."""
    box = box if box.dtype == torch.float64 else box.float()
    turn = F.normalize(box[..., 6:], dim=-1)[..., 1:]  # cosine of twice the yaw
    # Shares of cosine and sine of the yaw itself; a root of 0 has no gradient.
    across, along = (((1 + sign * turn) / 2).clamp_min(1e-6).sqrt() for sign in (1, -1))
    size = box[..., 3:6].exp()
    width, depth = size[..., :1], size[..., 1:2]
    extent = torch.cat(
        [across * width + along * depth, along * width + across * depth, size[..., 2:]], dim=-1
    )
    return box[..., :3] - extent / 2, box[..., :3] + extent / 2
