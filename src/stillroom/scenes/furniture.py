"""Furniture from convex parts: every kind of thing, at any size, in its own frame.

Own frame: origin on the floor below the middle of the thing, x right, y backward (the front looks
along -y), z up, metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
LEAF = ((0.05, 0.24, 0.05), (0.08, 0.34, 0.07), (0.12, 0.40, 0.10))


@dataclass(frozen=True, kw_only=True)
class Top:
    """A level rectangle in a thing's own frame that others can stand on, or a space below it."""

    z: float
    low: tuple[float, float]
    high: tuple[float, float]
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
        self._centers: list[tuple[float, float, float]] = []
        self._sizes: list[tuple[float, float, float]] = []
        self._yaws: list[float] = []
        self._paints: list[Paint] = []

    def box(
        self,
        at: tuple[float, float, float],
        size: tuple[float, float, float],
        paint: Paint | None = None,
        yaw: float = 0.0,
    ) -> None:
        """A box whose bottom is centred at ``at``."""
        self._add(BOX, at, size, paint, yaw)

    def tube(
        self,
        at: tuple[float, float, float],
        diameter: float,
        height: float,
        paint: Paint | None = None,
    ) -> None:
        """An upright cylinder whose bottom is centred at ``at``."""
        self._add(CYLINDER, at, (diameter, diameter, height), paint, 0.0)

    def ball(
        self, at: tuple[float, float, float], diameter: float, paint: Paint | None = None
    ) -> None:
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
        at: tuple[float, float, float],
        size: tuple[float, float, float],
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


def _moved(top: Top, shift: Float[np.ndarray, "3"]) -> Top:
    x, y = float(shift[0]), float(shift[1])
    return Top(
        z=top.z,
        clearance=top.clearance,
        low=(top.low[0] + x, top.low[1] + y),
        high=(top.high[0] + x, top.high[1] + y),
    )


# Kinds: each takes the size of the box around it and draws only its style. ----------------------


