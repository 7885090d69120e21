"""The frozen encoder's view of every scene, computed once and memory-mapped from then on.

Runs that share a folder share the scenes that they have in common, whatever else each reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from stillroom.distill.pretrain_batches import cell_objects
from stillroom.distill.scene_pack import Progress, packed
from stillroom.distill.targets import measured_depth
from stillroom.geometry.poses import view0_from_world
from stillroom.records import BadInputError, Scene, content_hash
from stillroom.scenes.pixels import MOST_OBJECTS, object_rows, object_table, shown_rows
from stillroom.scenes.store import SceneStore
from stillroom.students.connector import VisionFeatures

if TYPE_CHECKING:
    from stillroom.students.model import StillroomStudent
    from stillroom.students.processor import StillroomProcessor

#: Share of a cell that an object must cover to be the cell's.
SMALLEST_COVER = 0.2
#: What an encoder says of the photos of some scenes.
See = Callable[[Sequence[str], Float[Tensor, "b v 3 s s"]], VisionFeatures]


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """Arrays over the scenes of ``scene_ids``, in that order, pooled to the connector's grid.

    Those may be more than were asked for: ``rows`` tells where a scene is.
    """

    scene_ids: tuple[str, ...]
    # Patch tokens of the round that the connector reads.
    tokens: Float[np.ndarray, "n v p d"]
    # The encoder's own depth per cell, in its unit.
    own_depth: Float[np.ndarray, "n v g g"]
    # Measured depth [m] per cell, 0 where less than half of the cell has any.
    true_depth: Float[np.ndarray, "n v g g"]
    # Row of ``objects`` of what each cell shows, 0 for walls and floor or where nobody knows; small
    # whole numbers, which half precision holds exactly.
    cells: Float[np.ndarray, "n v g g"]
    # What is in the scene, as in ``scenes.pixels.object_table``; zeros where nobody knows.
    objects: Float[np.ndarray, "n m 8"]
    # The photos themselves, where a part of the encoder is trained.
    photos: UInt8[np.ndarray, "n v 3 s s"] | None = None
    # There too: which of their pixels ``true_depth`` is the mean of.
    measured: Bool[np.ndarray, "n v s s"] | None = None

    def rows(self, scene_ids: Sequence[str]) -> list[int]:
        """Rows of scenes, in their order."""
        place = {scene_id: row for row, scene_id in enumerate(self.scene_ids)}
        return [place[scene_id] for scene_id in scene_ids]


def cache_features(
    student: StillroomStudent,
    processor: StillroomProcessor,
    store: SceneStore,
    scene_ids: Sequence[str],
    folder: Path,
    *,
    encoder: str,
    scenes_per_pass: int,
    precision: Literal["fp32", "bf16"] = "fp32",
    see: See | None = None,
    progress: Progress | None = None,
) -> FeatureCache:
    """Run the encoder over scenes once and keep what the connector reads, in half precision.

    ``encoder`` names the encoder's revision. A scene (its id names its content) is read anew for
    another one, and for whatever else shapes the features, but not for another list of scenes.
    ``scenes_per_pass`` scenes are read together; ``see`` stands in for the student's own
    ``features``.
    Killed at any moment, the next call goes on behind the last scenes that were done; several
    calls at once share the work.

    Raises:
        BadInputError: scenes that differ in their number of views.
    """
    settings = student.config
    shaped_by = [
        encoder,
        precision,
        str(settings.round_read),
        str(settings.vision_grid),
        str(processor.image_size),
        str(processor.max_views),
    ]
    if settings.train_depth_head:
        shaped_by += ["photos", "measured"]
    pack = packed(
        folder / f"features-{content_hash(shaped_by)}",
        scene_ids,
        _Reader(student, processor, store, precision, see).read,
        at_once=scenes_per_pass,
        progress=progress,
    )
    return FeatureCache(scene_ids=pack.scene_ids, **pack.arrays)


@dataclass(frozen=True)
class _Reader:
    """Scenes to what the cache keeps of them."""

    student: StillroomStudent
    processor: StillroomProcessor
    store: SceneStore
    precision: str
    see: See | None

    @torch.no_grad()
    def read(self, scene_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The arrays of ``FeatureCache`` for a few scenes."""
        student, processor = self.student.eval(), self.processor
        scenes = [self.store.scene(scene_id) for scene_id in scene_ids]
        views = {len(processor.chosen(len(scene.views))) for scene in scenes}
        if len(views) > 1:
            raise BadInputError(
                f"the scenes have {min(views)} to {max(views)} views; distil on scenes of one "
                "number of views, or lower --student.max-views"
            )
        photos = np.stack([processor.images([v.rgb for v in scene.views]) for scene in scenes])
        device = student.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            given = torch.from_numpy(photos).to(device)
            features = student.features(given) if self.see is None else self.see(scene_ids, given)
        grid = student.config.vision_grid
        values = {
            "tokens": features.tokens,
            "own_depth": features.depth,
            "true_depth": torch.stack([cell_depth(scene, processor, grid) for scene in scenes]),
            "cells": torch.stack([cell_ids(scene, processor, grid) for scene in scenes]),
            "objects": torch.from_numpy(np.stack([_objects(scene) for scene in scenes])),
        }
        read = {name: value.to("cpu", torch.float16).numpy() for name, value in values.items()}
        if student.config.train_depth_head:
            read["photos"] = np.rint(255 * photos).astype(np.uint8)
            read["measured"] = np.stack([measured_depth(one, processor) > 0 for one in scenes])
        return read


def cell_ids(scene: Scene, processor: StillroomProcessor, grid: int) -> Int[Tensor, "v grid grid"]:
    """What each cell of the encoder's crop shows, as a row of the object table; 0 for walls, floor
    and where nobody knows."""
    rows = object_rows(scene)
    shown = [
        np.zeros(view.rgb.shape[:2], np.float32)
        if view.instances is None
        else shown_rows(view.instances, rows).astype(np.float32)
        for view in scene.views
    ]
    maps = torch.from_numpy(processor.depth(shown)).long()[None]
    return cell_objects(maps, maps.shape[-1] // grid, smallest_cover=SMALLEST_COVER)[0]


def _objects(scene: Scene) -> Float[np.ndarray, "m 8"]:
    first = scene.views[0].c2w
    if first is None:
        return np.zeros((MOST_OBJECTS, 8))
    return object_table(scene, view0_from_world(first, scene.floor_z))


def cell_depth(
    scene: Scene, processor: StillroomProcessor, grid: int
) -> Float[Tensor, "v grid grid"]:
    """Mean measured depth per cell, in the crop that the encoder sees; 0 where unmeasured."""
    maps = torch.from_numpy(measured_depth(scene, processor))
    known = (maps > 0).float()
    share = torch.nn.functional.adaptive_avg_pool2d(known, grid)
    mean = torch.nn.functional.adaptive_avg_pool2d(maps, grid) / share.clamp_min(1e-6)
    return torch.where(share >= 0.5, mean, torch.zeros_like(mean))
