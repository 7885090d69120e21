"""Labels of a micro-batch's scenes for detection, spatial, multi-view and feature terms.

Cells are numbered over all views of a scene: view by view, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillroom.distill.config import LossConfig
from stillroom.distill.targets import SceneTargets
from stillroom.geometry.correspond import carried_depth, paired
from stillroom.students.detector import BOX_NUMBERS

#: Things of a scene that are set in relation to each other: those most in sight.
MOST_RELATED = 16
#: How soft a relation is: at so many degrees of bearing, or metres, it holds with probability
#: 0.73; at twice that, the margins of the family ``orientation``, with 0.88.
SOFT_BEARING_DEG = 5.0
SOFT_M = 0.15
#: Left, right and in front are seen from the first camera: of what lies before it [m].
LEAST_AHEAD_M = 0.1


@dataclass(frozen=True, kw_only=True)
class Things:
    """What is to be detected: kinds from 1, 0 is no thing, ``UNKNOWN_KIND`` one of another kind;
    boxes in view0."""

    kind: Int[Tensor, "b m"]
    box: Float[Tensor, "b m 8"]


@dataclass(frozen=True, kw_only=True)
class Related:
    """Pairs of things and how they lie to each other."""

    # Share of each cell in the mean of each thing's cells.
    regions: Float[Tensor, "b r n"]
    # Row, first and second thing; probability that the first is left of, above, in front of it.
    pair: Int[Tensor, "q 3"]
    probs: Float[Tensor, "q 3"]
    known: Bool[Tensor, "q 3"]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Cells of two views that show one place."""

    # Row, cell, corresponding cell.
    cells: Int[Tensor, "n 3"]
    # Scale and shift [m] of the first cell's depth in the second's camera.
    carry: Float[Tensor, "n 2"]


@dataclass(frozen=True, kw_only=True)
class TeacherMaps:
    """A teacher's features of each cell, normalised."""

    features: Float[Tensor, "b v c f"]
    known: Bool[Tensor, "b v c"]
    # Of the known ones, those whose place another view shows too.
    shared: Bool[Tensor, "b v c"]


@dataclass(frozen=True, kw_only=True)
class SceneLabels:
    """All of it; None where no term asks for it or nobody made it."""

    things: Things | None = None
    related: Related | None = None
    pairs: Pairs | None = None
    teacher: TeacherMaps | None = None


def scene_labels(
    targets: SceneTargets,
    rows: Sequence[int],
    cells: Float[np.ndarray, "b v g g"],
    config: LossConfig,
    *,
    queries: int,
) -> SceneLabels:
    """Labels of the scenes in ``rows``; ``cells`` has the thing that each of theirs shows, as a row
    of the object table.

    Of more things than ``queries`` those most in sight are asked for.
    """
    order = list(rows)
    things = related = pairs = teacher = None
    table = None if targets.things is None else np.asarray(targets.things[order])
    if table is not None and config.detection:
        box = np.zeros((len(order), queries, BOX_NUMBERS), np.float32)
        kind = np.zeros((len(order), queries), np.int64)
        kept = table[:, :queries]
        box[:, : kept.shape[1]], kind[:, : kept.shape[1]] = kept[..., 2:], kept[..., 1]
        things = Things(kind=torch.from_numpy(kind), box=torch.from_numpy(box))
    if table is not None and config.spatial:
        related = _related(table, cells)
    partner = None if targets.partner is None else np.asarray(targets.partner[order])
    if partner is not None:
        pairs = _pairs(targets, order, partner)
    if targets.features is not None and targets.features_known is not None:
        known = np.asarray(targets.features_known[order])
        shared = np.zeros_like(known) if partner is None else known & paired(partner)
        teacher = TeacherMaps(
            features=torch.from_numpy(np.asarray(targets.features[order]).astype(np.float32)),
            known=torch.from_numpy(known),
            shared=torch.from_numpy(shared),
        )
    return SceneLabels(things=things, related=related, pairs=pairs, teacher=teacher)


