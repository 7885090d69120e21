"""Which things a room gets and how they stand to each other.

What a pair of things does (touch, stand near, stand apart) is drawn independently of what they
are, as far as their sizes allow: names alone must not tell.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stillroom.scenes import furniture
from stillroom.scenes.furniture import KINDS, Item, Top
from stillroom.scenes.layout import Layout
from stillroom.scenes.paints import COLOURS, PATTERNS
from stillroom.scenes.physics import APART

LARGE = ("chair", "armchair", "stool", "bench", "sofa", "bed", "table", "desk", "shelf", "cabinet")
SMALL = ("box", "ball", "vase", "lamp", "plant", "bin")
#: Kinds that have a front which others are approached from.
SEATS = ("chair", "armchair", "stool")
#: Largest height of a top that others are stood on [m].
REACH = 1.35

#: How the next thing stands to what is there, and how often.
RELATIONS = {"on": 0.28, "abut": 0.24, "near": 0.28, "under": 0.06, "free": 0.14}


def furnish(layout: Layout, rng: np.random.Generator, *, density: str, unseen: bool) -> bool:
    """Fill the room; False if too few things found a place."""
    wanted = int(rng.integers(10, 13)) if unseen else int(rng.integers(4, 10))
    least = 10 if unseen else 4
    arranger = _Arranger(layout, rng, unseen)
    for _ in range(1 if wanted < 6 else 2):
        arranger.anchor()
    for _ in range(6 * wanted):
        if len(layout.placed) >= wanted:
            break
        arranger.add()
    return len(layout.placed) >= least


class _Arranger:
    """Draws things and places; keeps names unique."""

    def __init__(self, layout: Layout, rng: np.random.Generator, unseen: bool) -> None:
        self.layout = layout
        self.rng = rng
        self.unseen = unseen
        self._ways: dict[str, Callable[[], bool]] = {
            "on": self.on,
            "abut": self.abut,
            "near": self.near,
            "under": self.under,
            "free": self.free,
        }

    def anchor(self) -> None:
        """A large thing, with its back to a wall or anywhere."""
        for _ in range(10):
            item = self.draw(LARGE)
            if self.rng.random() < 0.6:
                side, along = int(self.rng.integers(4)), self.rng.uniform(-1, 1)
                done = self.layout.stand_at_wall(item, side, along)
            else:
                done = self._anywhere(item)
            if done:
                return

    def add(self) -> None:
        """One more thing in a drawn relation to what is there, if it finds a place."""
        relation = self.rng.choice(list(RELATIONS), p=list(RELATIONS.values()))
        for _ in range(5):
            if self._ways[relation]():
                return

    def draw(self, kinds: tuple[str, ...], limit: tuple[float, float, float] | None = None) -> Item:
        """A thing of one of the kinds with a name of its own, no larger than ``limit``."""
        size = (9.0, 9.0, 9.0)
        for _ in range(30):
            category = str(self.rng.choice(kinds))
            size = furniture.draw_size(category, self.rng)
            if limit is None or all(a <= b for a, b in zip(size, limit)):
                break
        colour, pattern = self._look(category)
        return furniture.build(category, size, colour, pattern, self.rng, unseen=self.unseen)

    def _look(self, category: str) -> tuple[str, str]:
        """A colour and pattern that no other thing of the kind has; often one near to another's."""
        taken = {
            (place.item.colour, place.item.pattern)
            for place in self.layout.placed
            if place.item.category == category
        }
        while True:
            colour = str(self.rng.choice(COLOURS))
            if taken and self.rng.random() < 0.3:
                colour = sorted(taken)[int(self.rng.integers(len(taken)))][0]
            pattern = str(self.rng.choice(PATTERNS, p=(0.6, 0.2, 0.2)))
            if (colour, pattern) not in taken:
                return colour, pattern

    def _yaw(self, base: float = 0.0) -> float:
        """Square with ``base`` more often than not."""
        if self.rng.random() < 0.6:
            return base + int(self.rng.integers(4)) * np.pi / 2
        return float(self.rng.uniform(-np.pi, np.pi))

    def _anywhere(self, item: Item) -> bool:
        plan = self.layout.plan
        xy = self.rng.uniform(-0.5, 0.5, 2) * (plan.width, plan.depth)
        return self.layout.stand(item, xy, self._yaw())

    def free(self) -> bool:
        """On the floor, anywhere."""
        return self._anywhere(self.draw(LARGE if self.rng.random() < 0.4 else SMALL))

    def on(self) -> bool:
        """On top of something."""
        tops = [
            (number, top)
            for number, place in enumerate(self.layout.placed)
            for top in place.item.tops
            if place.position[2] + top.z < REACH and min(_span(top)) > 0.2
        ]
        if not tops:
            return False
        number, top = tops[int(self.rng.integers(len(tops)))]
        width, depth = _span(top)
        item = self.draw(SMALL, (max(width, depth), max(width, depth), min(top.clearance, 1.1)))
        turn = self._yaw()
        return self.layout.stand_on(item, number, top, self.rng, turn=turn)

    def under(self) -> bool:
        """On the floor below something on legs."""
        hollows = [
            (number, place.item.hollow)
            for number, place in enumerate(self.layout.placed)
            if place.item.hollow is not None
            and place.support is None
            and place.item.hollow.clearance > 0.35
        ]
        if not hollows:
            return False
        number, hollow = hollows[int(self.rng.integers(len(hollows)))]
        width, depth = _span(hollow)
        item = self.draw(SMALL, (width, max(depth, 0.4), hollow.clearance - APART))
        return self.layout.stand_on(item, number, hollow, self.rng, turn=self._yaw())

    def abut(self) -> bool:
        """Pushed against something."""
        return self._push(0.0)

    def near(self) -> bool:
        """Beside something, with a clear gap."""
        return self._push(float(self.rng.uniform(APART + 0.005, 0.6)))

    def _push(self, retreat: float) -> bool:
        target = int(self.rng.integers(len(self.layout.placed)))
        goal = self.layout.placed[target]
        high = goal.support is not None
        item = self.draw(SMALL if high or self.rng.random() < 0.55 else LARGE)
        angle = goal.yaw + int(self.rng.integers(4)) * np.pi / 2
        if self.rng.random() < 0.3:
            angle = float(self.rng.uniform(-np.pi, np.pi))
        yaw = self._yaw(goal.yaw)
        if item.category in SEATS and self.rng.random() < 0.7:
            # The front, along -y, looks at the target.
            yaw = angle - np.pi / 2
        off = self.rng.uniform(-0.35, 0.35, 2) * goal.item.size[:2]
        return self.layout.push(item, target, yaw, angle, goal.to_world(off), retreat)


def _span(top: Top) -> tuple[float, float]:
    return top.high[0] - top.low[0], top.high[1] - top.low[1]


assert set(LARGE + SMALL) == set(KINDS)
