"""What the student is taught by, one value per position; ``docs/losses.md`` has the equations.

Nothing here is masked or averaged: ``masked_sum`` keeps what is labelled, and the training loop
divides once by the labelled positions of the whole step. Half precision is taken up to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillroom.distill.detection import box_l1, focal, giou_error
from stillroom.engine.naming import box_error, naming_error
from stillroom.engine.packing import IGNORE_INDEX
from stillroom.teachers.measures import measure_error

# Least share of the teacher's mass outside its top k: keeps the logarithm finite where the k are
# the whole vocabulary's mass up to the rounding of stored 16-bit logits.
_LEAST_TAIL = 1e-6

Sign = Literal["corrected", "paper"]


def widened(values: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The same in float32, or as it is where it is finer already."""
    return values if values.dtype == torch.float64 else values.float()


def masked_sum(values: Float[Tensor, "*p"], mask: Bool[Tensor, "*p"]) -> Float[Tensor, ""]:
    """Sum over the positions where ``mask`` is true; what stands elsewhere is not looked at."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()


def answer_cross_entropy(
    logits: Float[Tensor, "*p v"], labels: Int[Tensor, "*p"]
) -> Float[Tensor, "*p"]:
    """-log p(label) at every position, in nats; 0 where the label is ``IGNORE_INDEX``.

    Labels stand where they are predicted, so they are already shifted (``pack_questions``).
    """
    flat = F.cross_entropy(
        widened(logits).reshape(-1, logits.shape[-1]),
        labels.reshape(-1).long(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )
    return flat.reshape(labels.shape)


def topk_forward_kl(
    student_logits: Float[Tensor, "*p v"],
    topk_ids: Int[Tensor, "*p k"],
    topk_logits: Float[Tensor, "*p k"],
    logsumexp: Float[Tensor, "*p"],
    *,
    temperature: float,
) -> Float[Tensor, "*p"]:
    """KL(teacher || student) over k + 1 outcomes at every position, in nats.

    The outcomes are the teacher's k likeliest tokens and "any other token". The last one's logit
    is the logsumexp of all logits outside the k: exact for the student, and for the teacher from
    the stored ``logsumexp`` over its whole vocabulary. It is one outcome *before* softening, so
    ``temperature`` divides k + 1 logits on both sides and does not ask how the tail is spread.
    At temperature 1 this is the KL of the coarsened distributions, never more than the full KL.
    Scaled by the temperature's square so that gradients keep their size (Hinton et al. 2015,
    section 2). With k = v there is no other token, and it is the full KL.
    """
    student, teacher = widened(student_logits), widened(topk_logits)
    student_outcomes = student.gather(-1, topk_ids.long())  # [*p k]
    if topk_ids.shape[-1] < student.shape[-1]:
        others = student.scatter(-1, topk_ids.long(), -torch.inf).logsumexp(dim=-1, keepdim=True)
        student_outcomes = torch.cat([student_outcomes, others], dim=-1)  # [*p k+1]
        teacher = torch.cat([teacher, _tail_logit(teacher, widened(logsumexp))], dim=-1)
    student_logprobs = F.log_softmax(student_outcomes / temperature, dim=-1)
    teacher_logprobs = F.log_softmax(teacher / temperature, dim=-1)
    kl = F.kl_div(student_logprobs, teacher_logprobs, reduction="none", log_target=True)
    return temperature**2 * kl.sum(dim=-1)


def text_loss(
    student_logits: Float[Tensor, "*p v"],
    labels: Int[Tensor, "*p"],
    topk_ids: Int[Tensor, "*p k"] | None,
    topk_logits: Float[Tensor, "*p k"] | None,
    logsumexp: Float[Tensor, "*p"] | None,
    *,
    kl_alpha: float,
    temperature: float,
    has_logits: Bool[Tensor, "*p"] | None = None,
) -> Float[Tensor, "*p"]:
    """Cross-entropy with the teacher's answer plus ``kl_alpha`` times its top-k KL, in nats.

    Without stored logits (None), or where ``has_logits`` is false, the cross-entropy alone; what
    stands there instead is not looked at. Student and teacher share a tokenizer.
    """
    loss = answer_cross_entropy(student_logits, labels)
    if topk_ids is None or topk_logits is None or logsumexp is None or kl_alpha == 0:
        return loss
    if has_logits is None:
        return loss + kl_alpha * topk_forward_kl(
            student_logits, topk_ids, topk_logits, logsumexp, temperature=temperature
        )
    kl = topk_forward_kl(
        student_logits[has_logits],
        topk_ids[has_logits],
        topk_logits[has_logits],
        logsumexp[has_logits],
        temperature=temperature,
    )
    return loss + kl_alpha * torch.zeros_like(loss).masked_scatter(has_logits, kl)


def depth_bin(depth: Float[Tensor, "*p"], edges: Float[Tensor, "edges"]) -> Int[Tensor, "*p"]:
    """The bin of each depth in metres: i where ``edges[i] <= depth < edges[i + 1]``.

    What is nearer or farther than all bins (also the 0 of no depth) falls into the end ones.
    ``edges`` are ``geometry.depth.log_bin_edges``.
    """
    return torch.bucketize(depth, edges[1:-1].to(depth.dtype).contiguous(), right=True)


def soft_depth_bins(
    depth: Float[Tensor, "*p"], edges: Float[Tensor, "edges"], *, width: float
) -> Float[Tensor, "*p bins"]:
    """Probabilities of the bins around each depth: a bell in log depth, ``width`` bins wide (sd).

    Depth beyond the end bins counts as their outer edge.
    """
    edges = edges.to(depth.dtype)
    log_edges = edges.log()
    centers = (log_edges[1:] + log_edges[:-1]) / 2
    at = depth.clamp(edges[0], edges[-1]).log()[..., None]
    distance = (centers - at) / (log_edges[1:] - log_edges[:-1])
    return F.softmax(-0.5 * (distance / width) ** 2, dim=-1)


def depth_ce(
    bin_logits: Float[Tensor, "*p bins"],
    depth: Float[Tensor, "*p"],
    edges: Float[Tensor, "edges"],
) -> Float[Tensor, "*p"]:
    """-log p(the bin of the depth) at every position, in nats."""
    logprobs = F.log_softmax(widened(bin_logits), dim=-1)
    return -logprobs.gather(-1, depth_bin(depth, edges)[..., None])[..., 0]


def depth_reg(predicted: Float[Tensor, "*p"], depth: Float[Tensor, "*p"]) -> Float[Tensor, "*p"]:
    """|predicted - depth| at every position, in metres."""
    return (widened(predicted) - depth).abs()


def depth_kl(
    bin_logits: Float[Tensor, "*p bins"], target_probs: Float[Tensor, "*p bins"]
) -> Float[Tensor, "*p"]:
    """KL(target || student) over the depth bins at every position, in nats.

    The target is ``soft_depth_bins`` of measured depth: no teacher here tells a distribution.
    """
    logprobs = F.log_softmax(widened(bin_logits), dim=-1)
    return F.kl_div(logprobs, widened(target_probs), reduction="none").sum(dim=-1)


def feature_error(
    projected: Float[Tensor, "*p f"], teacher: Float[Tensor, "*p f"]
) -> Float[Tensor, "*p"]:
    """Mean squared difference over the channels at every position.

    ``projected`` is W F_s, ``teacher`` the teacher's features there, normalised to zero mean and
    unit variance each: 1 is what saying nothing (0) costs.
    """
    return (widened(projected) - widened(teacher)).square().mean(dim=-1)


def cross_view_error(
    first: Float[Tensor, "*p d"], second: Float[Tensor, "*p d"], *, sign: Sign
) -> Float[Tensor, "*p"]:
    """How unlike two views' features of one place are: 1 - cos, from 0 to 2.

    ``sign="paper"`` is cos itself, as Eq. 1 of the paper prints it: minimising that pushes the
    features of one place apart, against the paper's own text. For comparison only.
    """
    likeness = F.cosine_similarity(widened(first), widened(second), dim=-1)
    return likeness if sign == "paper" else 1 - likeness


def relation_kl(logits: Float[Tensor, "*p"], target: Float[Tensor, "*p"]) -> Float[Tensor, "*p"]:
    """KL(target || student) of a relation that holds or does not, in nats.

    ``target`` is the probability that it holds, ``logits`` the student's log odds of it.
    """
    logits = widened(logits)
    target = target.to(logits.dtype)
    crossed = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = -torch.special.xlogy(target, target) - torch.special.xlogy(1 - target, 1 - target)
    return crossed - entropy


def multi_view_error(
    source: Float[Tensor, "*p"],
    target: Float[Tensor, "*p"],
    scale: Float[Tensor, "*p"],
    shift: Float[Tensor, "*p"],
) -> Float[Tensor, "*p"]:
    """Squared difference [m^2] of two views' predicted depth [m] of one place.

    ``source`` is carried into the other camera first: ``scale * source + shift [m]`` is its depth
    there (``geometry.correspond.carried_depth``).
    """
    return (scale * widened(source) + shift - widened(target)).square()


def _tail_logit(
    topk_logits: Float[Tensor, "*p k"], logsumexp: Float[Tensor, "*p"]
) -> Float[Tensor, "*p 1"]:
    """log(exp(logsumexp) - sum(exp(topk_logits))), from shares, so that nothing overflows."""
    share = (topk_logits.logsumexp(dim=-1) - logsumexp).exp()
    return (logsumexp + (1 - share).clamp(min=_LEAST_TAIL).log())[..., None]


#: The terms of the training loss by the names that configs, logs and tables use.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "text": text_loss,
    "depth_ce": depth_ce,
    "depth_reg": depth_reg,
    "depth_kl": depth_kl,
    "naming": naming_error,
    "grounding": box_error,
    "apart": measure_error,
    "measure": measure_error,
    "detection_class": focal,
    "detection_box": box_l1,
    "detection_iou": giou_error,
    "spatial_feature": feature_error,
    "spatial_views": cross_view_error,
    "spatial_relation": relation_kl,
    "multi_view": multi_view_error,
    "feature": feature_error,
}
