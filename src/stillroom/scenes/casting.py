"""Rays against solids: what is hit, how far, and whether a light is hidden.

``caster`` gives Embree where it can be imported and MuJoCo's rays elsewhere; both answer alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from stillroom.scenes.solids import BOX, CYLINDER, SPHERE, Solids

#: Corners of the polygon that stands for a circle, for Embree.
SECTIONS = 28


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Where rays end. ``solid`` is -1 and ``distance`` 0 where nothing is hit.

    ``distance`` is in units of the ray's direction: z-depth in metres if that has z = 1.
    ``local`` is the hit in the frame of the solid's middle [m]; ``normal`` is in the world.
    """

    solid: Int[np.ndarray, "n"]
    distance: Float32[np.ndarray, "n"]
    local: Float32[np.ndarray, "n 3"]
    normal: Float32[np.ndarray, "n 3"]


@runtime_checkable
class Caster(Protocol):
    """Rays against one set of solids."""

    def first(
        self, origins: Float32[np.ndarray, "n 3"], directions: Float32[np.ndarray, "n 3"]
    ) -> tuple[Int[np.ndarray, "n"], Float32[np.ndarray, "n"]]:
        """Solid (-1: none) and distance of the first hit."""
        ...

    def blocked(
        self, origins: Float32[np.ndarray, "n 3"], targets: Float32[np.ndarray, "n 3"]
    ) -> Bool[np.ndarray, "n"]:
        """Whether something lies between."""
        ...


def caster(solids: Solids) -> Caster:
    """The fastest caster that this machine can import."""
    try:
        return EmbreeCaster(solids)
    except ImportError:
        return MujocoCaster(solids)


def hits(
    cast: Caster,
    solids: Solids,
    origins: Float32[np.ndarray, "n 3"],
    directions: Float32[np.ndarray, "n 3"],
) -> Hits:
    """First hits with exact surface points and normals, whatever mesh the caster uses."""
    solid, distance = cast.first(origins, directions)
    rotation = solids.rotation.astype(np.float32)
    center = solids.center.astype(np.float32)
    half = (0.5 * solids.size).astype(np.float32)
    turn = rotation[solid]
    start = _to_local(turn, origins - center[solid])
    ray = _to_local(turn, directions)
    kind = solids.kind[solid]
    distance = _refined(kind, half[solid], start, ray, distance)
    local = start + distance[:, None] * ray
    normal = _local_normal(kind, half[solid], local)
    normal = np.einsum("nij,nj->ni", turn, normal)
    away = np.einsum("ni,ni->n", normal, directions) > 0
    normal[away] *= -1
    distance[solid < 0] = 0.0
    return Hits(solid=solid, distance=distance, local=local, normal=normal)


