"""A store's pictures as memory-mapped arrays: decoded once, read at random by every training.

Cameras are moved into ``view0`` on the way. All scenes of a cache share view count and size.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, UInt8

from stillroom.geometry.poses import transform, view0_from_world
from stillroom.records import BadInputError, Scene, content_hash
from stillroom.scenes.rooms import CATEGORIES, COLOURS
from stillroom.scenes.store import SceneStore

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class PixelCache:
    """Arrays over the scenes of ``scene_ids``, in that order; lengths in metres."""

    scene_ids: tuple[str, ...]
    rgb: UInt8[np.ndarray, "n v 3 h w"]
    # z-depth, 0 where there is none.
    depth: Float[np.ndarray, "n v h w"]
    # Row of ``objects`` per pixel, 0 for walls and floor.
    instances: UInt8[np.ndarray, "n v h w"]
    # By ``object_rows``: category and colour (numbers from 1, 0 is none), centre in view0 [m], log
    # size.
    objects: Float[np.ndarray, "n m 8"]
    # Camera to view0, and intrinsics in pixels.
    c2w: Float[np.ndarray, "n v 4 4"]
    intrinsics: Float[np.ndarray, "n v 3 3"]

    def __len__(self) -> int:
        return len(self.scene_ids)


#: Rows of the object table, and which of them is that of all things that find no other.
MOST_OBJECTS = 64
OTHERS = MOST_OBJECTS - 1

_ARRAYS = {
    "rgb": np.uint8,
    "depth": np.float16,
    "instances": np.uint8,
    "objects": np.float32,
    "c2w": np.float32,
    "intrinsics": np.float32,
}


def cache_pixels(
    store: SceneStore, folder: Path, *, split: str | None, progress: Progress | None = None
) -> PixelCache:
    """Decode the scenes of a split into ``folder``, or open what an earlier run decoded.

    Raises:
        BadInputError: no scene in the split, a view without depth or pose, or views of
            different number or size.
    """
    ids = store.scene_ids(split)
    if not ids:
        raise BadInputError(f"{store.path} holds no scene of the split {split!r}")
    home = folder / f"pixels-{split or 'all'}-{content_hash(ids)}"
    if not home.exists():
        _decode(store, ids, home, progress)
    index = json.loads((home / "index.json").read_text())
    arrays = {name: np.load(home / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    return PixelCache(scene_ids=tuple(index["scene_ids"]), **arrays)


def _decode(store: SceneStore, ids: list[str], home: Path, progress: Progress | None) -> None:
    partial = home.with_name(f".{home.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arrays: dict[str, np.memmap] = {}
    for row, scene_id in enumerate(ids):
        values = _scene_arrays(store.scene(scene_id))
        for name, value in values.items():
            if name not in arrays:
                arrays[name] = np.lib.format.open_memmap(
                    partial / f"{name}.npy",
                    mode="w+",
                    dtype=_ARRAYS[name],
                    shape=(len(ids), *value.shape),
                )
            if arrays[name].shape[1:] != value.shape:
                raise BadInputError(
                    f"scene {scene_id} has {name} of shape {value.shape}, the scenes before it "
                    f"{arrays[name].shape[1:]}; train on scenes of one kind"
                )
            arrays[name][row] = value
        if progress is not None:
            progress(row + 1, len(ids))
    for array in arrays.values():
        array.flush()
    (partial / "index.json").write_text(json.dumps({"scene_ids": ids}))
    try:
        os.replace(partial, home)
    except OSError:
        # Another run decoded the same scenes meanwhile; its copy is as good.
        if not (home / "index.json").is_file():
            raise
        shutil.rmtree(partial)


def _scene_arrays(scene: Scene) -> dict[str, np.ndarray]:
    first = scene.views[0]
    if first.c2w is None:
        raise BadInputError(f"scene {scene.scene_id} has no poses; training needs posed views")
    to_view0 = view0_from_world(first.c2w, scene.floor_z)
    depth, poses, intrinsics, instances = [], [], [], []
    rows = object_rows(scene)
    for view in scene.views:
        if view.depth is None or view.c2w is None or view.intrinsics is None:
            raise BadInputError(
                f"scene {scene.scene_id}, view {view.name}: training needs depth, pose and "
                "intrinsics in every view"
            )
        depth.append(np.where(view.depth_valid, view.depth, 0.0))
        poses.append(to_view0 @ view.c2w)
        intrinsics.append(view.intrinsics)
        blank = np.zeros(view.rgb.shape[:2], dtype=np.uint8)
        instances.append(blank if view.instances is None else shown_rows(view.instances, rows))
    return {
        "rgb": np.stack([view.rgb.transpose(2, 0, 1) for view in scene.views]),
        "depth": np.stack(depth),
        "instances": np.stack(instances),
        "objects": object_table(scene, to_view0),
        "c2w": np.stack(poses),
        "intrinsics": np.stack(intrinsics),
    }


def object_names(table: Float[np.ndarray, "m 8"]) -> dict[str, int]:
    """Row by "colour category" of an object table; what two things share names neither."""
    found: dict[str, list[int]] = {}
    for object_id, (kind, colour) in enumerate(table[:, :2].astype(int).tolist()):
        if kind and colour:
            name = f"{COLOURS[colour - 1]} {CATEGORIES[kind - 1]}"
            found.setdefault(name, []).append(object_id)
    return {name: ids[0] for name, ids in found.items() if len(ids) == 1}


def object_rows(scene: Scene) -> dict[int, int]:
    """Row of the object table by object_id, for any ids: the id itself where all are small.

    Else rows are given out to the things most in sight first; what finds none is not in it.
    """
    shown: dict[int, int] = {thing.object_id: 0 for thing in scene.objects}
    for view in scene.views:
        if view.instances is not None:
            ids, counts = np.unique(view.instances, return_counts=True)
            for object_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
                shown[object_id] = shown.get(object_id, 0) + count
    shown.pop(0, None)
    if all(object_id < MOST_OBJECTS for object_id in shown):
        return {object_id: object_id for object_id in shown}
    listed = {thing.object_id for thing in scene.objects}
    best = sorted(shown, key=lambda one: (one not in listed, -shown[one], one))
    return {object_id: row for row, object_id in enumerate(best[: OTHERS - 1], start=1)}


def shown_rows(
    instances: Integer[np.ndarray, "h w"], rows: Mapping[int, int]
) -> UInt8[np.ndarray, "h w"]:
    """Row of the object table per pixel: 0 where there is no thing, ``OTHERS`` for one without."""
    ids, where = np.unique(instances, return_inverse=True)
    mine = [rows.get(one, OTHERS) if one else 0 for one in ids.tolist()]
    return np.array(mine, dtype=np.uint8)[where].reshape(instances.shape)


def object_table(scene: Scene, to_view0: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "m 8"]:
    """By ``object_rows``: category and colour (from 1, 0 is none or unknown), centre in view0 [m],
    log size [m]."""
    table = np.zeros((MOST_OBJECTS, 8))
    rows = object_rows(scene)
    for thing in scene.objects:
        if thing.object_id not in rows:
            continue
        category = CATEGORIES.index(thing.category) + 1 if thing.category in CATEGORIES else 0
        colour = COLOURS.index(thing.colour) + 1 if thing.colour in COLOURS else 0
        center = transform(to_view0, thing.box.center)
        table[rows[thing.object_id]] = [category, colour, *center, *np.log(thing.box.size)]
    return table
