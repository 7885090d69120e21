"""Where things stand: exact supports and contacts, clear gaps, nothing in between.

Every placement ends in a measurement against all that stands already: surfaces are in contact
(within 1.5 mm) or at least 0.10 m apart, never inside each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from stillroom.geometry.poses import rotation_z
from stillroom.scenes.builder import Item, Top
from stillroom.scenes.physics import APART, Surfaces
from stillroom.scenes.solids import Solids

#: Where sliding ends [m]: well inside TOUCH, well outside each other.
CONTACT = 2e-4
#: Clearance between things and walls [m].
WALL_GAP = 0.01


@dataclass(frozen=True, kw_only=True)
class FloorPlan:
    """The room's floor around the origin, minus blocks that reach to the ceiling (x0 y0 x1 y1)."""

    width: float
    depth: float
    height: float
    blocks: tuple[tuple[float, float, float, float], ...] = ()

    def holds(self, low: Float[np.ndarray, "3"], high: Float[np.ndarray, "3"]) -> bool:
        """Whether an upright box lies within the walls."""
        half_w, half_d = self.width / 2 - WALL_GAP, self.depth / 2 - WALL_GAP
        inside = low[0] >= -half_w and high[0] <= half_w and low[1] >= -half_d and high[1] <= half_d
        return (
            bool(inside)
            and bool(high[2] < self.height - WALL_GAP)
            and not any(
                low[0] < x1 + WALL_GAP
                and high[0] > x0 - WALL_GAP
                and low[1] < y1 + WALL_GAP
                and high[1] > y0 - WALL_GAP
                for x0, y0, x1, y1 in self.blocks
            )
        )


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A thing in its place; ``support`` is the place's number in the layout, None for the floor."""

    item: Item
    position: Float[np.ndarray, "3"]
    yaw: float
    solids: Solids
    support: int | None = None
    # The rectangle it stands in, in the support's frame.
    top: Top | None = None
    # On a wall, carried by nothing that stands.
    hung: bool = False

    @property
    def flat(self) -> bool:
        """Whether it lies on the floor for others to stand on."""
        return self.item.category == "rug"

    def to_own(self, xy: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        """A level world point in the thing's own frame."""
        return rotation_z(self.yaw)[:2, :2].T @ (xy - self.position[:2])

    def to_world(self, xy: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        """A level point of the thing's own frame in the world."""
        return rotation_z(self.yaw)[:2, :2] @ xy + self.position[:2]


@dataclass
class Layout:
    """The things placed so far, and the only ways to add one."""

    plan: FloorPlan
    placed: list[Placed] = field(default_factory=list)
    surfaces: Surfaces = field(default_factory=Surfaces)

    def put(
        self,
        item: Item,
        position: Float[np.ndarray, "3"],
        yaw: float,
        support: int | None = None,
        top: Top | None = None,
        hung: bool = False,
    ) -> bool:
        """Place it there if it is within the walls and clear of or touching all others."""
        place = Placed(
            item=item,
            position=position,
            yaw=yaw,
            support=support,
            top=top,
            hung=hung,
            solids=item.solids.moved(rotation_z(yaw), position),
        )
        self.surfaces.put(place.solids)
        return self._keep(place)

    def _keep(self, place: Placed) -> bool:
        """The last thing in ``surfaces`` stays if its place is a good one."""
        low, high = place.solids.bounds()
        if self.plan.holds(low.min(axis=0), high.max(axis=0)) and self._clear():
            self.placed.append(place)
            return True
        self.surfaces.pop()
        return False

    def _clear(self) -> bool:
        last = len(self.surfaces) - 1
        for other in range(last):
            gap = self.surfaces.distance(last, other, cap=APART)
            if not (-1e-4 <= gap <= 1.5e-3 or gap >= APART):
                return False
        return True

    def stand(self, item: Item, xy: Float[np.ndarray, "2"], yaw: float) -> bool:
        """Stand it on the floor, or on a rug if it is wholly over it."""
        for number, rug in enumerate(self.placed):
            if not rug.flat:
                continue
            top = rug.item.tops[0]
            if _within(item, yaw - rug.yaw, rug.to_own(xy), top):
                position = np.array([xy[0], xy[1], rug.position[2] + top.z])
                return self.put(item, position, yaw, number, top)
        return self.put(item, np.array([xy[0], xy[1], 0.0]), yaw)

    def stand_at_wall(self, item: Item, side: int, along: float) -> bool:
        """Stand it on the floor with its back to wall ``side`` (0 to 3: +y, -x, -y, +x).

        ``along`` in -1..1 is how far from the middle of the wall.
        """
        yaw = side * np.pi / 2
        lengths = (self.plan.width, self.plan.depth)
        length, reach = lengths if side % 2 == 0 else lengths[::-1]
        free = max(0.5 * (length - item.size[0]) - 2 * WALL_GAP, 0.0)
        local = np.array([along * free, 0.5 * (reach - item.size[1]) - 2 * WALL_GAP])
        return self.stand(item, rotation_z(yaw)[:2, :2] @ local, yaw)

    def hang(self, item: Item, side: int, along: float, middle: float) -> bool:
        """Hang it flat on wall ``side`` with its middle ``middle`` metres up."""
        yaw = side * np.pi / 2
        lengths = (self.plan.width, self.plan.depth)
        length, reach = lengths if side % 2 == 0 else lengths[::-1]
        free = max(0.5 * (length - item.size[0]) - 0.1, 0.0)
        local = np.array([along * free, 0.5 * (reach - item.size[1]) - 1.2 * WALL_GAP])
        xy = rotation_z(yaw)[:2, :2] @ local
        position = np.array([xy[0], xy[1], middle - item.size[2] / 2])
        return self.put(item, position, yaw, hung=True)

    def stand_on(
        self, item: Item, support: int, top: Top, rng: np.random.Generator, *, turn: float
    ) -> bool:
        """Stand it on a top of another thing, turned by ``turn`` against it; wholly within."""
        below = self.placed[support]
        half = 0.5 * _turned_footprint(item, turn)
        low, high = np.array(top.low) + half, np.array(top.high) - half
        if (low > high).any() or item.size[2] > top.clearance:
            return False
        xy = below.to_world(rng.uniform(low, high))
        position = np.array([xy[0], xy[1], below.position[2] + top.z])
        if top is below.item.hollow:
            return self.put(item, position, below.yaw + turn, below.support, below.top)
        return self.put(item, position, below.yaw + turn, support, top)

    def push(
        self,
        item: Item,
        target: int,
        yaw: float,
        angle: float,
        aim: Float[np.ndarray, "2"],
        retreat: float = 0.0,
    ) -> bool:
        """Slide it from direction ``angle`` toward ``aim`` until it touches ``target``.

        It stands at the target's level, on what carries the target. ``retreat`` [m] is how far it
        is then drawn back.
        """
        goal = self.placed[target]
        start = _radius(goal.item) + _radius(item) + 0.3
        away = np.array([np.cos(angle), np.sin(angle), 0.0])
        position = np.array([aim[0], aim[1], goal.position[2]]) + start * away
        last = self.surfaces.put(item.solids.moved(rotation_z(yaw), position))
        moved = 0.0
        while True:
            gap = self.surfaces.distance(last, target)
            if gap <= CONTACT:
                break
            # Nothing can be hit before its distance has been travelled.
            self.surfaces.shift_last(-(gap - 0.5 * CONTACT) * away)
            moved += gap - 0.5 * CONTACT
            if moved > start + 0.5:
                self.surfaces.pop()
                return False
        if retreat:
            self.surfaces.shift_last(retreat * away)
        position = position + (retreat - moved) * away
        place = Placed(
            item=item,
            position=position,
            yaw=yaw,
            support=goal.support,
            top=goal.top,
            solids=item.solids.moved(rotation_z(yaw), position),
        )
        if not self._carried(place):
            self.surfaces.pop()
            return False
        return self._keep(place)

    def _carried(self, place: Placed) -> bool:
        """Whether its footprint lies within the top that it stands on."""
        if place.support is None or place.top is None:
            return True
        below = self.placed[place.support]
        own = below.to_own(place.position[:2])
        return _within(place.item, place.yaw - below.yaw, own, place.top)


def _within(item: Item, turn: float, middle: Float[np.ndarray, "2"], top: Top) -> bool:
    """Whether a thing at ``middle``, turned by ``turn``, has all its footprint in the rectangle."""
    half = 0.5 * _turned_footprint(item, turn)
    inside = (middle - half >= top.low) & (middle + half <= top.high)
    return bool(inside.all()) and item.size[2] <= top.clearance


def _turned_footprint(item: Item, turn: float) -> Float[np.ndarray, "2"]:
    """Width and depth of the level box around a turned thing [m]."""
    c, s = abs(np.cos(turn)), abs(np.sin(turn))
    width, depth, _ = item.size
    return np.array([c * width + s * depth, s * width + c * depth])


def _radius(item: Item) -> float:
    return float(0.5 * np.hypot(item.size[0], item.size[1]))
