"""How a thing is put together from convex parts, in its own frame.

Own frame: origin on the floor below the middle of the thing, x right, y backward (the front looks
along -y), z up, metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from stillroom.geometry.poses import rotation_z
from stillroom.scenes import paints
from stillroom.scenes.paints import Paint, Paints
from stillroom.scenes.solids import BOX, CYLINDER, SPHERE, Solids

STEEL = Paint(colour=(0.45, 0.47, 0.50))
DARK = Paint(colour=(0.05, 0.045, 0.04))
LINEN = Paint(colour=(0.86, 0.85, 0.80), second=(0.7, 0.7, 0.66), texture=paints.CLOTH, period=0.03)
SCREEN = Paint(colour=(0.012, 0.014, 0.02))


#: Whole numbers are fine where metres are written by hand.
Number = float | int
Spot = tuple[Number, Number, Number]


@dataclass(frozen=True, kw_only=True)
class Top:
    """A level rectangle in a thing's own frame that others can stand on, or a space below it."""

    z: Number
    low: tuple[Number, Number]
    high: tuple[Number, Number]
    # Free height above it [m].
    clearance: float = 9.0


@dataclass(frozen=True, kw_only=True)
class Item:
    """A thing before it has a place: its parts, its paints, and where others can stand."""

    category: str
    colour: str
    pattern: str
    solids: Solids
    paints: Paints
    # Width (x), depth (y), height (z) of the box around it.
    size: tuple[float, float, float]
    tops: tuple[Top, ...] = ()
    # The floor beneath it where something fits, between its legs.
    hollow: Top | None = None


class Builder:
    """Collects the parts of one thing. ``z`` is always the bottom of a part."""

    def __init__(self, main: Paint, trim: Paint) -> None:
        self.main = main
        self.trim = trim
        self.tops: list[Top] = []
        self.hollow: Top | None = None
        self._kinds: list[int] = []
        self._centers: list[Spot] = []
        self._sizes: list[Spot] = []
        self._yaws: list[float] = []
        self._paints: list[Paint] = []

    def box(
        self,
        at: Spot,
        size: Spot,
        paint: Paint | None = None,
        yaw: float = 0.0,
    ) -> None:
        """A box whose bottom is centred at ``at``."""
        self._add(BOX, at, size, paint, yaw)

    def tube(
        self,
        at: Spot,
        diameter: float,
        height: float,
        paint: Paint | None = None,
    ) -> None:
        """An upright cylinder whose bottom is centred at ``at``."""
        self._add(CYLINDER, at, (diameter, diameter, height), paint, 0.0)

    def ball(self, at: Spot, diameter: float, paint: Paint | None = None) -> None:
        """A sphere whose lowest point is ``at``."""
        self._add(SPHERE, at, (diameter, diameter, diameter), paint, 0.0)

    def top(
        self, z: float, width: float, depth: float, y: float = 0.0, clearance: float = 9.0
    ) -> None:
        """A place where others can stand, ``width`` x ``depth`` around (0, y)."""
        low, high = (-width / 2, y - depth / 2), (width / 2, y + depth / 2)
        self.tops.append(Top(z=z, low=low, high=high, clearance=clearance))

    def legs(self, width: float, depth: float, height: float, thick: float, round_: bool) -> None:
        """Four legs in the corners of a rectangle, and the space between them."""
        for x in (-1, 1):
            for y in (-1, 1):
                at = (x * (width - thick) / 2, y * (depth - thick) / 2, 0.0)
                if round_:
                    self.tube(at, thick, height, self.trim)
                else:
                    self.box(at, (thick, thick, height), self.trim)
        inside = (width / 2 - thick, depth / 2 - thick)
        self.hollow = Top(z=0.0, low=(-inside[0], -inside[1]), high=inside, clearance=height)

    def _add(
        self,
        kind: int,
        at: Spot,
        size: Spot,
        paint: Paint | None,
        yaw: float,
    ) -> None:
        self._kinds.append(kind)
        self._centers.append((at[0], at[1], at[2] + size[2] / 2))
        self._sizes.append(size)
        self._yaws.append(yaw)
        self._paints.append(self.main if paint is None else paint)

    def item(self, category: str, colour: str, pattern: str) -> Item:
        """What was built, with its origin moved to the middle of its footprint."""
        solids = Solids(
            kind=np.array(self._kinds),
            center=np.array(self._centers),
            size=np.array(self._sizes),
            rotation=np.stack([rotation_z(yaw) for yaw in self._yaws]),
        )
        low, high = solids.bounds()
        lowest, highest = low.min(axis=0), high.max(axis=0)
        middle = 0.5 * (lowest + highest)
        middle[2] = 0.0
        size = highest - lowest
        return Item(
            category=category,
            colour=colour,
            pattern=pattern,
            solids=solids.shifted(-middle),
            paints=paints.stack(self._paints),
            size=(float(size[0]), float(size[1]), float(size[2])),
            tops=tuple(_moved(top, -middle) for top in self.tops),
            hollow=None if self.hollow is None else _moved(self.hollow, -middle),
        )


def tilted(item: Item, angle: float) -> Item:
    """A thing that leans backward by ``angle`` [rad] and stands on its lowest edge."""
    c, s = np.cos(angle), np.sin(angle)
    # About x: the top moves along +y, where the back is.
    turn = np.array([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]])
    solids = item.solids.moved(turn, np.zeros(3))
    low, high = solids.bounds()
    lowest, highest = low.min(axis=0), high.max(axis=0)
    middle = 0.5 * (lowest + highest)
    middle[2] = lowest[2]
    size = highest - lowest
    return replace(
        item,
        solids=solids.shifted(-middle),
        size=(float(size[0]), float(size[1]), float(size[2])),
        tops=(),
        hollow=None,
    )


def _moved(top: Top, shift: Float[np.ndarray, "3"]) -> Top:
    x, y = float(shift[0]), float(shift[1])
    return Top(
        z=top.z,
        clearance=top.clearance,
        low=(top.low[0] + x, top.low[1] + y),
        high=(top.high[0] + x, top.high[1] + y),
    )


Build = Callable[[Builder, float, float, float, np.random.Generator], None]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a kind is built and the ranges of its width, depth and height [m].

    ``depth`` None: as deep as wide; ``height`` None: as high as wide. Ranges of different kinds
    overlap on purpose, so that a name alone does not tell which of two things is bigger.
    """

    build: Build
    width: tuple[float, float]
    depth: tuple[float, float] | None
    height: tuple[float, float] | None