def _to_local(turn: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.einsum("nij,ni->nj", turn, vectors)


def _refined(
    kind: np.ndarray, half: np.ndarray, start: np.ndarray, ray: np.ndarray, distance: np.ndarray
) -> np.ndarray:
    """Distances to the round surface itself where the hit is on a polygon that stands for it."""
    result = distance.copy()
    for number, axes in ((SPHERE, 3), (CYLINDER, 2)):
        rows = np.flatnonzero(kind == number)
        if not rows.size:
            continue
        origin, along, radius = start[rows, :axes], ray[rows, :axes], half[rows, 0]
        a = np.maximum((along * along).sum(axis=1), 1e-12)
        b = (origin * along).sum(axis=1)
        c = (origin * origin).sum(axis=1) - radius * radius
        inside = np.maximum(b * b - a * c, 0.0)
        exact = (-b - np.sqrt(inside)) / a
        if number == CYLINDER:
            # A hit on the flat ends stays as it is.
            z = start[rows, 2] + exact * ray[rows, 2]
            side = np.abs(z) <= half[rows, 2] + 1e-5
        else:
            side = np.ones(len(rows), dtype=bool)
        # The polygon lies at most 3 % of the radius inside the circle, seen along the ray.
        near = side & (exact > 0) & (np.abs(exact - distance[rows]) < 0.3 * radius)
        result[rows[near]] = exact[near]
    return result


def _local_normal(kind: np.ndarray, half: np.ndarray, local: np.ndarray) -> np.ndarray:
    relative = local / half
    normal = np.zeros_like(local)
    axis = np.abs(relative).argmax(axis=1)
    ball = kind == SPHERE
    side = (kind == CYLINDER) & (np.hypot(relative[:, 0], relative[:, 1]) > np.abs(relative[:, 2]))
    end = (kind == CYLINDER) & ~side
    axis[end] = 2
    rows = np.arange(len(local))
    normal[rows, axis] = np.sign(relative[rows, axis])
    normal[ball] = relative[ball] / np.maximum(
        np.linalg.norm(relative[ball], axis=1, keepdims=True), 1e-6
    )
    normal[side] = 0.0
    radial = np.linalg.norm(relative[side, :2], axis=1, keepdims=True)
    normal[side, :2] = relative[side, :2] / np.maximum(radial, 1e-6)
    return normal


# Embree. ---------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _templates() -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Vertices (of full size 1) and triangles per kind."""
    import trimesh

    meshes = {
        BOX: trimesh.creation.box((1.0, 1.0, 1.0)),
        CYLINDER: trimesh.creation.cylinder(radius=0.5, height=1.0, sections=SECTIONS),
        SPHERE: trimesh.creation.icosphere(subdivisions=2, radius=0.5),
    }
    return {kind: (np.array(m.vertices), np.array(m.faces)) for kind, m in meshes.items()}


class EmbreeCaster:
    """Embree on triangle meshes of the solids."""

    def __init__(self, solids: Solids) -> None:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        corners, triangles, owners, used = [], [], [], 0
        for kind, (vertices, faces) in _templates().items():
            rows = np.flatnonzero(solids.kind == kind)
            if not rows.size:
                continue
            scaled = vertices[None] * solids.size[rows, None]
            world = scaled @ solids.rotation[rows].transpose(0, 2, 1) + solids.center[rows, None]
            corners.append(world.reshape(-1, 3))
            offsets = used + len(vertices) * np.arange(len(rows))
            triangles.append((faces[None] + offsets[:, None, None]).reshape(-1, 3))
            owners.append(np.repeat(rows, len(faces)))
            used += len(vertices) * len(rows)
        self._owner = np.append(np.concatenate(owners), -1)
        self._scene = EmbreeScene()
        TriangleMesh(
            self._scene,
            np.ascontiguousarray(np.concatenate(corners), dtype=np.float32),
            np.ascontiguousarray(np.concatenate(triangles), dtype=np.int32),
        )

    def first(
        self, origins: Float32[np.ndarray, "n 3"], directions: Float32[np.ndarray, "n 3"]
    ) -> tuple[Int[np.ndarray, "n"], Float32[np.ndarray, "n"]]:
        """Solid (-1: none) and distance of the first hit."""
        found = self._scene.run(
            np.ascontiguousarray(origins),
            np.ascontiguousarray(directions),
            output=1,
            query="INTERSECT",
        )
        # A miss has primitive -1, which is the last owner.
        solid = self._owner[found["primID"]]
        return solid, np.where(solid >= 0, found["tfar"], 0.0).astype(np.float32)

    def blocked(
        self, origins: Float32[np.ndarray, "n 3"], targets: Float32[np.ndarray, "n 3"]
    ) -> Bool[np.ndarray, "n"]:
        """Whether something lies between."""
        reach = np.ones(len(origins), dtype=np.float32)
        found = self._scene.run(
            np.ascontiguousarray(origins),
            np.ascontiguousarray(targets - origins),
            dists=reach,
            query="OCCLUDED",
        )
        return np.asarray(found != -1)


class MujocoCaster:
    """MuJoCo's rays on the solids themselves; slower, and needs nothing beside the physics."""

    def __init__(self, solids: Solids) -> None:
        from stillroom.scenes.physics import static_model

        self._model, self._data = static_model(solids)

    def _cast(
        self, origins: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
    ) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
        import mujoco

        length = np.linalg.norm(directions, axis=1)
        unit = np.ascontiguousarray(directions / length[:, None], dtype=np.float64)
        solid = np.empty(len(unit), dtype=np.int32)
        distance = np.empty(len(unit))
        # One call takes the rays of one origin: a view at a time, a shadow ray at a time.
        starts = np.flatnonzero(np.append(True, (np.diff(origins, axis=0) != 0).any(axis=1)))
        for low, high in zip(starts, np.append(starts[1:], len(unit))):
            ids = np.empty((high - low, 1), dtype=np.int32)
            far = np.empty((high - low, 1))
            mujoco.mj_multiRay(
                self._model,
                self._data,
                origins[low].astype(np.float64).reshape(3, 1),
                unit[low:high].reshape(-1, 1),
                None,
                1,
                -1,
                ids,
                far,
                None,
                high - low,
                1e3,
            )
            solid[low:high], distance[low:high] = ids[:, 0], far[:, 0]
        return solid.astype(np.int64), distance / length

    def first(
        self, origins: Float32[np.ndarray, "n 3"], directions: Float32[np.ndarray, "n 3"]
    ) -> tuple[Int[np.ndarray, "n"], Float32[np.ndarray, "n"]]:
        """Solid (-1: none) and distance of the first hit."""
        solid, distance = self._cast(origins, directions)
        return solid, np.where(solid >= 0, distance, 0.0).astype(np.float32)

    def blocked(
        self, origins: Float32[np.ndarray, "n 3"], targets: Float32[np.ndarray, "n 3"]
    ) -> Bool[np.ndarray, "n"]:
        """Whether something lies between."""
        solid, distance = self._cast(origins, targets - origins)
        return (solid >= 0) & (distance < 1.0)
