"""What the terms beside text and depth are taught by, once per scene, memory-mapped from then on.

Things with their boxes, cells that correspond between views, and a teacher's features on the
student's grid; only what the losses that are on ask for. A few kilobytes a scene, but for features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int16

from stillroom.distill.config import LossConfig
from stillroom.distill.detection import UNKNOWN_KIND
from stillroom.distill.resample import by_patches, by_points
from stillroom.distill.scene_pack import Progress, packed
from stillroom.geometry.correspond import cell_points, correspond
from stillroom.geometry.poses import is_rigid, transform, view0_from_world, yaw_of
from stillroom.records import BadInputError, Scene, SceneFeatures, View, content_hash
from stillroom.scenes.pixels import MOST_OBJECTS, object_rows
from stillroom.scenes.rooms import CATEGORIES
from stillroom.scenes.store import SceneStore
from stillroom.students.detector import box_numbers

if TYPE_CHECKING:
    from stillroom.students.processor import StillroomProcessor

OwnDepth = Callable[[Scene], Float32[np.ndarray, "v s s"]]

#: Pixels, over all views, below which a thing is too little in sight to be asked for.
LEAST_PIXELS = 16
#: Scenes whose targets are written together.
SCENES_AT_ONCE = 32
#: Smallest edge of a box [m]: its logarithm is learnt.
_LEAST_EDGE = 0.01


@runtime_checkable
class HoldsFeatures(Protocol):
    """A label store that may hold what a teacher makes of a scene."""

    def scene_features(self, scene_id: str) -> SceneFeatures | None:
        """Features of one scene; None where they were not asked for."""
        ...


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Where a teacher's features come from, and in which frame its voxels lie."""

    store: HoldsFeatures
    # Names the labelling: another teacher, another cache.
    identity: str
    in_view0: bool = False
    width: int = 0


@dataclass(frozen=True, kw_only=True)
class SceneTargets:
    """Arrays over the scenes of ``scene_ids``, in that order; None where no term asks for them."""

    scene_ids: tuple[str, ...]
    # Things in sight, most seen first: row of the object table (-1 is none), kind (from 1; 0 is no
    # thing, ``UNKNOWN_KIND`` one of another kind), box in view0.
    things: Float32[np.ndarray, "n m 10"] | None = None
    # ``geometry.correspond.correspond``, and the cameras of the pictures as the student sees them.
    partner: Int16[np.ndarray, "n v v c"] | None = None
    intrinsics: Float32[np.ndarray, "n v 3 3"] | None = None
    c2w: Float32[np.ndarray, "n v 4 4"] | None = None
    # The teacher's features of each cell, normalised, and where there are any.
    features: Float[np.ndarray, "n v c f"] | None = None
    features_known: Bool[np.ndarray, "n v c"] | None = None
    # Edge of the pictures, in pixels.
    image_size: int = 0

    def rows(self, scene_ids: Sequence[str]) -> list[int]:
        """Rows of scenes, in their order."""
        place = {scene_id: row for row, scene_id in enumerate(self.scene_ids)}
        return [place[scene_id] for scene_id in scene_ids]


def kinds_to_tell(found: Mapping[str, int], *, most: int, least: int) -> tuple[str, ...]:
    """The kinds that a detector learns to tell apart, out of how many things of each there are.

    The made kinds where there are no others. Else those of which there are at least ``least``
    things, at most the ``most`` frequent ones, by name.

    Raises:
        BadInputError: there are too few things of every kind.
    """
    named = {kind: count for kind, count in found.items() if kind}
    if named.keys() <= set(CATEGORIES):
        return CATEGORIES
    frequent = sorted(named, key=lambda kind: (-named[kind], kind))
    kept = [kind for kind in frequent if named[kind] >= least][:most]
    if not kept:
        raise BadInputError(
            f"the scenes have {len(named)} kinds of things, but none with {least} things to learn "
            "it from; lower --student.detection-least, or leave out --losses.detection"
        )
    return tuple(sorted(kept))


def wanted(losses: LossConfig, teacher: Teacher | None) -> tuple[str, ...]:
    """The arrays that the losses ask for."""
    names: list[str] = []
    if losses.detection or losses.spatial:
        names += ["things"]
    if losses.spatial or losses.multi_view:
        names += ["partner", "intrinsics", "c2w"]
    if teacher is not None and (losses.spatial or losses.feature):
        names += ["features", "features_known"]
    return tuple(names)


