"""Plain photos for teachers that need depth and poses: an encoder's, upright and in metres.

What a photo does not tell is taken from how photos are taken: on the whole cameras are held
upright, and about at eye level.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from stillroom.geometry.poses import view0_from_world
from stillroom.records import (
    BadInputError,
    FeatureTeacher,
    Question,
    Scene,
    SceneBatchTeacher,
    SceneFeatures,
    Signal,
    Teacher,
    TeacherLabel,
    View,
)
from stillroom.scenes.importers.floor import floor_height, surface_patches

logger = logging.getLogger(__name__)

#: Where a scene's depth and poses come from; the mark of its label rows.
Geometry = Literal["given", "predicted"]
#: What a scene's ``source`` ends with when its geometry is an encoder's.
PREDICTED = "+predicted"
#: Where the unit of an encoder is unknown, the cameras' median height above the floor [m].
EYE_LEVEL = 1.5
#: Where that does not help either, the median depth [m].
TYPICAL_DEPTH = 2.5
#: Cones around the direction held to be up, in degrees, whose surfaces say where up really is:
#: the first is as wide as people tilt their cameras.
CONES_DEG = (40.0, 25.0, 15.0, 10.0)
#: Fewer level surface patches than this say nothing.
FEWEST_PATCHES = 50


@runtime_checkable
class GeometryEncoder(Protocol):
    """Tells depth, intrinsics and poses of photos (``students/encoders/photo_geometry.py``)."""

    #: Whether its lengths are metres.
    metric: bool

    def __call__(self, views: Sequence[View]) -> Sequence[View]:
        """The views with geometry filled in, poses in the first camera's frame."""
        ...


def geometry_of(scene: Scene) -> Geometry:
    """Whose a scene's depth and poses are, as its source says."""
    return "predicted" if scene.source.endswith(PREDICTED) else "given"


def has_geometry(scene: Scene) -> bool:
    """Whether any view has depth, pose and intrinsics."""
    return any(
        view.depth is not None and view.c2w is not None and view.intrinsics is not None
        for view in scene.views
    )


def predict_geometry(scene: Scene, encoder: GeometryEncoder) -> Scene:
    """The scene with an encoder's depth, poses and intrinsics in all views, upright, in metres.

    Its world is ``view0``: origin below the first camera on the floor, y where that looks, z up.
    Up is the mean direction of level surfaces within a narrowing cone around the cameras' mean up;
    the floor is the lowest level surface seen well (``importers/floor.py``). An encoder without a
    unit is scaled so that the median camera is ``EYE_LEVEL`` above the floor. What was known in
    the old frame (objects, room size) is left out.

    Raises:
        BadInputError: the scene has no photo, or the encoder tells no usable geometry.
    """
    if not scene.views:
        raise BadInputError(f"scene {scene.scene_id} has no photo to predict geometry from")
    views = list(encoder(scene.views))
    if not all(_usable(view) for view in views):
        raise BadInputError(
            f"the encoder tells no usable depth and poses for scene {scene.scene_id}; "
            "are its photos of one room?"
        )
    views = _moved(views, _turned_up(views))
    if not encoder.metric:
        views = _scaled(views, _metres_per_unit(views))
    floor, notes = floor_height(views)
    if notes:
        # Nothing level is seen: the floor is put below the camera at eye level.
        floor = float(np.median([_position(view)[2] for view in views])) - EYE_LEVEL
        logger.warning(
            "scene %s: no floor seen; cameras are taken to be %.1f m above it",
            scene.scene_id,
            EYE_LEVEL,
        )
    return replace(
        scene,
        source=scene.source.removesuffix(PREDICTED) + PREDICTED,
        views=tuple(_moved(views, view0_from_world(_pose(views[0]), floor))),
        objects=(),
        floor_z=0.0,
        room_size=None,
    )


def up_direction(views: Sequence[View]) -> Float[np.ndarray, "3"]:
    """Up, in the frame of the views' poses: a unit vector."""
    up = _unit(sum((-_pose(view)[:3, 1] for view in views), start=np.zeros(3)))
    normals = np.concatenate([surface_patches(view)[1] for view in views])
    for cone in CONES_DEG:
        level = normals[normals @ up > np.cos(np.radians(cone))]
        if len(level) < FEWEST_PATCHES:
            break
        up = _unit(level.mean(axis=0))
    return up


