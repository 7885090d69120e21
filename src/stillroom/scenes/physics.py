"""Exact distances between the surfaces of things: what "touching" means in the made world.

Distances are MuJoCo's ``mj_geomDistance`` between convex solids. One model with generic geoms is
compiled once and its sizes and poses are overwritten, because compiling a room costs more than
measuring it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float

from stillroom.geometry.poses import wxyz_from_rotation
from stillroom.records import SceneObject
from stillroom.scenes.solids import BOX, Solids, from_box, from_parts

# Physics alone is used; without this MuJoCo looks for an OpenGL driver on import.
os.environ.setdefault("MUJOCO_GL", "disabled")
import mujoco

#: Surfaces nearer than this touch [m].
TOUCH = 0.002
#: Pairs with a gap between TOUCH and this are neither touching nor apart [m].
APART = 0.10
#: Farther than this is reported as this [m]; no room is larger.
FAR = 30.0

_GEOM_TYPES = np.array(
    [
        int(mujoco.mjtGeom.mjGEOM_BOX),
        int(mujoco.mjtGeom.mjGEOM_CYLINDER),
        int(mujoco.mjtGeom.mjGEOM_SPHERE),
    ]
)


class _Geoms:
    """A compiled model of generic geoms, and whose shapes are written into it now."""

    def __init__(self, capacity: int) -> None:
        spec = mujoco.MjSpec()
        for _ in range(capacity):
            spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.1, 0.1, 0.1])
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self.owner: Surfaces | None = None


_geoms = lru_cache(maxsize=8)(_Geoms)


class Surfaces:
    """Things whose surfaces can be measured against each other, by the number they were put in."""

    def __init__(self) -> None:
        self._things: list[Solids] = []
        self._start: list[int] = []
        self._low: list[np.ndarray] = []
        self._high: list[np.ndarray] = []
        self._used = 0
        self._capacity = 256
        self._geoms = _geoms(self._capacity)

    def __len__(self) -> int:
        return len(self._things)

    def put(self, solids: Solids) -> int:
        """Add a thing and get its number."""
        self._things.append(solids)
        self._start.append(self._used)
        self._used += len(solids)
        low, high = solids.bounds()
        self._low.append(low)
        self._high.append(high)
        if self._used > self._capacity:
            while self._used > self._capacity:
                self._capacity *= 2
            self._geoms = _geoms(self._capacity)
        if self._geoms.owner is self:
            self._write(len(self._things) - 1)
        return len(self._things) - 1

    def pop(self) -> None:
        """Take the last thing out again."""
        self._used -= len(self._things.pop())
        self._start.pop()
        self._low.pop()
        self._high.pop()

    def shift_last(self, shift: Float[np.ndarray, "3"]) -> None:
        """Move the last thing without turning it."""
        self._things[-1] = self._things[-1].shifted(shift)
        self._low[-1] = self._low[-1] + shift
        self._high[-1] = self._high[-1] + shift
        if self._geoms.owner is self:
            self._geoms.data.geom_xpos[self._start[-1] : self._used] = self._things[-1].center

    def _write(self, number: int) -> None:
        solids, start = self._things[number], self._start[number]
        stop = start + len(solids)
        half = 0.5 * solids.size
        sizes = half.copy()
        round_ = solids.kind != BOX
        # MuJoCo: a cylinder is (radius, half height), a sphere (radius).
        sizes[round_, 1] = half[round_, 2]
        model, data = self._geoms.model, self._geoms.data
        model.geom_type[start:stop] = _GEOM_TYPES[solids.kind]
        model.geom_size[start:stop] = sizes
        model.geom_rbound[start:stop] = np.linalg.norm(half, axis=1)
        data.geom_xpos[start:stop] = solids.center
        data.geom_xmat[start:stop] = solids.rotation.reshape(-1, 9)

    def _own(self) -> None:
        # Models are shared between instances, one writes over the other.
        if self._geoms.owner is not self:
            self._geoms.owner = self
            for number in range(len(self._things)):
                self._write(number)

    def distance(self, a: int, b: int, cap: float = FAR) -> float:
        """Metres between two surfaces, at most ``cap``; negative where one is in the other."""
        self._own()
        gap = np.maximum(
            self._low[a][:, None] - self._high[b][None], self._low[b][None] - self._high[a][:, None]
        )
        # A box around a solid is never farther away than the solid itself.
        bound = np.sqrt((np.maximum(gap, 0.0) ** 2).sum(axis=2)).ravel()
        best, width = cap, len(self._things[b])
        for pair in np.argsort(bound, kind="stable").tolist():
            if bound[pair] > 0 and bound[pair] >= best:
                break
            i, j = divmod(pair, width)
            first, second = self._start[a] + i, self._start[b] + j
            found = mujoco.mj_geomDistance(
                self._geoms.model, self._geoms.data, first, second, max(best, TOUCH), None
            )
            best = min(best, found)
        return best


def surface_distances(objects: Sequence[SceneObject]) -> Float[np.ndarray, "n n"]:
    """Metres between the surfaces of every two objects, 0 where they touch, 0 on the diagonal."""
    surfaces = Surfaces()
    for thing in objects:
        surfaces.put(from_parts(thing.parts) if thing.parts else from_box(thing.box))
    result = np.zeros((len(objects), len(objects)))
    for a in range(len(objects)):
        for b in range(a + 1, len(objects)):
            result[a, b] = result[b, a] = max(surfaces.distance(a, b), 0.0)
    return result


def touching(objects: Sequence[SceneObject]) -> Bool[np.ndarray, "n n"]:
    """Whether the surfaces of every two objects are within 2 mm; false on the diagonal."""
    close = surface_distances(objects) <= TOUCH
    np.fill_diagonal(close, False)
    return close


def static_model(solids: Solids) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """A compiled model of fixed solids, geom i for solid i, for MuJoCo's own ray casting."""
    spec = mujoco.MjSpec()
    for kind, center, size, rotation in zip(
        solids.kind, solids.center, solids.size, solids.rotation
    ):
        half = 0.5 * size if kind == BOX else 0.5 * size[[0, 2, 2]]
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom(int(_GEOM_TYPES[kind])),
            size=half,
            pos=center,
            quat=wxyz_from_rotation(rotation),
        )
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    return model, data