def find_teacher(
    labels: object, scene_ids: Sequence[str], *, settings: dict[str, object]
) -> Teacher | None:
    """The features of a label store; None if it holds none of any of the scenes."""
    if not hasattr(labels, "scene_features"):
        return None
    for scene_id in scene_ids:
        found = labels.scene_features(scene_id)
        if found is not None:
            about = settings.get("teacher")
            frame = about.get("frame") if isinstance(about, dict) else None
            return Teacher(
                store=labels,
                identity=content_hash([json.dumps(settings, sort_keys=True, default=str)]),
                in_view0=frame == "view0",
                width=found.pooled.shape[1],
            )
    return None


def cache_targets(
    store: SceneStore,
    scene_ids: Sequence[str],
    folder: Path,
    *,
    processor: StillroomProcessor,
    grid: int,
    losses: LossConfig,
    teacher: Teacher | None = None,
    own_depth: tuple[str, OwnDepth] | None = None,
    kinds: Sequence[str] = CATEGORIES,
    progress: Progress | None = None,
) -> SceneTargets | None:
    """Targets of scenes and maybe of others, each made once in ``folder``; None where no loss asks
    for any.

    ``kinds`` are those that the student's detector tells apart.
    ``own_depth`` (a name and a function) takes the place of measured depth where cells are brought
    together.

    Raises:
        BadInputError: scenes of different numbers of views, or features of different widths.
    """
    names = wanted(losses, teacher)
    if not names:
        return None
    what = [*names, str(grid), str(processor.image_size), str(processor.max_views)]
    what += ["" if teacher is None else teacher.identity]
    what += ["measured" if own_depth is None else own_depth[0]]
    what += kinds
    depth = None if own_depth is None else own_depth[1]
    maker = _Maker(store, processor, grid, names, teacher, depth, kinds)
    pack = packed(
        folder / f"targets-{content_hash(what)}",
        scene_ids,
        maker.together,
        at_once=SCENES_AT_ONCE,
        progress=progress,
    )
    return SceneTargets(scene_ids=pack.scene_ids, image_size=processor.image_size, **pack.arrays)


