"""Pictures of a made room: colour, depth and object ids of the same rays.

Every pixel is one ray through its centre (at +0.5); depth is the z-depth of its hit. With
``antialias`` the colour alone is averaged over more rays where something ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8, UInt16

from stillroom.geometry.cameras import pixel_centers, rays
from stillroom.scenes.casting import Caster, caster, hits
from stillroom.scenes.paints import Paints
from stillroom.scenes.solids import Solids
from stillroom.scenes.textures import reflectance

#: Start of shadow rays above the surface [m]: more than the polygon error of a circle's edge.
LIFT = np.float32(2e-3)
#: Exponent from linear light to stored bytes.
GAMMA = 1 / 2.0


@dataclass(frozen=True, kw_only=True)
class Light:
    """A small lamp at ``position`` [m]; ``colour`` is its strength in red, green and blue."""

    position: tuple[float, float, float]
    colour: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Everything that is drawn: solids, their paints, whose they are, and the light."""

    solids: Solids
    paints: Paints
    # object_id per solid, 0 for the room itself.
    owner: Int[np.ndarray, "n"]
    lights: tuple[Light, ...]
    # Light that comes from everywhere.
    ambient: float = 0.34
    exposure: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What the cameras saw; depth in metres, ids of objects with 0 for the room."""

    rgb: UInt8[np.ndarray, "views h w 3"]
    depth: Float32[np.ndarray, "views h w"]
    ids: UInt16[np.ndarray, "views h w"]


def camera_rays(
    c2w: Float[np.ndarray, "4 4"],
    pixels: Float[np.ndarray, "n 2"],
    intrinsics: Float[np.ndarray, "3 3"],
) -> tuple[Float32[np.ndarray, "n 3"], Float32[np.ndarray, "n 3"]]:
    """World origins and directions of pixels; a step of d along a direction has z-depth d."""
    directions = (rays(pixels, intrinsics) @ c2w[:3, :3].T).astype(np.float32)
    origins = np.broadcast_to(c2w[:3, 3].astype(np.float32), directions.shape)
    return origins, directions


def render(
    stage: Stage,
    poses: Sequence[Float[np.ndarray, "4 4"]],
    intrinsics: Float[np.ndarray, "3 3"],
    height: int,
    width: int,
    *,
    antialias: int = 0,
    cast: Caster | None = None,
) -> Pictures:
    """Pictures from every pose (c2w); ``antialias`` more rays per pixel where something ends."""
    cast = caster(stage.solids) if cast is None else cast
    centers = pixel_centers(height, width).reshape(-1, 2)
    pairs = [camera_rays(pose, centers, intrinsics) for pose in poses]
    origins = np.concatenate([origin for origin, _ in pairs])
    directions = np.concatenate([direction for _, direction in pairs])
    light, depth, solid = shade(stage, cast, origins, directions)
    if antialias:
        shape = (len(poses), height, width)
        edge = np.flatnonzero(_edges(light.reshape(*shape, 3), solid.reshape(shape)).ravel())
        view, pixel = np.divmod(edge, height * width)
        total = light[edge]
        for offset in _offsets(antialias):
            moved = rays(centers[pixel] + offset, intrinsics)
            turns = np.stack([pose[:3, :3] for pose in poses])[view]
            extra = np.einsum("nij,nj->ni", turns, moved).astype(np.float32)
            total += shade(stage, cast, origins[edge], extra)[0]
        light[edge] = total / np.float32(antialias + 1)
    rgb = (255.0 * light**GAMMA + 0.5).astype(np.uint8)
    owner = np.append(stage.owner, 0)[solid]
    return Pictures(
        rgb=rgb.reshape(len(poses), height, width, 3),
        depth=depth.reshape(len(poses), height, width),
        ids=owner.astype(np.uint16).reshape(len(poses), height, width),
    )


def shade(
    stage: Stage,
    cast: Caster,
    origins: Float32[np.ndarray, "n 3"],
    directions: Float32[np.ndarray, "n 3"],
) -> tuple[Float32[np.ndarray, "n 3"], Float32[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Light in 0..1, distance and solid of each ray."""
    hit = hits(cast, stage.solids, origins, directions)
    points = origins + hit.distance[:, None] * directions + LIFT * hit.normal
    light = np.empty_like(points)
    # Walls lit from many sides are never equally bright: a little more from above and one side.
    base = stage.ambient + 0.08 * hit.normal[:, 2] + 0.05 * hit.normal[:, 0]
    light[:] = base[:, None]
    for lamp in stage.lights:
        target = np.array(lamp.position, dtype=np.float32)
        ray = target - points
        square = np.einsum("ni,ni->n", ray, ray)
        slant = np.einsum("ni,ni->n", ray, hit.normal) / np.sqrt(square)
        lit = np.flatnonzero(slant > 0)
        free = ~cast.blocked(points[lit], np.broadcast_to(target, (len(lit), 3)))
        strength = slant[lit] * free / (1.0 + 0.18 * square[lit])
        light[lit] += strength[:, None] * np.array(lamp.colour, dtype=np.float32)
    light *= reflectance(stage.paints, hit.solid, hit.local) * np.float32(stage.exposure)
    light[hit.solid < 0] = 0.0
    return np.minimum(light, 1.0, out=light), hit.distance, hit.solid


def _offsets(count: int) -> Float[np.ndarray, "count 2"]:
    """Places within a pixel, spread evenly; with the centre they cover it."""
    k = np.arange(1, count + 1)
    return np.stack([(k * 0.7549) % 1.0, (k * 0.5698) % 1.0], axis=1) - 0.5


def _edges(
    light: Float32[np.ndarray, "views h w 3"], solid: Int[np.ndarray, "views h w"]
) -> np.ndarray:
    """Pixels beside another solid or another brightness."""
    tone = light.sum(axis=3) ** np.float32(0.5)
    edge = np.zeros(solid.shape, dtype=bool)
    down = (np.diff(solid, axis=1) != 0) | (np.abs(np.diff(tone, axis=1)) > 0.09)
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    right = (np.diff(solid, axis=2) != 0) | (np.abs(np.diff(tone, axis=2)) > 0.09)
    edge[:, :, 1:] |= right
    edge[:, :, :-1] |= right
    return edge
