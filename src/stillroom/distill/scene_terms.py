"""Sums of the detection, spatial, multi-view and feature terms over a micro-batch.

All heads read the connector's tokens, which the language model reads too: so each of these losses
reaches what an answer is made from.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from stillroom.distill.config import LossConfig
from stillroom.distill.detection import UNKNOWN_KIND, UNMATCHED, box_l1, focal, giou_error, match
from stillroom.distill.losses import (
    cross_view_error,
    feature_error,
    masked_sum,
    multi_view_error,
    relation_kl,
)
from stillroom.distill.scene_labels import Pairs, Related, SceneLabels, TeacherMaps, Things
from stillroom.students.detector import Detections
from stillroom.students.model import StillroomStudent


def scene_terms(
    student: StillroomStudent,
    cells: Float[Tensor, "b v c d"],
    bin_logits: Float[Tensor, "b v g g bins"] | None,
    labels: SceneLabels,
    config: LossConfig,
) -> dict[str, Tensor]:
    """Sums by part, of the terms that are on; ``label_counts`` has what to divide them by.

    ``bin_logits`` are those of the depth head; multi-view needs them.
    """
    found: dict[str, Tensor] = {}
    if config.detection and labels.things is not None and student.detector is not None:
        found |= detection_sums(
            student.detector(cells), labels.things, iou=config.detection_iou > 0
        )
    if config.spatial and labels.related is not None:
        found["spatial_relation"] = _relation_sum(student, cells, labels.related)
    if config.spatial and config.cross_view and labels.pairs is not None:
        first, second = _ends(cells.flatten(1, 2), labels.pairs)
        found["spatial_views"] = cross_view_error(first, second, sign=config.sign).sum()
    if config.multi_view and labels.pairs is not None and bin_logits is not None:
        depth = student.depth_bins.expected(bin_logits).flatten(1)
        first, second = _ends(depth, labels.pairs)
        found["multi_view"] = multi_view_error(first, second, *labels.pairs.carry.unbind(-1)).sum()
    if labels.teacher is not None and student.feature_projector is not None:
        found |= _feature_sums(student.feature_projector(cells), labels.teacher, config)
    return found


def detection_sums(said: Detections, things: Things, *, iou: bool) -> dict[str, Tensor]:
    """Class of every guess, box of the matched ones; scenes without a known thing teach nothing.

    A guess matched with a thing of ``UNKNOWN_KIND`` has no class to learn: it is not none.

    All three are divided by the number of things (the box by its numbers), as is usual: most
    guesses are none, and the more of them there are, the less a mean over guesses says.
    """
    which = match(said.logits, said.box, things.kind, things.box)
    kind = things.kind.gather(1, which.clamp_min(0)).where(which != UNMATCHED, 0)
    told = (things.kind != 0).any(dim=1, keepdim=True) & (kind != UNKNOWN_KIND)
    kind = kind.clamp_min(0)
    row, guess = (which != UNMATCHED).nonzero(as_tuple=True)
    mine, true = said.box[row, guess], things.box[row, which[row, guess]]
    sums = {
        "detection_class": masked_sum(focal(said.logits, kind), told),
        "detection_box": box_l1(mine, true).sum(),
    }
    return sums | {"detection_iou": giou_error(mine, true).sum()} if iou else sums


def _relation_sum(student: StillroomStudent, cells: Tensor, related: Related) -> Tensor:
    assert student.relations is not None, "losses.spatial makes a student with this head"
    regions = related.regions.to(cells.dtype) @ cells.flatten(1, 2)  # [b r d]
    row, first, second = related.pair.T
    logits = student.relations(regions[row, first], regions[row, second])
    return masked_sum(relation_kl(logits, related.probs), related.known)


def _feature_sums(
    projected: Float[Tensor, "b v c f"], teacher: TeacherMaps, config: LossConfig
) -> dict[str, Tensor]:
    error = feature_error(projected, teacher.features)
    found = {}
    if config.feature:
        found["feature"] = masked_sum(error, teacher.known)
    if config.spatial:
        found["spatial_feature"] = masked_sum(error, teacher.shared)
    return found


def _ends(values: Float[Tensor, "b n *d"], pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The values at both cells of every pair."""
    row, first, second = pairs.cells.T
    return values[row, first], values[row, second]
