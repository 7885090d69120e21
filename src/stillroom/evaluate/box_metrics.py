"""Oriented boxes: exact overlap of any two, average precision at a threshold, F1 without scores.

Boxes are ``records.OrientedBox``: metres, full edge lengths, any rotation. Foreign conventions are
made into them by ``yaw_box`` and ``euler_box``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.transform import Rotation

from stillroom.geometry.boxes import CORNER_SIGNS, EDGES
from stillroom.records import OrientedBox

AP_ID = "oriented-ap/votenet-all-points"
IOU_ID = "oriented-iou/exact"
F1_ID = "oriented-f1/greedy-by-iou"
THRESHOLDS = (0.25, 0.5)

# How far outside a face a point still counts as on it, as a share of the edge [1].
_ON_FACE = 1e-9


def yaw_box(
    center: Sequence[float | int], size: Sequence[float | int], yaw: float | int
) -> OrientedBox:
    """A box turned about z alone: counter-clockwise by ``yaw`` radians, seen from above."""
    return OrientedBox(
        center=np.array(center, dtype=np.float64),
        size=np.array(size, dtype=np.float64),
        rotation=Rotation.from_euler("Z", yaw).as_matrix(),
    )


def euler_box(numbers: Sequence[float | int]) -> OrientedBox:
    """A 9-number box (EmbodiedScan, VG-LLM): centre, full size, *intrinsic* Z-X-Y angles [rad].

    VG-LLM's own scorer makes boxes with extrinsic z-x-y angles; the two agree only where just the
    first angle is not 0.
    """
    if len(numbers) != 9:
        raise ValueError(f"a 9-number box has 9 numbers, got {len(numbers)}")
    return OrientedBox(
        center=np.array(numbers[:3], dtype=np.float64),
        size=np.array(numbers[3:6], dtype=np.float64),
        rotation=Rotation.from_euler("ZXY", list(numbers[6:])).as_matrix(),
    )


def oriented_iou(one: OrientedBox, other: OrientedBox) -> float:
    """Volume of the intersection over volume of the union, 0..1; boxes of no volume overlap 0.

    The intersection is the hull of the corners of each inside the other and of where the edges of
    one pass through the faces of the other.
    """
    volumes = [float(np.prod(box.size)) for box in (one, other)]
    apart = np.linalg.norm(one.center - other.center)
    reach = 0.5 * (np.linalg.norm(one.size) + np.linalg.norm(other.size))
    if min(volumes) <= 0 or apart >= reach:
        return 0.0
    points = np.concatenate([_cut_points(one, other), _cut_points(other, one)])
    shared = min(_hull_volume(points), *volumes)
    return shared / (sum(volumes) - shared)


def _cut_points(box: OrientedBox, other: OrientedBox) -> Float[np.ndarray, "n 3"]:
    """Corners of ``box`` inside ``other``, and its edges' crossings of the faces of ``other``."""
    corners = CORNER_SIGNS * box.size @ box.rotation.T + box.center
    # In the frame of the other, in units of its half edges: inside is -1..1 on every axis.
    local = (corners - other.center) @ other.rotation / (0.5 * other.size)
    start, end = local[[a for a, _ in EDGES]], local[[b for _, b in EDGES]]
    step = end - start
    # An edge along a face never passes through it: it gets a place outside 0..1.
    moves = np.where(step == 0, 1.0, step)
    along = np.stack(
        [np.where(step == 0, -1.0, (side - start) / moves) for side in (-1.0, 1.0)]
    )  # [side edge axis]
    crossings = start[None, :, None] + along[..., None] * step[None, :, None]
    met = (along >= 0) & (along <= 1)
    found = np.concatenate([local, crossings[met]])
    kept = found[_inside(found)]
    return kept * (0.5 * other.size) @ other.rotation.T + other.center


def _inside(local: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "n"]:
    return np.abs(local).max(axis=1) <= 1.0 + _ON_FACE


def _hull_volume(points: Float[np.ndarray, "n 3"]) -> float:
    if len(points) < 4:
        return 0.0
    try:
        return float(ConvexHull(points).volume)
    except QhullError:  # all in one plane: they touch and share no volume
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One predicted box; ``score`` orders the predictions."""

    label: str
    box: OrientedBox
    score: float | int


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Average precision of one class, and the recall that all its predictions reach."""

    ap: float
    recall: float
    n: int


Truth = Mapping[str, Sequence[tuple[str, OrientedBox]]]