def label_counts(labels: SceneLabels) -> dict[str, float]:
    """Labelled positions of every part; 0 where there are none."""
    kinds = None if labels.things is None else labels.things.kind
    named, things = (
        (0.0, 0.0) if kinds is None else (float((kinds > 0).sum()), float((kinds != 0).sum()))
    )
    pairs = 0.0 if labels.pairs is None else float(len(labels.pairs.cells))
    teacher = labels.teacher
    return {
        "detection_class": named,
        "detection_box": things * BOX_NUMBERS,
        "detection_iou": things,
        "spatial_feature": 0.0 if teacher is None else float(teacher.shared.sum()),
        "spatial_views": pairs,
        "spatial_relation": 0.0 if labels.related is None else float(labels.related.known.sum()),
        "multi_view": pairs,
        "feature": 0.0 if teacher is None else float(teacher.known.sum()),
    }


def relation_probs(
    first: Float[np.ndarray, "q 3"], second: Float[np.ndarray, "q 3"]
) -> tuple[Float[np.ndarray, "q 3"], Bool[np.ndarray, "q 3"]]:
    """Probability that ``first`` is left of, above, in front of ``second``; and where that is said.

    Centres in view0 [m]. Left is by bearing from the first camera and in front by y, as the family
    ``orientation`` asks, and both only of things before that camera; above is by height.
    """
    bearing = np.degrees(np.arctan2(first[:, 0], first[:, 1]))
    other = np.degrees(np.arctan2(second[:, 0], second[:, 1]))
    lead = np.stack(
        [
            (other - bearing) / SOFT_BEARING_DEG,
            (first[:, 2] - second[:, 2]) / SOFT_M,
            (second[:, 1] - first[:, 1]) / SOFT_M,
        ],
        axis=-1,
    )
    ahead = (first[:, 1] >= LEAST_AHEAD_M) & (second[:, 1] >= LEAST_AHEAD_M)
    known = np.stack([ahead, np.ones_like(ahead), ahead], axis=-1)
    # The clip keeps the exponential from overflowing; the probability is 0 or 1 by then.
    return 1 / (1 + np.exp(-np.clip(lead, -50, 50))), known


def _related(table: np.ndarray, cells: np.ndarray) -> Related:
    flat = cells.reshape(len(table), -1).astype(np.int64)
    regions = np.zeros((len(table), MOST_RELATED, flat.shape[1]), np.float32)
    pairs, first, second = [], [], []
    for row, (things, shown) in enumerate(zip(table, flat, strict=True)):
        seen = [thing for thing in things if thing[1] != 0 and (shown == int(thing[0])).any()]
        for place, thing in enumerate(seen[:MOST_RELATED]):
            covers = shown == int(thing[0])
            regions[row, place] = covers / covers.sum()
        for one in range(len(seen[:MOST_RELATED])):
            for other in range(one):
                pairs.append((row, one, other))
                first.append(seen[one][2:5])
                second.append(seen[other][2:5])
    centers = (np.array(part, dtype=np.float64).reshape(-1, 3) for part in (first, second))
    probs, known = relation_probs(*centers)
    return Related(
        regions=torch.from_numpy(regions),
        pair=torch.tensor(pairs, dtype=torch.long).reshape(-1, 3),
        probs=torch.from_numpy(probs.astype(np.float32)),
        known=torch.from_numpy(known),
    )


def _pairs(targets: SceneTargets, order: list[int], partner: np.ndarray) -> Pairs:
    assert targets.intrinsics is not None
    assert targets.c2w is not None
    count = partner.shape[-1]
    row, source, target, cell = np.nonzero(partner >= 0)
    landed = partner[row, source, target, cell].astype(np.int64)
    carry = np.zeros((len(row), 2), np.float32)
    for number, place in enumerate(order):
        mine = row == number
        if mine.any():
            moves = carried_depth(
                targets.intrinsics[place].astype(np.float64),
                targets.c2w[place].astype(np.float64),
                grid=round(count**0.5),
                height=targets.image_size,
                width=targets.image_size,
            )
            carry[mine] = moves[source[mine], target[mine], cell[mine]]
    found = np.stack([row, source * count + cell, target * count + landed], axis=-1)
    return Pairs(cells=torch.from_numpy(found), carry=torch.from_numpy(carry))
