"""Where the photos are taken from: a walk around the room that shows every thing twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from stillroom.geometry.cameras import pinhole_from_fov, pixel_centers
from stillroom.geometry.poses import look_at
from stillroom.scenes.casting import Caster
from stillroom.scenes.layout import FloorPlan
from stillroom.scenes.render import camera_rays
from stillroom.scenes.solids import Solids

#: A thing is well seen where it covers this share of a picture.
WELL_SEEN = 0.003
#: No camera is nearer to a surface than this [m].
CLEAR = 0.28
#: Side of the coarse pictures that candidates are judged by.
PROBE = 40


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Chosen poses (c2w), in the order of walking, with the intrinsics they share."""

    poses: tuple[Float[np.ndarray, "4 4"], ...]
    intrinsics: Float[np.ndarray, "3 3"]
    # How often each object is well seen, by object_id - 1, as far as coarse pictures tell.
    seen: Int[np.ndarray, "objects"]


def walk_around(
    plan: FloorPlan,
    solids: Solids,
    owner: Int[np.ndarray, "n"],
    cast: Caster,
    rng: np.random.Generator,
    *,
    views: int,
    side: int,
    unseen: bool,
    fov_deg: tuple[float, float],
    overview: float,
    tries: int = 4,
) -> Walk | None:
    """A walk of ``views`` photos of ``side`` pixels, the best of a few; None if none is usable.

    ``owner`` is the object_id of each solid, 0 for the room. ``fov_deg`` are the least and the
    largest field of view; ``overview`` is how often the first photo is the one that shows most.
    """
    best: Walk | None = None
    fov = float(np.radians(rng.uniform(*fov_deg)))
    for _ in range(tries):
        walk = _one_walk(plan, solids, owner, cast, rng, views, unseen, fov, overview)
        if walk is None:
            continue
        if best is None or _score(walk) > _score(best):
            best = walk
        if (walk.seen >= 2).all():
            break
    if best is None:
        return None
    return Walk(poses=best.poses, intrinsics=pinhole_from_fov(fov, side, side), seen=best.seen)


def _score(walk: Walk) -> float:
    return float(np.minimum(walk.seen, 2).sum())


def _one_walk(
    plan: FloorPlan,
    solids: Solids,
    owner: Int[np.ndarray, "n"],
    cast: Caster,
    rng: np.random.Generator,
    views: int,
    unseen: bool,
    fov: float,
    overview: float,
) -> Walk | None:
    """One walk with a random start and sense; None if a photo of it cannot be taken."""
    start, sense = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
    height = rng.uniform(1.65, 1.9) if unseen else rng.uniform(1.25, 1.55)
    intrinsics = pinhole_from_fov(fov, PROBE, PROBE)
    count = int(owner.max(initial=0))
    middle = solids.center[owner > 0, :2].mean(axis=0)
    poses, seen = [], []
    for k in range(views):
        chosen: tuple[int, np.ndarray, np.ndarray] | None = None
        for _ in range(5):
            angle = start + sense * 2 * np.pi * (k + rng.uniform(-0.25, 0.25)) / views
            pose = _pose(plan, middle, angle, height, rng)
            if not _has_room(plan, solids, pose[:3, 3]):
                continue
            well = _well_seen(pose, intrinsics, owner, cast, count)
            if well is not None and (chosen is None or well.sum() > chosen[0]):
                chosen = int(well.sum()), pose, well
            if chosen is not None and 3 * chosen[0] >= 2 * count:
                break
        if chosen is None:
            return None
        poses.append(chosen[1])
        seen.append(chosen[2])
    # Round the room it is a walk from any photo on. The first sets the frame of all answers, so
    # it is mostly the one that shows most; not always, or nothing would appear later.
    first = int(np.argmax([well.sum() for well in seen])) if rng.random() < overview else 0
    around = poses[first:] + poses[:first]
    return Walk(poses=tuple(around), intrinsics=intrinsics, seen=np.sum(seen, axis=0))


def _pose(
    plan: FloorPlan,
    middle: Float[np.ndarray, "2"],
    angle: float,
    height: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "4 4"]:
    """From near the walls toward between the far side and ``middle``, where the things are."""
    direction = np.array([np.cos(angle), np.sin(angle)])
    reach = np.array([plan.width / 2, plan.depth / 2]) - rng.uniform(0.3, 0.4)
    eye = np.append(reach * direction, height + rng.uniform(-0.08, 0.08))
    across = -0.5 * direction + rng.uniform(-0.2, 0.2, 2)
    target = np.append(0.4 * across + 0.6 * middle, rng.uniform(0.3, 0.55))
    return look_at(eye, target)


def _has_room(plan: FloorPlan, solids: Solids, eye: Float[np.ndarray, "3"]) -> bool:
    """Whether the camera is clear of walls, blocks and things (of the boxes around their parts)."""
    inside = abs(eye[0]) < plan.width / 2 - CLEAR and abs(eye[1]) < plan.depth / 2 - CLEAR
    local = np.einsum("nji,nj->ni", solids.rotation, eye - solids.center)
    gap = np.maximum(np.abs(local) - 0.5 * solids.size, 0.0)
    return bool(inside) and float(np.linalg.norm(gap, axis=1).min()) > CLEAR


def _well_seen(
    pose: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    owner: Int[np.ndarray, "n"],
    cast: Caster,
    count: int,
) -> Bool[np.ndarray, "count"] | None:
    """Which objects a coarse picture shows well; None if it shows too little of the room."""
    origins, directions = camera_rays(pose, pixel_centers(PROBE, PROBE).reshape(-1, 2), intrinsics)
    solid, depth = cast.first(origins, directions)
    pixels = np.bincount(owner[solid], minlength=count + 1)[1:]
    well = pixels >= WELL_SEEN * PROBE * PROBE
    if (depth < 0.6).mean() > 0.25 or well.sum() < min(3, count):
        return None
    return well