def average_precision(
    truth: Truth, predictions: Mapping[str, Sequence[Detection]], *, threshold: float
) -> dict[str, Precision]:
    """AP of each class that the truth has, over scenes; ``mean_ap`` of them is mAP.

    VoteNet's rule: predictions of a class in all scenes by falling score; a hit is strictly above
    the threshold with the box of that class in that scene which it overlaps most, and a box
    already taken makes it a miss; area under the precision envelope, all points. A class never
    predicted scores 0, one that the truth lacks is left out.
    """
    labels = sorted({label for boxes in truth.values() for label, _ in boxes})
    if not labels:
        raise ValueError("the truth holds no box: average precision has no value")
    return {label: _class_precision(label, truth, predictions, threshold) for label in labels}


def mean_ap(classes: Mapping[str, Precision]) -> float:
    """Mean over classes."""
    return float(np.mean([one.ap for one in classes.values()]))


def _class_precision(
    label: str, truth: Truth, predictions: Mapping[str, Sequence[Detection]], threshold: float
) -> Precision:
    hits, _, there = class_hits(label, truth, predictions, threshold=threshold)
    count = sum(there.values())
    area = float(precision_area(hits, count))
    return Precision(ap=area, recall=float(hits.sum()) / count, n=count)


def class_hits(
    label: str, truth: Truth, predictions: Mapping[str, Sequence[Detection]], *, threshold: float
) -> tuple[Float[np.ndarray, "n"], list[str], dict[str, int]]:
    """Predictions of a class by falling score: which hit (1 or 0), and in which scene; and how many
    boxes of the class each scene has."""
    wanted = {
        scene: [box for name, box in boxes if name == label] for scene, boxes in truth.items()
    }
    said = [(scene, one) for scene, found in predictions.items() for one in found]
    said = [(scene, one) for scene, one in said if one.label == label]
    said.sort(key=lambda pair: -pair[1].score)
    taken: set[tuple[str, int]] = set()
    hits = np.zeros(len(said))
    for i, (scene, one) in enumerate(said):
        overlaps = [oriented_iou(one.box, box) for box in wanted.get(scene, ())]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best >= 0 and overlaps[best] > threshold and (scene, best) not in taken:
            taken.add((scene, best))
            hits[i] = 1.0
    there = {scene: len(boxes) for scene, boxes in wanted.items() if boxes}
    return hits, [scene for scene, _ in said], there


def precision_area(
    hits: Float[np.ndarray, "n"],
    count: int | Float[np.ndarray, "*d"],
    *,
    weights: Float[np.ndarray, "*d n"] | None = None,
) -> Float[np.ndarray, "*d"]:
    """Area under the precision envelope, from the hits in the order of falling score.

    ``weights`` say how often each prediction counts, ``count`` how many true boxes there are then;
    not a number where there is none.
    """
    weights = np.ones_like(hits) if weights is None else weights
    right, said = np.cumsum(weights * hits, axis=-1), np.cumsum(weights, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right / np.asarray(count, dtype=np.float64)[..., None]
    precision = right / np.maximum(said, 1e-12)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    area: Float[np.ndarray, "*d"] = np.sum(
        np.diff(recall, axis=-1, prepend=0.0) * envelope, axis=-1
    )
    return np.where(np.asarray(count) > 0, area, np.nan)


def detection_f1(truth: Truth, predictions: Truth, *, threshold: float) -> dict[str, float]:
    """Precision, recall and F1 over all scenes, for models whose boxes have no score: never mAP.

    Pairs of equal class are matched greedily by falling IoU, from the threshold on (``>=``).
    """
    right = said = known = 0
    for scene in {*truth, *predictions}:
        wanted, found = truth.get(scene, ()), predictions.get(scene, ())
        known, said = known + len(wanted), said + len(found)
        right += _matched(wanted, found, threshold)
    if known == 0:
        raise ValueError("the truth holds no box: F1 has no value")
    precision, recall = (right / said if said else 0.0), right / known
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "n": float(known)}


def _matched(
    wanted: Sequence[tuple[str, OrientedBox]],
    found: Sequence[tuple[str, OrientedBox]],
    threshold: float,
) -> int:
    pairs = [
        (oriented_iou(box, other), i, j)
        for i, (label, box) in enumerate(wanted)
        for j, (name, other) in enumerate(found)
        if label == name
    ]
    taken: set[tuple[str, int]] = set()
    count = 0
    for overlap, i, j in sorted(pairs, reverse=True):
        if overlap >= threshold and not taken & {("truth", i), ("said", j)}:
            taken |= {("truth", i), ("said", j)}
            count += 1
    return count