class PredictedGeometry:
    """A teacher that needs depth and poses, given an encoder's where a scene has none.

    Scenes with geometry of their own pass as they are; so does everything else.
    """

    def __init__(self, teacher: Teacher, encoder: GeometryEncoder) -> None:
        self.teacher, self.encoder = teacher, encoder
        self._last: tuple[Scene, Scene] | None = None

    def seen(self, scene: Scene) -> Scene:
        """The scene as the teacher gets it."""
        if has_geometry(scene):
            return scene
        if self._last is None or self._last[0] is not scene:
            self._last = scene, predict_geometry(scene, self.encoder)
        return self._last[1]

    def geometry_of(self, scene: Scene) -> Geometry:
        """The mark of a scene's label rows, told without predicting anything."""
        return geometry_of(scene) if has_geometry(scene) else "predicted"

    def open(self, scene: Scene) -> Any:
        """The teacher's session of the scene."""
        teacher: Any = self.teacher
        return teacher.open(self.seen(scene))

    def label(
        self, scene: Scene, questions: Sequence[Question], signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        """What the teacher says of the scene with geometry."""
        return self.teacher.label(self.seen(scene), questions, signals)

    def label_scenes(
        self, asked: Iterable[tuple[Scene, Sequence[Question]]], signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        """Several scenes at once where the teacher can, one by one where it cannot."""
        if isinstance(self.teacher, SceneBatchTeacher):
            return self.teacher.label_scenes(self._all_seen(asked), signals)
        return [label for one in asked for label in self.label(*one, signals)]

    def scene_features(self, scene: Scene) -> SceneFeatures:
        """The teacher's features of the scene with geometry.

        Raises:
            BadInputError: the teacher has none.
        """
        if not isinstance(self.teacher, FeatureTeacher):
            raise BadInputError(
                "this teacher gives no scene features; label without --signals scene_features"
            )
        return self.teacher.scene_features(self.seen(scene))

    def _all_seen(
        self, asked: Iterable[tuple[Scene, Sequence[Question]]]
    ) -> Iterator[tuple[Scene, Sequence[Question]]]:
        for scene, questions in asked:
            yield self.seen(scene), questions


# Frames. ----------------------------------------------------------------------------------------


def _turned_up(views: Sequence[View]) -> Float[np.ndarray, "4 4"]:
    """The rotation that takes up to z, and the first camera's right as near as it goes to x."""
    up = up_direction(views)
    right = _pose(views[0])[:3, 0]
    right = right - (right @ up) * up
    if np.linalg.norm(right) < 1e-6:
        # The first camera lies on its side: any level direction will do.
        right = np.cross(up, np.eye(3)[np.abs(up).argmin()])
    right = _unit(right)
    turn = np.eye(4)
    turn[:3, :3] = np.stack([right, np.cross(up, right), up])
    return turn


def _metres_per_unit(views: Sequence[View]) -> float:
    """What makes the median camera stand at eye level above the floor.

    ``floor_height`` counts in centimetres: it is asked on a first guess in metres, from the
    median depth.
    """
    depths = [view.depth[view.depth_valid] for view in views if view.depth is not None]
    guess = TYPICAL_DEPTH / float(np.median(np.concatenate(depths)))
    guessed = _scaled(views, guess)
    floor, notes = floor_height(guessed)
    height = float(np.median([_position(view)[2] for view in guessed])) - floor
    if notes or height <= 0:
        logger.warning("no floor seen: the median depth is taken to be %.1f m", TYPICAL_DEPTH)
        return guess
    return guess * EYE_LEVEL / height


def _moved(views: Sequence[View], pose: Float[np.ndarray, "4 4"]) -> list[View]:
    return [replace(view, c2w=pose @ _pose(view)) for view in views]


def _scaled(views: Sequence[View], factor: float) -> list[View]:
    scaled = []
    for view in views:
        assert view.depth is not None
        c2w = _pose(view).copy()
        c2w[:3, 3] *= factor
        scaled.append(replace(view, depth=(view.depth * np.float32(factor)), c2w=c2w))
    return scaled


def _usable(view: View) -> bool:
    return (
        view.depth is not None
        and view.c2w is not None
        and view.intrinsics is not None
        and bool(view.depth_valid.any())
        and bool(np.isfinite(view.c2w).all())
        and bool(np.isfinite(view.intrinsics).all())
    )


def _pose(view: View) -> Float[np.ndarray, "4 4"]:
    assert view.c2w is not None, "checked by _usable"
    return view.c2w


def _position(view: View) -> Float[np.ndarray, "3"]:
    return _pose(view)[:3, 3]


def _unit(vector: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    length = float(np.linalg.norm(vector))
    # Cameras that cancel out: the first one's frame is as good as any.
    return vector / length if length > 1e-9 else np.array([0.0, -1.0, 0.0])
