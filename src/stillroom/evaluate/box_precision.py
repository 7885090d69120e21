"""Average precision of the boxes that a row finds, with its interval over scenes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from stillroom.evaluate.box_metrics import Detection, Truth, class_hits, precision_area
from stillroom.evaluate.intervals import Resampler, interval_of
from stillroom.geometry.poses import view0_from_world
from stillroom.records import OrientedBox, Scene, SceneGeometry

#: A box is found where it overlaps the true one by more than this (ScanNet's two thresholds).
THRESHOLDS = (0.25, 0.5)
SCORER = "box-ap/votenet-1"


def box_rows(row: str, scene: Scene, said: SceneGeometry | None) -> Iterator[dict[str, Any]]:
    """The boxes that a row finds in a scene and those that are there, both in view0 [m].

    Nothing where the row does not say how sure it is of its boxes, or the things are unknown.
    """
    first = scene.views[0].c2w
    if said is None or len(said.boxes) != len(said.box_scores):
        return
    if first is None or not scene.objects:
        return
    try:
        turn = view0_from_world(first, scene.floor_z)
    except ValueError:  # the first camera looks straight up or down: there is no view0
        return
    for kind, box, score in [
        *((kind, box, sure) for (kind, box), sure in zip(said.boxes, said.box_scores, strict=True)),
        *((thing.category, moved(thing.box, turn), None) for thing in scene.objects),
    ]:
        yield {
            "model": row,
            "scene_id": scene.scene_id,
            "kind": kind,
            "center": np.asarray(box.center).tolist(),
            "size": np.asarray(box.size).tolist(),
            "rotation": np.asarray(box.rotation).flatten().tolist(),
            "score": score,
        }


def moved(box: OrientedBox, turn: Float[np.ndarray, "4 4"]) -> OrientedBox:
    """A box in another frame."""
    return OrientedBox(
        center=turn[:3, :3] @ box.center + turn[:3, 3],
        size=box.size,
        rotation=turn[:3, :3] @ box.rotation,
    )


def box_table(lines: pa.Table, resampler: Resampler) -> dict[str, Any]:
    """{threshold: {"map", "low", "high", "n", "scorer", "classes"}}; empty where no box was found.

    mAP is the mean over the kinds that are truly there; ``n`` counts their boxes. A draw of the
    scenes leaves out kinds that it has none of.
    """
    truth: dict[str, list[tuple[str, OrientedBox]]] = {}
    found: dict[str, list[Detection]] = {}
    for line in lines.to_pylist():
        box = OrientedBox(
            center=np.array(line["center"]),
            size=np.array(line["size"]),
            rotation=np.array(line["rotation"]).reshape(3, 3),
        )
        if line["score"] is None:
            truth.setdefault(line["scene_id"], []).append((line["kind"], box))
        else:
            one = Detection(label=line["kind"], box=box, score=line["score"])
            found.setdefault(line["scene_id"], []).append(one)
    if not found:
        return {}
    return {f"{t:g}": _precision(truth, found, resampler, threshold=t) for t in THRESHOLDS}


def _precision(
    truth: Truth,
    found: Mapping[str, list[Detection]],
    resampler: Resampler,
    *,
    threshold: float,
) -> dict[str, Any]:
    classes: dict[str, Any] = {}
    draws = []
    for label in sorted({label for boxes in truth.values() for label, _ in boxes}):
        hits, places, there = class_hits(label, truth, found, threshold=threshold)
        n, scenes = sum(there.values()), list(there)
        known = resampler.counts(scenes) @ np.array([there[scene] for scene in scenes])  # [draws]
        classes[label] = {"ap": float(precision_area(hits, n)), "n": n}
        draws.append(precision_area(hits, known, weights=resampler.counts(places)))
    low, high = interval_of(np.nanmean(np.stack(draws), axis=0))
    return {
        "map": float(np.mean([one["ap"] for one in classes.values()])),
        "low": low,
        "high": high,
        "n": sum(one["n"] for one in classes.values()),
        "scorer": SCORER,
        "classes": classes,
    }
