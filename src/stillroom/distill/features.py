"""The frozen encoder's view of every scene, computed once and memory-mapped from then on."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from stillroom.distill.pretrain_batches import cell_objects
from stillroom.geometry.poses import view0_from_world
from stillroom.records import BadInputError, Scene, View, content_hash
from stillroom.scenes.pixels import MOST_OBJECTS, object_table
from stillroom.scenes.store import SceneStore, write_atomically

if TYPE_CHECKING:
    from stillroom.students.model import StillroomStudent
    from stillroom.students.processor import StillroomProcessor

logger = logging.getLogger(__name__)

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
    # The photos themselves, where a part of the encoder is trained.
    photos: UInt8[np.ndarray, "n v 3 s s"] | None = None

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
    precision: Literal["fp32", "bf16"] = "fp32",
    progress: Progress | None = None,
) -> FeatureCache:
    """Run the encoder over scenes once and keep what the connector reads, in half precision.

    ``encoder`` names the encoder's revision: another encoder, another cache; so does whatever
    else shapes the features. Killed at any moment, the next call goes on behind the last scenes
    that were done. Of two processes that want the same cache one makes it and the other waits.

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
    names = list(_ARRAYS)
    if settings.train_depth_head:
        names.append("photos")
        shaped_by.append("photos")
    home = folder / f"features-{content_hash([*shaped_by, *scene_ids])}"
    folder.mkdir(parents=True, exist_ok=True)
    with alone(home.with_name(f".{home.name}.lock")):
        if not home.exists():
            partial = home.with_name(f".{home.name}.partial")
            partial.mkdir(exist_ok=True)
            read = _Reader(student, processor, store, precision)
            _fill(read, scene_ids, partial, progress)
            (partial / "index.json").write_text(json.dumps({"scene_ids": list(scene_ids)}))
            os.replace(partial, home)
    index = json.loads((home / "index.json").read_text())
    arrays = {name: np.load(home / f"{name}.npy", mmap_mode="r") for name in names}
    return FeatureCache(scene_ids=tuple(index["scene_ids"]), **arrays)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for, and that a killed one lets go."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another run makes %s; waiting for it", lock.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class _Reader:
    """Scenes to what the cache keeps of them."""

    student: StillroomStudent
    processor: StillroomProcessor
    store: SceneStore
    precision: str

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
            features = student.features(torch.from_numpy(photos).to(device))
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
        return read


def _fill(reader: _Reader, scene_ids: Sequence[str], home: Path, progress: Progress | None) -> None:
    """Read all scenes into the arrays of ``home``, from where an earlier call was stopped."""
    done_file = home / "done.json"
    done = json.loads(done_file.read_text()) if done_file.exists() else 0
    arrays: dict[str, np.memmap] = {}
    if done:
        arrays = {file.stem: np.load(file, mmap_mode="r+") for file in home.glob("*.npy")}
    for start in range(done, len(scene_ids), SCENES_PER_PASS):
        chosen = scene_ids[start : start + SCENES_PER_PASS]
        for name, array in reader.read(chosen).items():
            if name not in arrays:
                arrays[name] = np.lib.format.open_memmap(
                    home / f"{name}.npy",
                    mode="w+",
                    dtype=array.dtype,
                    shape=(len(scene_ids), *array.shape[1:]),
                )
            if arrays[name].shape[1:] != array.shape[1:]:
                raise BadInputError(
                    f"scenes from {chosen[0]} on have {name} of shape {array.shape[1:]}, "
                    f"those before {arrays[name].shape[1:]}; distil on scenes of one kind"
                )
            arrays[name][start : start + len(chosen)] = array
            arrays[name].flush()
        # Only what has reached the file counts as done.
        write_atomically(done_file, json.dumps(start + len(chosen)).encode())
        if progress is not None:
            progress(start + len(chosen), len(scene_ids))


def cell_ids(scene: Scene, processor: StillroomProcessor, grid: int) -> Int[Tensor, "v grid grid"]:
    """object_id of what each cell of the encoder's crop shows; 0 for walls, floor, the unknown."""
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


def cell_depth(
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
