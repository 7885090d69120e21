"""The empty room: floor, walls, ceiling, door, window, and its light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stillroom.geometry.poses import rotation_z
from stillroom.scenes import paints
from stillroom.scenes.layout import FloorPlan
from stillroom.scenes.paints import Paint, Paints
from stillroom.scenes.render import Light
from stillroom.scenes.solids import BOX, Solids

#: Thickness of walls and floor [m]; only their inner faces are seen.
THICK = 0.1
#: Thickness of what hangs flat on a wall [m].
FLAT = 0.02

WALL_TINTS = (
    (0.80, 0.80, 0.77),
    (0.74, 0.78, 0.80),
    (0.80, 0.74, 0.66),
    (0.70, 0.76, 0.68),
    (0.82, 0.78, 0.62),
    (0.76, 0.68, 0.66),
    (0.66, 0.70, 0.76),
)
UNSEEN_WALL_TINTS = ((0.58, 0.74, 0.72), (0.76, 0.62, 0.74), (0.62, 0.60, 0.55))
FLOORS = (
    ((0.52, 0.36, 0.21), paints.PLANKS, 0.14),
    ((0.33, 0.21, 0.12), paints.PLANKS, 0.12),
    ((0.62, 0.48, 0.32), paints.PLANKS, 0.16),
    ((0.60, 0.59, 0.56), paints.TILES, 0.40),
    ((0.46, 0.44, 0.42), paints.CLOTH, 0.03),
    ((0.50, 0.46, 0.38), paints.CLOTH, 0.03),
)
UNSEEN_FLOORS = (
    ((0.42, 0.48, 0.46), paints.TILES, 0.25),
    ((0.44, 0.40, 0.46), paints.CLOTH, 0.05),
    ((0.45, 0.42, 0.38), paints.PLANKS, 0.22),
)


@dataclass(frozen=True, kw_only=True)
class Shell:
    """The empty room as solids with paints, and its lights."""

    solids: Solids
    paints: Paints
    lights: tuple[Light, ...]
    ambient: float
    exposure: float


def draw_plan(rng: np.random.Generator, *, density: str, unseen: bool) -> FloorPlan:
    """A floor plan: 3.0 to 4.6 by 2.8 to 4.2 m, furnished ones 0.6 m more.

    Unseen ones are larger, or lack a corner.
    """
    roomy = 0.6 if density == "furnished" else 0.0
    width, depth = rng.uniform(3.0, 4.6) + roomy, rng.uniform(2.8, 4.2) + roomy
    height = rng.uniform(2.4, 2.9)
    if not unseen:
        return FloorPlan(width=width, depth=depth, height=height)
    if rng.random() < 0.4:
        return FloorPlan(width=width + 1.2, depth=depth + 1.0, height=height + 0.4)
    width, depth = width + 0.6, depth + 0.6
    x, y = rng.uniform(0.25, 0.4) * width, rng.uniform(0.25, 0.4) * depth
    corner = int(rng.integers(4))
    x0 = width / 2 - x if corner in (0, 3) else -width / 2
    y0 = depth / 2 - y if corner in (0, 1) else -depth / 2
    return FloorPlan(width=width, depth=depth, height=height, blocks=((x0, y0, x0 + x, y0 + y),))


class _Boxes:
    """Collects painted boxes given by their lowest and highest corner."""

    def __init__(self) -> None:
        self.center: list[np.ndarray] = []
        self.size: list[np.ndarray] = []
        self.yaw: list[float] = []
        self.paints: list[Paint] = []

    def add(
        self, low: tuple[float, float, float], high: tuple[float, float, float], paint: Paint
    ) -> None:
        self.center.append(0.5 * (np.array(low) + np.array(high)))
        self.size.append(np.array(high) - np.array(low))
        self.yaw.append(0.0)
        self.paints.append(paint)

    def hang(
        self,
        plan: FloorPlan,
        side: int,
        along: float,
        z: float,
        size: tuple[float, float],
        paint: Paint,
        proud: float = FLAT,
    ) -> None:
        """A flat thing on wall ``side``, its bottom at ``z``, ``along`` metres from the middle."""
        reach = plan.depth if side % 2 == 0 else plan.width
        turn = rotation_z(side * np.pi / 2)
        self.center.append(turn @ np.array([along, reach / 2 - proud / 2, z + size[1] / 2]))
        self.size.append(np.array([size[0], proud, size[1]]))
        self.yaw.append(side * np.pi / 2)
        self.paints.append(paint)

    def solids(self) -> Solids:
        return Solids(
            kind=np.full(len(self.paints), BOX),
            center=np.stack(self.center),
            size=np.stack(self.size),
            rotation=np.stack([rotation_z(yaw) for yaw in self.yaw]),
        )


def build_shell(plan: FloorPlan, rng: np.random.Generator, *, unseen: bool) -> Shell:
    """Draw how the room looks."""
    boxes = _Boxes()
    _structure(boxes, plan, rng, unseen)
    _openings(boxes, plan, rng)
    warm = rng.uniform(-0.08, 0.1)
    strength = rng.uniform(0.85, 1.25)
    lights = [_lamp(plan, rng, strength, warm, 0.35)]
    if rng.random() < 0.5:
        lights.append(_lamp(plan, rng, 0.45 * strength, -warm, 0.8))
    return Shell(
        solids=boxes.solids(),
        paints=paints.stack(boxes.paints),
        lights=tuple(lights),
        ambient=float(rng.uniform(0.26, 0.38)),
        exposure=float(rng.uniform(0.9, 1.12)),
    )


def _lamp(
    plan: FloorPlan, rng: np.random.Generator, strength: float, warm: float, reach: float
) -> Light:
    x, y = rng.uniform(-0.5, 0.5, 2) * reach * (plan.width, plan.depth)
    colour = strength * np.array([1.0 + warm, 1.0, 1.0 - warm])
    return Light(
        position=(float(x), float(y), plan.height - 0.12),
        colour=(float(colour[0]), float(colour[1]), float(colour[2])),
    )


def _structure(boxes: _Boxes, plan: FloorPlan, rng: np.random.Generator, unseen: bool) -> None:
    x, y, z = plan.width / 2, plan.depth / 2, plan.height
    floors, tints = (UNSEEN_FLOORS, UNSEEN_WALL_TINTS) if unseen else (FLOORS, WALL_TINTS)
    tone, texture, period = floors[int(rng.integers(len(floors)))]
    scale = rng.uniform(0.85, 1.15)
    floor = Paint(
        colour=_scaled(tone, scale),
        second=_scaled(tone, 0.68 * scale),
        texture=texture,
        period=period,
    )
    boxes.add((-x - THICK, -y - THICK, -THICK), (x + THICK, y + THICK, 0.0), floor)
    ceiling = Paint(colour=(0.9, 0.9, 0.88))
    boxes.add((-x - THICK, -y - THICK, z), (x + THICK, y + THICK, z + THICK), ceiling)
    wall = Paint(colour=_scaled(tints[int(rng.integers(len(tints)))], rng.uniform(0.9, 1.05)))
    accent = wall
    if rng.random() < 0.4:
        accent = Paint(
            colour=_scaled(tints[int(rng.integers(len(tints)))], rng.uniform(0.65, 0.85))
        )
    odd = int(rng.integers(4))
    walls = (
        ((-x - THICK, y, 0.0), (x + THICK, y + THICK, z)),
        ((-x - THICK, -y, 0.0), (-x, y, z)),
        ((-x - THICK, -y - THICK, 0.0), (x + THICK, -y, z)),
        ((x, -y, 0.0), (x + THICK, y, z)),
    )
    for side, (low, high) in enumerate(walls):
        boxes.add(low, high, accent if side == odd else wall)
    for x0, y0, x1, y1 in plan.blocks:
        boxes.add((x0, y0, 0.0), (x1, y1, z), accent)
    skirting = Paint(colour=_scaled((0.85, 0.85, 0.83), rng.uniform(0.5, 1.0)))
    for side in range(4):
        length = plan.width if side % 2 == 0 else plan.depth
        boxes.hang(plan, side, 0.0, 0.0, (length, 0.07), skirting, proud=0.008)


def _openings(boxes: _Boxes, plan: FloorPlan, rng: np.random.Generator) -> None:
    """A door, a window and perhaps pictures, each on its own part of a wall."""
    sides = rng.permutation(4)
    lengths = [plan.width if side % 2 == 0 else plan.depth for side in sides]
    frame = Paint(colour=(0.82, 0.82, 0.8))
    leaf = Paint(
        colour=_scaled((0.75, 0.66, 0.55), rng.uniform(0.6, 1.2)),
        second=(0.4, 0.33, 0.26),
        texture=paints.PANES,
        period=0.8,
    )
    along = rng.uniform(-0.3, 0.3) * lengths[0]
    boxes.hang(plan, int(sides[0]), along, 0.0, (0.98, 2.08), frame, proud=0.009)
    boxes.hang(plan, int(sides[0]), along, 0.0, (0.84, 2.0), leaf, proud=0.0095)
    along = rng.uniform(-0.25, 0.25) * lengths[1]
    sky = Paint(colour=(0.72, 0.86, 1.0), second=(0.9, 0.9, 0.9), texture=paints.PANES, period=0.55)
    boxes.hang(plan, int(sides[1]), along, 0.95, (1.2, 1.1), frame, proud=0.009)
    boxes.hang(plan, int(sides[1]), along, 1.0, (1.1, 1.0), sky, proud=0.0095)


def _scaled(tone: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    return (min(tone[0] * factor, 1.0), min(tone[1] * factor, 1.0), min(tone[2] * factor, 1.0))
