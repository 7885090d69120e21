"""The frozen encoder's view of every scene, computed once and memory-mapped from then on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillroom.distill.pretrain_batches import cell_objects
from stillroom.geometry.poses import view0_from_world
from stillroom.records import BadInputError, Scene, View, content_hash
from stillroom.scenes.pixels import MOST_OBJECTS, object_table
from stillroom.scenes.store import SceneStore

if TYPE_CHECKING:
    from stillroom.students.model import StillroomStudent
    from stillroom.students.processor import StillroomProcessor

Progress = Callable[[int, int], None]

#: Share of a cell that an object must cover to be the cell's.
SMALLEST_COVER = 0.2
#: Scenes that share one encoder pass while the cache is made.
SCENES_PER_PASS = 8


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """Arrays over the scenes of ``scene_ids``, in that order, pooled to the connector's grid."""

    scene_ids: tuple[str, ...]
    # Patch tokens of the round that the connector reads.
    tokens: Float[np.ndarray, "n v p d"]
    # The encoder's own depth [m] per cell.
    own_depth: Float[np.ndarray, "n v g g"]
    # Measured depth [m] per cell, 0 where less than half of the cell has any.
    true_depth: Float[np.ndarray, "n v g g"]
    # object_id of what each cell shows, 0 for walls and floor or where nobody knows; small whole
    # numbers, which half precision holds exactly.
    cells: Float[np.ndarray, "n v g g"]
    # What is in the scene, as in ``scenes.pixels.object_table``; zeros where nobody knows.
    objects: Float[np.ndarray, "n m 8"]

    def rows(self, scene_ids: Sequence[str]) -> list[int]:
        """Rows of scenes, in their order."""
        place = {scene_id: row for row, scene_id in enumerate(self.scene_ids)}
        return [place[scene_id] for scene_id in scene_ids]


_ARRAYS = ("tokens", "own_depth", "true_depth", "cells", "objects")


def cache_features(
    student: StillroomStudent,
    processor: StillroomProcessor,
    store: SceneStore,
    scene_ids: Sequence[str],
    folder: Path,
    *,
    encoder: str,
    progress: Progress | None = None,
) -> FeatureCache:
    """Run the encoder over scenes once and keep what the connector reads, in half precision.

    ``encoder`` names the encoder's revision: another encoder, another cache.
    """
    home = folder / f"features-{content_hash([encoder, *scene_ids])}"
    if not home.exists():
        partial = home.with_name(f".{home.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _fill(student, processor, store, scene_ids, partial, progress)
        (partial / "index.json").write_text(json.dumps({"scene_ids": list(scene_ids)}))
        os.replace(partial, home)
    index = json.loads((home / "index.json").read_text())
    arrays = {name: np.load(home / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    return FeatureCache(scene_ids=tuple(index["scene_ids"]), **arrays)


@torch.no_grad()
def _fill(
    student: StillroomStudent,
    processor: StillroomProcessor,
    store: SceneStore,
    scene_ids: Sequence[str],
    home: Path,
    progress: Progress | None,
) -> None:
    student.eval()
    arrays: dict[str, np.memmap] = {}
    for start in range(0, len(scene_ids), SCENES_PER_PASS):
        scenes = [store.scene(key) for key in scene_ids[start : start + SCENES_PER_PASS]]
        photos = np.stack([processor.images([v.rgb for v in scene.views]) for scene in scenes])
        features = student.features(torch.from_numpy(photos).to(student.device))
        grid = student.config.vision_grid
        values = {
            "tokens": features.tokens,
            "own_depth": features.depth,
            "true_depth": torch.stack([_true_depth(scene, processor, grid) for scene in scenes]),
            "cells": torch.stack([_cells(scene, processor, grid) for scene in scenes]),
            "objects": torch.from_numpy(np.stack([_objects(scene) for scene in scenes])),
        }
        for name, value in values.items():
            array = value.to("cpu", torch.float16).numpy()
            if name not in arrays:
                shape = (len(scene_ids), *array.shape[1:])
                arrays[name] = np.lib.format.open_memmap(
                    home / f"{name}.npy", mode="w+", dtype=np.float16, shape=shape
                )
            if arrays[name].shape[1:] != array.shape[1:]:
                raise BadInputError(
                    f"scenes from {scene_ids[start]} on have {name} of shape {array.shape[1:]}, "
                    f"those before {arrays[name].shape[1:]}; distil on scenes of one kind"
                )
            arrays[name][start : start + len(scenes)] = array
        if progress is not None:
            progress(start + len(scenes), len(scene_ids))
    for array in arrays.values():
        array.flush()


def _cells(scene: Scene, processor: StillroomProcessor, grid: int) -> Int[Tensor, "v grid grid"]:
    shown = [
        np.zeros(view.rgb.shape[:2], np.float32)
        if view.instances is None
        else view.instances.astype(np.float32)
        for view in scene.views
    ]
    maps = torch.from_numpy(processor.depth(shown)).long()[None]
    return cell_objects(maps, maps.shape[-1] // grid, smallest_cover=SMALLEST_COVER)[0]


def _objects(scene: Scene) -> Float[np.ndarray, "m 8"]:
    first = scene.views[0].c2w
    if first is None:
        return np.zeros((MOST_OBJECTS, 8))
    return object_table(scene, view0_from_world(first, scene.floor_z))


def _true_depth(
    scene: Scene, processor: StillroomProcessor, grid: int
) -> Float[Tensor, "v grid grid"]:
    """Mean measured depth per cell, in the crop that the encoder sees; 0 where unmeasured."""
    measured = [np.where(view.depth_valid, _depth_of(view), 0.0) for view in scene.views]
    maps = torch.from_numpy(processor.depth(measured))
    known = (maps > 0).float()
    share = torch.nn.functional.adaptive_avg_pool2d(known, grid)
    mean = torch.nn.functional.adaptive_avg_pool2d(maps, grid) / share.clamp_min(1e-6)
    return torch.where(share >= 0.5, mean, torch.zeros_like(mean))


def _depth_of(view: View) -> Float[np.ndarray, "h w"]:
    return np.zeros(view.rgb.shape[:2], np.float32) if view.depth is None else view.depth
