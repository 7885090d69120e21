"""Furnished rooms: groups that belong together, then small things, until the room is lived in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stillroom.scenes.arrange import NEAR, Arranger
from stillroom.scenes.builder import Item
from stillroom.scenes.layout import Layout

#: What stands with its back to a wall.
WALL_PIECES = (
    "bed",
    "sofa",
    "desk",
    "shelf",
    "cabinet",
    "dresser",
    "wardrobe",
    "fridge",
    "bench",
    "armchair",
)
TABLEWARE = ("mug", "bowl", "book", "bottle", "laptop", "vase", "plant", "box", "lamp")
SHELVED = ("book", "vase", "box", "bowl", "bottle", "mug", "ball")
SOFT = ("pillow", "book", "box", "laptop", "pillow")
DISPLAYED = ("television", "lamp", "vase", "book", "plant", "bowl", "monitor", "box")
ON_FLOOR = ("box", "ball", "vase", "lamp", "plant", "bin", "stool", "pillow", "book")

#: How a thing that belongs to no group stands.
RELATIONS = {"on": 0.3, "abut": 0.16, "near": 0.2, "under": 0.08, "free": 0.16, "lean": 0.1}
#: Tallest thing on a top [m].
TALLEST = 0.6


def furnish_home(layout: Layout, rng: np.random.Generator, *, unseen: bool) -> bool:
    """Fill a room with 20 to 40 things (unseen: 38 to 44); False if too few found a place."""
    wanted = int(rng.integers(38, 45)) if unseen else int(rng.integers(20, 41))
    arranger = Arranger(layout, rng, unseen=unseen, natural=True)
    if rng.random() < 0.7:
        _rug(arranger)
    if rng.random() < 0.85:
        _table_group(arranger)
    for category in rng.permutation(WALL_PIECES)[: int(rng.integers(4, 7))]:
        item = arranger.draw((str(category),))
        if arranger.at_wall(item, tries=12):
            number = len(layout.placed) - 1
            _COMPANIONS.get(str(category), _displayed)(arranger, number)
    for _ in range(int(rng.integers(1, 4))):
        _hang(arranger)
    for _ in range(10 * wanted):
        if len(layout.placed) >= wanted:
            break
        _one_more(arranger)
    return len(layout.placed) >= min(wanted, 20 if not unseen else 38)


def _one_more(a: Arranger) -> None:
    draw = a.rng.random()
    if draw < 0.3:
        a.on(kinds=TABLEWARE, tallest=TALLEST)
    elif draw < 0.45:
        a.anywhere(a.draw(ON_FLOOR))
    else:
        a.add(RELATIONS)


def _rug(a: Arranger) -> None:
    plan = a.layout.plan
    yaw = int(a.rng.integers(2)) * np.pi / 2
    for _ in range(4):
        xy = a.rng.uniform(-0.12, 0.12, 2) * (plan.width, plan.depth)
        if a.layout.stand(a.draw(("rug",)), xy, yaw):
            return


def _table_group(a: Arranger) -> None:
    """A table near the middle, chairs at it, things on it."""
    plan = a.layout.plan
    for _ in range(6):
        xy = a.rng.uniform(-0.15, 0.15, 2) * (plan.width, plan.depth)
        item = a.draw(("table",))
        if item.size[2] > 0.6 and a.layout.stand(item, xy, a.yaw()):
            break
    else:
        return
    table = len(a.layout.placed) - 1
    for side in a.rng.permutation(4)[: int(a.rng.integers(2, 5))]:
        _seat(a, table, side * np.pi / 2, along=a.rng.uniform(-0.25, 0.25))
    _several(a, table, TABLEWARE, 2, 4)


def _seat(a: Arranger, target: int, side: float, along: float) -> bool:
    """A chair or stool that looks at thing ``target`` from ``side``, pushed in or drawn out."""
    goal = a.layout.placed[target]
    angle = goal.yaw + side
    off = along * np.array([-np.sin(side), np.cos(side)]) * goal.item.size[:2]
    for _ in range(3):
        retreat = 0.0 if a.rng.random() < 0.5 else float(a.rng.uniform(NEAR[0], 0.35))
        item = a.draw(("chair", "chair", "stool"))
        if a.layout.push(item, target, angle - np.pi / 2, angle, goal.to_world(off), retreat):
            return True
    return False


def _several(a: Arranger, support: int, kinds: tuple[str, ...], least: int, most: int) -> None:
    """Some things on one support, mostly square to it."""
    for _ in range(int(a.rng.integers(least, most + 1))):
        turn = float(a.rng.normal(0.0, 0.15)) if a.rng.random() < 0.6 else None
        any(a.on(support, kinds, turn, tallest=TALLEST) for _ in range(4))


def _hang(a: Arranger) -> None:
    for _ in range(6):
        item = a.draw(("picture",))
        side, along = int(a.rng.integers(4)), float(a.rng.uniform(-1, 1))
        if a.layout.hang(item, side, along, float(a.rng.uniform(1.1, 1.6))):
            return


def _bed(a: Arranger, number: int) -> None:
    """Nightstands beside its head, things on it."""
    for side in (-1, 1):
        if a.rng.random() < 0.65 and _beside(a, number, a.draw(("nightstand",)), side):
            _several(a, len(a.layout.placed) - 1, ("lamp", "book", "mug", "vase", "plant"), 1, 2)
    _several(a, number, SOFT, 0, 2)


def _beside(a: Arranger, number: int, item: Item, side: int) -> bool:
    """At one side of a thing, back to the same wall; touching or clearly apart."""
    bed = a.layout.placed[number]
    gap = 0.0 if a.rng.random() < 0.5 else float(a.rng.uniform(NEAR[0], 0.3))
    x = side * (0.5 * (bed.item.size[0] + item.size[0]) + gap)
    y = 0.5 * (bed.item.size[1] - item.size[1])
    return a.layout.stand(item, bed.to_world(np.array([x, y])), bed.yaw)


def _desk(a: Arranger, number: int) -> None:
    """A chair before it, a screen and more on it."""
    desk = a.layout.placed[number]
    if desk.item.hollow is not None:
        middle = 0.5 * (desk.item.hollow.low[0] + desk.item.hollow.high[0])
        _seat(a, number, -np.pi / 2, along=middle / desk.item.size[0])
    _several(a, number, ("monitor", "laptop", "monitor"), 1, 1)
    _several(a, number, ("lamp", "book", "mug", "bottle", "plant"), 1, 3)


def _sofa(a: Arranger, number: int) -> None:
    """Pillows on it, a low table before it."""
    _several(a, number, SOFT, 1, 2)
    sofa = a.layout.placed[number]
    for _ in range(4):
        item = a.draw(("table",), (1.2, 0.6, 0.52))
        gap = a.rng.uniform(0.25, 0.5)
        y = -0.5 * (sofa.item.size[1] + item.size[1]) - gap
        if a.layout.stand(item, sofa.to_world(np.array([0.0, y])), sofa.yaw):
            _several(a, len(a.layout.placed) - 1, TABLEWARE, 1, 3)
            return


def _shelved(a: Arranger, number: int) -> None:
    _several(a, number, SHELVED, 3, 5)


def _displayed(a: Arranger, number: int) -> None:
    _several(a, number, DISPLAYED, 1, 3)


def _nothing(a: Arranger, number: int) -> None:
    """Too high to stand things on, or meant to be sat on."""


_COMPANIONS: dict[str, Callable[[Arranger, int], None]] = {
    "bed": _bed,
    "desk": _desk,
    "sofa": _sofa,
    "shelf": _shelved,
    "wardrobe": _nothing,
    "fridge": _nothing,
}
