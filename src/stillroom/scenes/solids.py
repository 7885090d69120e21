"""Convex solids as arrays: what furniture is built of, drawn from and measured by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from stillroom.geometry.boxes import CORNER_SIGNS
from stillroom.geometry.poses import rotation_from_wxyz, wxyz_from_rotation
from stillroom.records import OrientedBox, Part

#: ``Solids.kind`` is an index into this.
KINDS = ("box", "cylinder", "sphere")
BOX, CYLINDER, SPHERE = range(3)


@dataclass(frozen=True, kw_only=True)
class Solids:
    """Boxes, cylinders (along their own z) and spheres; full edge lengths, metres.

    ``rotation`` turns a solid into the frame that ``center`` is in.
    """

    kind: Int[np.ndarray, "n"]
    center: Float[np.ndarray, "n 3"]
    size: Float[np.ndarray, "n 3"]
    rotation: Float[np.ndarray, "n 3 3"]

    def __len__(self) -> int:
        return len(self.kind)

    def moved(self, rotation: Float[np.ndarray, "3 3"], shift: Float[np.ndarray, "3"]) -> Solids:
        """The same solids turned about the origin and then shifted."""
        return replace(
            self, center=self.center @ rotation.T + shift, rotation=rotation @ self.rotation
        )

    def shifted(self, shift: Float[np.ndarray, "3"]) -> Solids:
        """The same solids shifted."""
        return replace(self, center=self.center + shift)

    def half_extents(
        self, frame: Float[np.ndarray, "3 3"] | None = None
    ) -> Float[np.ndarray, "n 3"]:
        """Half lengths along the axes of ``frame`` (to world; world if none), exact per kind."""
        turned = self.rotation if frame is None else frame.T @ self.rotation
        half = 0.5 * self.size
        extents = np.abs(turned) @ half[:, :, None]
        result = extents[:, :, 0]
        round_ = self.kind == CYLINDER
        if round_.any():
            axis = np.abs(turned[round_, :, 2])
            radial = np.sqrt(np.maximum(1.0 - axis * axis, 0.0))
            result[round_] = axis * half[round_, 2:] + radial * half[round_, :1]
        ball = self.kind == SPHERE
        if ball.any():
            result[ball] = half[ball]
        return result

    def bounds(self) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
        """Lowest and highest world corner of each solid's axis-aligned box."""
        half = self.half_extents()
        return self.center - half, self.center + half

    def box(self, rotation: Float[np.ndarray, "3 3"]) -> OrientedBox:
        """The tight box with that rotation around all solids."""
        half = self.half_extents(rotation)
        local = self.center @ rotation
        low, high = (local - half).min(axis=0), (local + half).max(axis=0)
        return OrientedBox(
            center=rotation @ (0.5 * (low + high)), size=high - low, rotation=rotation
        )

    def parts(self) -> tuple[Part, ...]:
        """As records."""
        return tuple(
            Part(
                kind=KINDS[kind],  # type: ignore[arg-type]
                center=center,
                size=size,
                wxyz=wxyz_from_rotation(rotation),
            )
            for kind, center, size, rotation in zip(
                self.kind, self.center, self.size, self.rotation
            )
        )


def join(groups: Iterable[Solids]) -> Solids:
    """All solids of all groups, in order."""
    groups = list(groups)
    return Solids(
        kind=np.concatenate([group.kind for group in groups]),
        center=np.concatenate([group.center for group in groups]),
        size=np.concatenate([group.size for group in groups]),
        rotation=np.concatenate([group.rotation for group in groups]),
    )


def from_parts(parts: Iterable[Part]) -> Solids:
    """Solids of an object's recorded parts."""
    parts = list(parts)
    return Solids(
        kind=np.array([KINDS.index(part.kind) for part in parts], dtype=np.int64),
        center=np.array([part.center for part in parts]).reshape(-1, 3),
        size=np.array([part.size for part in parts]).reshape(-1, 3),
        rotation=rotation_from_wxyz(np.array([part.wxyz for part in parts]).reshape(-1, 4)),
    )


def from_box(box: OrientedBox) -> Solids:
    """The box itself as a solid, for objects of which nothing finer is known."""
    return Solids(
        kind=np.array([BOX]),
        center=box.center[None],
        size=box.size[None],
        rotation=box.rotation[None],
    )


def outline(box: OrientedBox) -> Float[np.ndarray, "8 3"]:
    """World corners of a box."""
    return CORNER_SIGNS * box.size @ box.rotation.T + box.center