def _chair(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    seat = 0.5 * h
    thick = 0.05
    b.legs(w, d, seat - thick, rng.uniform(0.03, 0.05), rng.random() < 0.5)
    b.box((0, 0, seat - thick), (w, d, thick))
    for x in (-1, 1):
        b.box((x * (w - 0.05) / 2, d / 2 - 0.02, seat), (0.05, 0.04, h - seat))
    if rng.random() < 0.5:
        b.box((0, d / 2 - 0.02, seat + 0.3 * (h - seat)), (w - 0.08, 0.03, 0.7 * (h - seat)))
    else:
        rail = 0.26 * (h - seat)
        for level in (0.22, 0.7):
            b.box((0, d / 2 - 0.02, seat + level * (h - seat)), (w - 0.08, 0.03, rail))
    b.top(seat, w, d - 0.05, y=-0.025)


def _armchair(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    arm, back, foot = 0.16 * w, 0.22 * d, 0.06
    seat = 0.48 * h
    b.box((0, -back / 2, foot), (w - 2 * arm, d - back, seat - foot))
    b.box((0, (d - back) / 2, foot), (w, back, h - foot))
    for x in (-1, 1):
        b.box((x * (w - arm) / 2, -back / 2, foot), (arm, d - back, 0.68 * h - foot))
    for x in (-1, 1):
        for y in (-1, 1):
            b.tube((x * (w / 2 - 0.06), y * (d / 2 - 0.06), 0), 0.05, foot, DARK)
    b.top(seat, w - 2 * arm, d - back, y=-back / 2)


def _sofa(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    arm, back, foot = 0.14, 0.2, 0.08
    seat = 0.5 * h
    inner = w - 2 * arm
    b.box((0, 0, foot), (w, d, seat - 0.12 - foot))
    b.box((0, (d - back) / 2, seat - 0.12), (w, back, h - seat + 0.12))
    for x in (-1, 1):
        b.box((x * (w - arm) / 2, -back / 2, seat - 0.12), (arm, d - back, 0.72 * h - seat + 0.12))
    cushions = 2 if w < 1.6 else 3
    for k in range(cushions):
        x = (k + 0.5) * inner / cushions - inner / 2
        b.box((x, -back / 2, seat - 0.12), (inner / cushions - 0.012, d - back - 0.01, 0.12))
    for x in (-1, 1):
        for y in (-1, 1):
            b.tube((x * (w / 2 - 0.08), y * (d / 2 - 0.08), 0), 0.05, foot, DARK)
    b.top(seat, inner, d - back - 0.02, y=-back / 2)


def _bed(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    lie = min(0.62 * h, 0.55)
    board = 0.05
    b.box((0, 0, 0), (w, d - board, lie - 0.18))
    b.box((0, -0.01, lie - 0.18), (w - 0.06, d - board - 0.06, 0.14), LINEN)
    b.box((0, d / 2, 0), (w, board, h))
    cover = 0.66 * (d - board)
    b.box((0, -(d - board - cover) / 2, lie - 0.16), (w, cover, 0.16))
    pillows = 1 if w < 1.15 else 2
    for k in range(pillows):
        x = (k + 0.5) * w / pillows - w / 2
        wide = min(0.6, 0.8 * w / pillows)
        b.box((x, d / 2 - 0.28, lie - 0.04), (wide, 0.32, 0.1), LINEN)
    b.top(lie, w, cover, y=-(d - board - cover) / 2)


def _stool(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    thick = 0.06
    if rng.random() < 0.5:
        b.legs(0.8 * w, 0.8 * w, h - thick, 0.035, True)
        b.tube((0, 0, h - thick), w, thick)
        b.top(h, 0.72 * w, 0.72 * w)
    else:
        b.legs(w, d, h - thick, 0.045, False)
        b.box((0, 0, h - thick), (w, d, thick))
        b.top(h, w, d)


def _bench(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    thick = 0.06
    if rng.random() < 0.5:
        b.legs(w, d, h - thick, 0.06, False)
    else:
        for x in (-1, 1):
            b.box((x * (w / 2 - 0.08), 0, 0), (0.06, d, h - thick), b.trim)
        b.hollow = Top(
            z=0, low=(-w / 2 + 0.11, -d / 2), high=(w / 2 - 0.11, d / 2), clearance=h - thick
        )
    b.box((0, 0, h - thick), (w, d, thick))
    b.top(h, w, d)


def _table(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    thick = rng.uniform(0.04, 0.06)
    if rng.random() < 0.25 and w < 1.2:
        across = min(w, 1.6 * d)
        b.tube((0, 0, 0), 0.5 * across, 0.03, b.trim)
        b.tube((0, 0, 0.03), 0.08, h - thick - 0.03, b.trim)
        b.tube((0, 0, h - thick), across, thick)
        b.top(h, 0.7 * across, 0.7 * across)
    else:
        b.legs(w, d, h - thick, rng.uniform(0.05, 0.08), rng.random() < 0.4)
        b.box((0, 0, h - thick), (w, d, thick))
        b.top(h, w, d)


def _desk(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    thick, side = 0.05, 0.04
    drawers = 0.3 * w
    body = h - thick
    turn = rng.choice([-1.0, 1.0])
    b.box((0, 0, body), (w, d, thick))
    b.box((turn * (w - drawers) / 2, 0, 0), (drawers, d, body))
    face = paints.darker(b.main.colour, 0.7)
    for k in range(3):
        z = (0.05 + 0.31 * k) * body
        b.box(
            (turn * (w - drawers) / 2, -d / 2 - 0.005, z), (0.86 * drawers, 0.01, 0.27 * body), face
        )
    b.box((-turn * (w - side) / 2, 0, 0), (side, d, body))
    b.box((-turn * drawers / 2, d / 2 - 0.02, 0.3 * body), (w - drawers - side, 0.03, 0.7 * body))
    inner = w - drawers - side
    middle = -turn * (drawers - side) / 2
    b.hollow = Top(
        z=0, low=(middle - inner / 2, -d / 2), high=(middle + inner / 2, d / 2), clearance=body
    )
    b.top(h, w, d)


def _shelf(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    board, side = 0.03, 0.035
    for x in (-1, 1):
        b.box((x * (w - side) / 2, 0, 0), (side, d, h))
    b.box((0, d / 2 - 0.01, 0), (w - 2 * side, 0.02, h), paints.darker(b.main.colour, 0.75))
    count = max(2, round(h / 0.42)) + 1
    inner, depth = w - 2 * side, d - 0.02
    step = (h - board - 0.05) / (count - 1)
    for k in range(count):
        z = 0.05 + k * step
        b.box((0, -0.01, z), (inner, depth, board))
        if k < count - 1:
            b.top(z + board, inner, depth, y=-0.01, clearance=step - board)
    b.top(h, w - 2 * side, depth, y=-0.01)


def _cabinet(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    foot, front = 0.05, 0.02
    b.box((0, front / 2, foot), (w, d - front, h - foot))
    b.box((0, 0.03, 0), (0.92 * w, 0.85 * d, foot), DARK)
    face = paints.darker(b.main.colour, 0.82)
    if rng.random() < 0.5:
        for x in (-1, 1):
            b.box(
                (x * w / 4, -d / 2 + front / 2, foot + 0.02),
                (0.46 * w, front, h - foot - 0.04),
                face,
            )
            b.box((x * 0.05, -d / 2 - 0.012, 0.52 * h), (0.025, 0.025, 0.1 * h), STEEL)
    else:
        rows = 2 if h < 0.7 else 3
        tall = (h - foot) / rows
        for k in range(rows):
            z = foot + (k + 0.06) * tall
            b.box((0, -d / 2 + front / 2, z), (0.94 * w, front, 0.88 * tall), face)
            b.box((0, -d / 2 - 0.012, z + 0.4 * tall), (0.2 * w, 0.025, 0.03), STEEL)
    b.top(h, w, d - front, y=front / 2)


def _box(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    b.box((0, 0, 0), (w, d, h))
    b.top(h, w, d)


def _ball(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    b.ball((0, 0, 0), w)


def _vase(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    belly = min(w, 0.6 * h)
    b.tube((0, 0, 0), 0.6 * belly, 0.25 * h)
    b.ball((0, 0, 0.12 * h), belly)
    b.tube((0, 0, 0.12 * h + 0.8 * belly), 0.42 * belly, 0.86 * h - 0.8 * belly - 0.12 * h)
    b.tube((0, 0, 0.86 * h), 0.6 * belly, 0.14 * h)


def _lamp(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    shade = min(0.4 * h, 0.8 * w)
    b.tube((0, 0, 0), 0.62 * w, 0.03, DARK)
    b.tube((0, 0, 0.03), 0.035 if h < 0.8 else 0.045, h - shade - 0.03, STEEL)
    b.tube((0, 0, h - shade), w, 0.6 * shade)
    b.tube((0, 0, h - 0.4 * shade), 0.76 * w, 0.4 * shade)


def _plant(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    # Blossoms carry the colour; the pot is of the trim's.
    pot, crown = 0.3 * h, min(w, 0.66 * h)
    tone = LEAF[int(rng.integers(len(LEAF)))]
    leaf = Paint(colour=tone, second=(0.03, 0.14, 0.03), texture=paints.CLOTH, period=0.05)
    b.tube((0, 0, 0), 0.5 * w, pot, b.trim)
    b.tube((0, 0, pot), 0.035, h - pot - 0.6 * crown, leaf)
    b.ball((0, 0, h - 1.02 * crown), 0.5 * crown, leaf)
    turn = rng.uniform(0, 2 * np.pi)
    for k in range(3):
        angle = turn + 2 * np.pi * k / 3
        reach = (crown - 0.56 * crown) / 2
        x, y = reach * np.cos(angle), reach * np.sin(angle)
        b.ball((x, y, h - (0.86 - 0.04 * k) * crown), 0.56 * crown)
    b.ball((0, 0, h - 0.55 * crown), 0.55 * crown)


def _bin(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    b.tube((0, 0, 0), 0.9 * w, h - 0.06)
    b.tube((0, 0, h - 0.06), w, 0.06, paints.darker(b.main.colour, 0.6))


Build = Callable[[Builder, float, float, float, np.random.Generator], None]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a kind is built and the ranges of its width, depth and height [m].

    ``depth`` None: as deep as wide. Ranges of different kinds overlap on purpose, so that a name
    alone does not tell which of two things is bigger.
    """

    build: Build
    width: tuple[float, float]
    depth: tuple[float, float] | None
    height: tuple[float, float]


KINDS: dict[str, Kind] = {
    "chair": Kind(build=_chair, width=(0.34, 0.62), depth=None, height=(0.62, 1.12)),
    "armchair": Kind(build=_armchair, width=(0.55, 1.0), depth=(0.55, 0.9), height=(0.6, 1.0)),
    "stool": Kind(build=_stool, width=(0.28, 0.55), depth=None, height=(0.32, 0.75)),
    "bench": Kind(build=_bench, width=(0.7, 1.5), depth=(0.3, 0.48), height=(0.36, 0.56)),
    "sofa": Kind(build=_sofa, width=(1.1, 1.9), depth=(0.65, 0.95), height=(0.62, 0.92)),
    "bed": Kind(build=_bed, width=(0.8, 1.5), depth=(1.4, 2.0), height=(0.5, 1.0)),
    "table": Kind(build=_table, width=(0.5, 1.5), depth=(0.45, 0.9), height=(0.38, 0.8)),
    "desk": Kind(build=_desk, width=(0.8, 1.5), depth=(0.45, 0.75), height=(0.6, 0.8)),
    "shelf": Kind(build=_shelf, width=(0.45, 1.1), depth=(0.26, 0.42), height=(0.7, 1.8)),
    "cabinet": Kind(build=_cabinet, width=(0.42, 1.2), depth=(0.34, 0.6), height=(0.45, 1.3)),
    "box": Kind(build=_box, width=(0.2, 0.62), depth=(0.2, 0.55), height=(0.18, 0.55)),
    "ball": Kind(build=_ball, width=(0.2, 0.6), depth=None, height=(0.2, 0.6)),
    "vase": Kind(build=_vase, width=(0.2, 0.4), depth=None, height=(0.3, 0.8)),
    "lamp": Kind(build=_lamp, width=(0.24, 0.5), depth=None, height=(0.38, 1.6)),
    "plant": Kind(build=_plant, width=(0.28, 0.65), depth=None, height=(0.4, 1.4)),
    "bin": Kind(build=_bin, width=(0.22, 0.48), depth=None, height=(0.26, 0.7)),
}


def build(
    category: str,
    size: tuple[float, float, float],
    colour: str,
    pattern: str,
    rng: np.random.Generator,
    *,
    unseen: bool = False,
) -> Item:
    """A thing of that kind that fills a box of ``size`` [m] as its kind allows."""
    main = paints.patterned(
        paints.shade(colour, rng, unseen=unseen), pattern, rng.uniform(0.08, 0.13)
    )
    trims = (paints.wooden(rng), STEEL, DARK)
    builder = Builder(main, trims[int(rng.integers(len(trims)))])
    KINDS[category].build(builder, *size, rng)
    return builder.item(category, colour, pattern)


def draw_size(category: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Width, depth and height, uniform in their logarithms over the kind's ranges."""
    kind = KINDS[category]
    width = _between(kind.width, rng)
    depth = width if kind.depth is None else _between(kind.depth, rng)
    return width, depth, _between(kind.height, rng)


def _between(span: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(span[0]), np.log(span[1]))))
