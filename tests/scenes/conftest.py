"""A room built by hand: boxes on a floor, seen by four cameras through a small ray caster."""

from __future__ import annotations

import numpy as np
import pytest

from stillroom.geometry.cameras import pinhole_from_fov, pixel_centers, rays
from stillroom.geometry.poses import look_at, rotation_z
from stillroom.records import OrientedBox, Part, Scene, SceneObject, View
from stillroom.scenes.facts import RoomFacts

SIDE = 96
# (id, name, category, centre, size, yaw, supported by)
THINGS = (
    (1, "red table", "table", (0.0, 0.0, 0.375), (1.2, 0.8, 0.75), 0.0, 0),
    (2, "white box", "box", (0.3, 0.1, 0.85), (0.3, 0.2, 0.2), 0.3, 1),
    (3, "blue chair", "chair", (-1.4, 0.6, 0.45), (0.5, 0.5, 0.9), 0.5, 0),
    (4, "green chair", "chair", (1.5, -0.5, 0.45), (0.55, 0.5, 0.9), -0.4, 0),
    (5, "black sofa", "sofa", (0.2, 1.7, 0.4), (1.8, 0.8, 0.8), 0.0, 0),
    (6, "yellow stool", "stool", (-0.85, -0.15, 0.25), (0.4, 0.4, 0.5), 0.0, 0),
    (7, "orange ball", "ball", (-0.75, -1.3, 0.2), (0.4, 0.4, 0.4), 0.0, 0),
)
EYES = ((-0.3, -2.6, 1.6), (2.4, -2.2, 1.5), (2.3, 2.2, 1.5), (-2.4, -2.0, 1.7))


def _thing(row: tuple) -> SceneObject:
    object_id, name, category, center, size, yaw, carrier = row
    spot, edges = np.array(center, dtype=float), np.array(size, dtype=float)
    wxyz = np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
    return SceneObject(
        object_id=object_id,
        category=category,
        name=name,
        colour=name.split()[0],
        box=OrientedBox(center=spot, size=edges, rotation=rotation_z(yaw)),
        parts=(Part(kind="box", center=spot, size=edges, wxyz=wxyz),),
        supported_by=carrier,
    )


def _view(index: int, things: list[SceneObject]) -> View:
    eye = np.array(EYES[index])
    pose = look_at(eye, np.array([0.0, 0.0, 0.4]))
    intrinsics = pinhole_from_fov(np.radians(65.0), SIDE, SIDE)
    directions = rays(pixel_centers(SIDE, SIDE), intrinsics) @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        depth = np.where(directions[..., 2] < 0, -eye[2] / directions[..., 2], 6.0)
    ids = np.zeros((SIDE, SIDE), dtype=np.uint16)
    for thing in things:
        hit = _hit(thing.box, eye, directions)
        nearer = hit < depth
        depth, ids = np.where(nearer, hit, depth), np.where(nearer, thing.object_id, ids)
    rgb = np.stack([ids * 30 + 40, 255 - ids * 25, np.clip(depth * 40, 0, 255)], axis=-1)
    return View(
        name=f"{index}",
        rgb=rgb.astype(np.uint8),
        intrinsics=intrinsics,
        c2w=pose,
        depth=depth.astype(np.float32),
        instances=ids.astype(np.uint16),
    )


def _hit(box: OrientedBox, eye: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Depth along each ray (z = 1 in the camera) at which it enters the box, else infinity."""
    start, along = (eye - box.center) @ box.rotation, directions @ box.rotation
    with np.errstate(divide="ignore"):
        low, high = (-0.5 * box.size - start) / along, (0.5 * box.size - start) / along
    enter, leave = np.minimum(low, high).max(axis=-1), np.maximum(low, high).min(axis=-1)
    return np.where((enter <= leave) & (enter > 0), enter, np.inf)


@pytest.fixture(scope="session")
def hand_made_room() -> Scene:
    things = [_thing(row) for row in THINGS]
    return Scene(
        scene_id="hand",
        source="made:plain",
        views=tuple(_view(i, things) for i in range(len(EYES))),
        split="train",
        objects=tuple(things),
        room_size=np.array([5.5, 5.2, 2.6]),
    )


@pytest.fixture(scope="session")
def hand_made_facts(hand_made_room: Scene) -> RoomFacts:
    from stillroom.scenes.physics import surface_distances

    return RoomFacts(scene=hand_made_room, distance=surface_distances(hand_made_room.objects))
