"""How things come to stand where they do: on, under, against and beside each other.

What a pair of things does is drawn independently of what they are, as far as their sizes allow:
names alone must not tell whether two things touch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stillroom.scenes import furniture
from stillroom.scenes.builder import Item, Top, tilted
from stillroom.scenes.layout import Layout
from stillroom.scenes.paints import COLOURS, PATTERNS
from stillroom.scenes.physics import APART

#: Kinds of plain rooms: what stands on the floor, and what also stands on others.
LARGE = ("chair", "armchair", "stool", "bench", "sofa", "bed", "table", "desk", "shelf", "cabinet")
SMALL = ("box", "ball", "vase", "lamp", "plant", "bin")
#: Kinds whose front looks at what they are pushed against.
SEATS = ("chair", "armchair", "stool")
#: Largest height of a top that others are stood on [m].
REACH = 1.35
#: A gap that is clear in the pictures but near [m].
NEAR = (APART + 0.005, 0.6)

#: How the next thing stands to what is there, and how often.
PLAIN_RELATIONS = {"on": 0.34, "abut": 0.34, "near": 0.18, "under": 0.04, "free": 0.1}


class Arranger:
    """Draws things and finds places for them; keeps names unique.

    ``natural`` sizes are the usual ones of a home; else every kind uses its whole range.
    """

    def __init__(
        self, layout: Layout, rng: np.random.Generator, *, unseen: bool, natural: bool
    ) -> None:
        self.layout = layout
        self.rng = rng
        self.unseen = unseen
        self.natural = natural
        self._ways: dict[str, Callable[[], bool]] = {
            "on": self.on,
            "abut": lambda: self.push_anywhere(0.0),
            "near": lambda: self.push_anywhere(float(rng.uniform(*NEAR))),
            "under": self.under,
            "free": lambda: self.anywhere(self.draw(LARGE if rng.random() < 0.4 else SMALL)),
            "lean": self.lean,
        }

    def add(self, relations: Mapping[str, float]) -> bool:
        """One more thing in a drawn relation to what is there, if it finds a place."""
        relation = self.rng.choice(list(relations), p=list(relations.values()))
        return any(self._ways[relation]() for _ in range(5))

    def draw(self, kinds: tuple[str, ...], limit: tuple[float, float, float] | None = None) -> Item:
        """A thing of one of the kinds with a name of its own, no larger than ``limit``."""
        category, size = self._draw_size(kinds)
        for _ in range(30):
            if limit is None or all(a <= b for a, b in zip(size, limit)):
                break
            category, size = self._draw_size(kinds)
        colour, pattern = self._look(category)
        return furniture.build(category, size, colour, pattern, self.rng, unseen=self.unseen)

    def _draw_size(self, kinds: tuple[str, ...]) -> tuple[str, tuple[float, float, float]]:
        category = kinds[int(self.rng.integers(len(kinds)))]
        return category, furniture.draw_size(category, self.rng, natural=self.natural)

    def _look(self, category: str) -> tuple[str, str]:
        """A colour and pattern that no other thing of the kind has.

        In a home often a colour of that kind again; in a plain room a colour that nothing else
        has, as long as there is one: there the colour alone says which thing is meant.
        """
        taken = {
            (place.item.colour, place.item.pattern)
            for place in self.layout.placed
            if place.item.category == category
        }
        colours: Sequence[str] = COLOURS
        if not self.natural:
            used = {place.item.colour for place in self.layout.placed}
            colours = [colour for colour in COLOURS if colour not in used] or COLOURS
        while True:
            colour = colours[int(self.rng.integers(len(colours)))]
            if self.natural and taken and self.rng.random() < 0.3:
                colour = sorted(taken)[int(self.rng.integers(len(taken)))][0]
            pattern = str(self.rng.choice(PATTERNS, p=(0.6, 0.2, 0.2)))
            if (colour, pattern) not in taken:
                return colour, pattern

    def yaw(self, base: float = 0.0) -> float:
        """Square with ``base`` more often than not."""
        if self.rng.random() < 0.6:
            return base + int(self.rng.integers(4)) * np.pi / 2
        return float(self.rng.uniform(-np.pi, np.pi))

    def anywhere(self, item: Item) -> bool:
        """On the floor, anywhere."""
        plan = self.layout.plan
        xy = self.rng.uniform(-0.5, 0.5, 2) * (plan.width, plan.depth)
        return self.layout.stand(item, xy, self.yaw())

    def at_wall(self, item: Item, tries: int = 1) -> bool:
        """On the floor, with its back to a wall."""
        return any(
            self.layout.stand_at_wall(item, int(self.rng.integers(4)), self.rng.uniform(-1, 1))
            for _ in range(tries)
        )

    def on(
        self,
        support: int | None = None,
        kinds: tuple[str, ...] = SMALL,
        turn: float | None = None,
        tallest: float = 1.1,
    ) -> bool:
        """On top of something, or of thing number ``support``."""
        numbers: Sequence[int] = (support,) if support is not None else self._standing()
        tops = [
            (number, top)
            for number in numbers
            for top in self.layout.placed[number].item.tops
            if self.layout.placed[number].position[2] + top.z < REACH and min(_span(top)) > 0.2
        ]
        if not tops:
            return False
        number, top = tops[int(self.rng.integers(len(tops)))]
        longest = max(_span(top))
        item = self.draw(kinds, (longest, longest, min(top.clearance, tallest)))
        turn = self.yaw() if turn is None else turn
        return self.layout.stand_on(item, number, top, self.rng, turn=turn)

    def under(self) -> bool:
        """On the floor below something on legs."""
        hollows = [
            (number, place.item.hollow)
            for number, place in enumerate(self.layout.placed)
            if place.item.hollow is not None and place.item.hollow.clearance > 0.35
        ]
        if not hollows:
            return False
        number, hollow = hollows[int(self.rng.integers(len(hollows)))]
        width, depth = _span(hollow)
        item = self.draw(SMALL, (width, max(depth, 0.4), hollow.clearance - APART))
        return self.layout.stand_on(item, number, hollow, self.rng, turn=self.yaw())

    def push_anywhere(self, retreat: float) -> bool:
        """Pushed against something, then drawn back by ``retreat``."""
        target = self._target()
        if target is None:
            return False
        goal = self.layout.placed[target]
        high = goal.support is not None
        item = self.draw(SMALL if high or self.rng.random() < 0.55 else LARGE)
        angle = self._direction(goal.yaw)
        yaw = self.yaw(goal.yaw)
        if item.category in SEATS and self.rng.random() < 0.7:
            # The front, along -y, looks at the target.
            yaw = angle - np.pi / 2
        return self._push(item, target, yaw, angle, retreat)

    def lean(self) -> bool:
        """A picture that stands on the floor and leans against something, or nearly does."""
        target = self._target()
        if target is None or self.layout.placed[target].support is not None:
            return False
        goal = self.layout.placed[target]
        item = tilted(self.draw(("picture",)), self.rng.uniform(0.12, 0.3))
        angle = self._direction(goal.yaw)
        retreat = 0.0 if self.rng.random() < 0.7 else float(self.rng.uniform(*NEAR))
        if retreat:
            return self.at_wall(item)
        # The back, along y, is at the target.
        return self._push(item, target, angle + np.pi / 2, angle, 0.0)

    def _standing(self) -> list[int]:
        """Numbers of all that neither hangs nor lies flat on the floor."""
        placed = self.layout.placed
        return [k for k, place in enumerate(placed) if not (place.flat or place.hung)]

    def _target(self) -> int | None:
        """Something that stands, to push others against."""
        standing = self._standing()
        return standing[int(self.rng.integers(len(standing)))] if standing else None

    def _direction(self, yaw: float) -> float:
        if self.rng.random() < 0.3:
            return float(self.rng.uniform(-np.pi, np.pi))
        return yaw + int(self.rng.integers(4)) * np.pi / 2

    def _push(self, item: Item, target: int, yaw: float, angle: float, retreat: float) -> bool:
        goal = self.layout.placed[target]
        off = self.rng.uniform(-0.35, 0.35, 2) * goal.item.size[:2]
        return self.layout.push(item, target, yaw, angle, goal.to_world(off), retreat)


def furnish_plain(layout: Layout, rng: np.random.Generator, *, unseen: bool) -> bool:
    """Fill a plain room with 4 to 9 things (unseen: 10 to 12); False if too few found a place."""
    wanted = int(rng.integers(10, 13)) if unseen else int(rng.integers(4, 10))
    arranger = Arranger(layout, rng, unseen=unseen, natural=False)
    for _ in range(1 if wanted < 6 else 2):
        for _ in range(10):
            item = arranger.draw(LARGE)
            placed = arranger.at_wall(item) if rng.random() < 0.6 else arranger.anywhere(item)
            if placed:
                break
    for _ in range(6 * wanted):
        if len(layout.placed) >= wanted or not layout.placed:
            break
        arranger.add(PLAIN_RELATIONS)
    return len(layout.placed) >= (10 if unseen else 4)


def _span(top: Top) -> tuple[float, float]:
    return top.high[0] - top.low[0], top.high[1] - top.low[1]