@dataclass(frozen=True)
class _Maker:
    store: SceneStore
    processor: StillroomProcessor
    grid: int
    names: tuple[str, ...]
    teacher: Teacher | None
    own_depth: OwnDepth | None
    kinds: Sequence[str]

    def together(self, scene_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The arrays of several scenes, a row each."""
        rows = [self.targets(self.store.scene(scene_id)) for scene_id in scene_ids]
        if len({tuple(row[name].shape for name in self.names) for row in rows}) > 1:
            raise BadInputError(
                f"scenes {scene_ids[0]} to {scene_ids[-1]} have several numbers of views; distil "
                "on scenes of one kind"
            )
        return {name: np.stack([row[name] for row in rows]) for name in self.names}

    def targets(self, scene: Scene) -> dict[str, np.ndarray]:
        """The arrays of one scene."""
        found: dict[str, np.ndarray] = {}
        if "things" in self.names:
            found["things"] = things_in_sight(scene, self.processor, self.kinds)
        if "partner" in self.names or "features" in self.names:
            depth, intrinsics, c2w = posed_depth(scene, self.processor, self.own_depth)
        if "partner" in self.names:
            found["partner"] = correspond(depth, intrinsics, c2w, grid=self.grid)
            found["intrinsics"] = intrinsics.astype(np.float32)
            found["c2w"] = c2w.astype(np.float32)
        if "features" in self.names:
            cells, known = self._features(scene, depth, intrinsics, c2w)
            found["features"], found["features_known"] = cells.astype(np.float16), known
        return found

    def _features(
        self, scene: Scene, depth: np.ndarray, intrinsics: np.ndarray, c2w: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        assert self.teacher is not None
        views = self.processor.chosen(len(scene.views))
        width = self.teacher.width
        nothing = np.zeros((len(views), self.grid**2, width))
        features = self.teacher.store.scene_features(scene.scene_id)
        if features is None:
            return nothing, np.zeros(nothing.shape[:2], dtype=bool)
        if features.pooled.shape[1] != width:
            raise BadInputError(
                f"the teacher's features of scene {scene.scene_id} are "
                f"{features.pooled.shape[1]} wide, those before {width}; label with one teacher"
            )
        if features.patch_token is not None:
            return by_patches(features, views, grid=self.grid)
        if features.points is None:
            return nothing, np.zeros(nothing.shape[:2], dtype=bool)
        points = cell_points(depth, intrinsics, grid=self.grid)
        measured = points[..., 2] > 0
        frame = np.eye(4)
        if self.teacher.in_view0:
            first = scene.views[0].c2w
            if first is None or not is_rigid(first):
                return nothing, np.zeros(nothing.shape[:2], dtype=bool)
            frame = view0_from_world(first, scene.floor_z)
        places = [transform(frame @ pose, own) for pose, own in zip(c2w, points, strict=True)]
        return by_points(features, np.stack(places), measured)


def things_in_sight(
    scene: Scene, processor: StillroomProcessor, kinds: Sequence[str] = CATEGORIES
) -> Float32[np.ndarray, "m 10"]:
    """Rows of ``SceneTargets.things``; most seen first, zeros where there is nothing.

    Where the views tell their pixels apart a thing needs ``LEAST_PIXELS`` of them; of a scene
    without a first pose nothing is known.
    """
    table = np.zeros((MOST_OBJECTS, 10), dtype=np.float32)
    first = scene.views[0].c2w
    if first is None or not is_rigid(first):
        return table
    to_view0 = view0_from_world(first, scene.floor_z)
    pixels = _pixels_seen(scene, processor)
    known, rows = list(scene.objects), object_rows(scene)
    number = {kind: place for place, kind in enumerate(kinds, start=1)}
    if pixels is not None:
        known = [thing for thing in known if pixels.get(thing.object_id, 0) >= LEAST_PIXELS]
        known.sort(key=lambda thing: -pixels[thing.object_id])
    for row, thing in zip(table, known[:MOST_OBJECTS], strict=False):
        box = box_numbers(
            transform(to_view0, thing.box.center),
            np.maximum(thing.box.size, _LEAST_EDGE),
            yaw_of(to_view0[:3, :3] @ thing.box.rotation),
        )
        kind = number.get(thing.category, UNKNOWN_KIND)
        row[:] = [rows.get(thing.object_id, -1), kind, *box]
    return table


def _pixels_seen(scene: Scene, processor: StillroomProcessor) -> dict[int, int] | None:
    """Pixels of each object_id in all that the student sees; None where no view tells."""
    if all(view.instances is None for view in scene.views):
        return None
    blank = [np.zeros(view.rgb.shape[:2], np.float32) for view in scene.views]
    maps = [
        empty if view.instances is None else view.instances.astype(np.float32)
        for empty, view in zip(blank, scene.views, strict=True)
    ]
    ids, counts = np.unique(processor.depth(maps).astype(np.int64), return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def posed_depth(
    scene: Scene, processor: StillroomProcessor, own_depth: OwnDepth | None = None
) -> tuple[Float[np.ndarray, "v s s"], Float[np.ndarray, "v 3 3"], Float[np.ndarray, "v 4 4"]]:
    """Depth [m], intrinsics and camera-to-world poses of the pictures as the student sees them.

    A view without a pose, intrinsics or depth has depth 0 everywhere: it corresponds to nothing.
    """
    found = measured_depth(scene, processor) if own_depth is None else own_depth(scene)
    depth = found.astype(np.float64)
    views = processor.chosen(len(scene.views))
    intrinsics = np.tile(np.eye(3), (len(views), 1, 1))
    c2w = np.tile(np.eye(4), (len(views), 1, 1))
    for place, number in enumerate(views):
        view = scene.views[number]
        matrix, pose = view.intrinsics, view.c2w
        if matrix is None or pose is None or not np.isfinite(matrix).all() or not is_rigid(pose):
            depth[place] = 0.0
            continue
        intrinsics[place] = processor.intrinsics(matrix, (view.rgb.shape[0], view.rgb.shape[1]))
        c2w[place] = pose
    return depth, intrinsics, c2w


def measured_depth(scene: Scene, processor: StillroomProcessor) -> Float32[np.ndarray, "v s s"]:
    """Measured depth [m] of the pictures as the student sees them, 0 where there is none."""
    maps = [np.where(view.depth_valid, _depth_of(view), 0.0) for view in scene.views]
    return processor.depth(maps)


def _depth_of(view: View) -> np.ndarray:
    return np.zeros(view.rgb.shape[:2], np.float32) if view.depth is None else view.depth
