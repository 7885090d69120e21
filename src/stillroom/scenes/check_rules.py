"""What geometry says of a question about a made room: answer, value, margin, and why.

One rule a kind of sentence. A rule is given the objects that the sentence names and measures them
anew; what counts as clear (``families.py``, ``vsi.py``) is required of the case, as
``docs/world.md`` lists it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stillroom.scenes.facts import RoomFacts
from stillroom.scenes.families import (
    AHEAD_M,
    BEARING_DEG,
    BEFORE_M,
    CONTACT_GAP_M,
    PROXIMITY_LEAST_M,
    PROXIMITY_RATIO,
    SIZE_RATIO,
)
from stillroom.scenes.vsi import (
    BACK_DEG,
    LEAST_DISTANCE_M,
    STANDING_M,
    direction_said,
    first_views,
    free_way,
    rectangular,
    turn_deg,
    turn_said,
)
from stillroom.scenes.wording import listed

#: Numbers worked out twice may differ by rounding only.
SLACK = 1e-6


class WrongError(Exception):
    """What is wrong with a question, in words."""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """Words with their numbers left open, as in "The gap is {:.1f} m"."""

    words: str
    numbers: tuple[float, ...] = ()

    def __str__(self) -> str:
        return self.words.format(*self.numbers)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a question's row must say; ``margin`` is None for numbers."""

    answer: str
    value: float
    unit: str
    margin: float | None
    # The second sentence of the rationale.
    relation: Sentence


#: (room, objects in the order named, options without their letters) to what is measured.
Rule = Callable[[RoomFacts, list[int], tuple[str, ...]], Measured]


def require(so: bool, otherwise: str) -> None:
    """Raise ``WrongError`` with that sentence unless it is so."""
    if not so:
        raise WrongError(otherwise)


def _clear(margin: float, least: float) -> None:
    require(margin >= least - SLACK, f"the margin is {margin:.3f}, at least {least} is required")


def _bulky(facts: RoomFacts, ids: list[int]) -> None:
    require(set(ids) <= set(facts.bulky.tolist()), "a thing named is flat")


def _names(facts: RoomFacts, ids: list[int]) -> list[str]:
    return [facts.things[i].name for i in ids]


def _proximity(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Measured:
    ratio, _, nearest, relation = _nearest(facts, ids)
    return Measured(answer=nearest, value=ratio, unit="ratio", margin=ratio, relation=relation)


def _rel_distance(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Measured:
    ratio, near, nearest, relation = _nearest(facts, ids)
    return Measured(answer=nearest, value=near, unit="m", margin=ratio, relation=relation)


def _nearest(facts: RoomFacts, ids: list[int]) -> tuple[float, float, str, Sentence]:
    """(second / nearest, nearest [m], its name, the relation) as seen from the first object."""
    away = facts.distance[ids[0], ids[1:]]
    near, second = np.sort(away)[:2].tolist()
    require(near >= PROXIMITY_LEAST_M - SLACK, f"the nearest is {near:.3f} m away: too near to ask")
    _clear(second / near, PROXIMITY_RATIO)
    first, *others = _names(facts, ids)
    words = f"From the {first} it is {listed([f'{{:.1f}} m to the {name}' for name in others])}"
    relation = Sentence(words=words, numbers=tuple(away.tolist()))
    return second / near, near, others[int(away.argmin())], relation


def _contact(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Measured:
    a, b = ids
    gap = float(facts.distance[a, b])
    require(bool(facts.together[a, b]), "no view shows both")
    if facts.touching[a, b]:
        relation = Sentence(words="Their surfaces touch")
        margin = CONTACT_GAP_M - gap
        return Measured(answer="yes", value=gap, unit="m", margin=margin, relation=relation)
    _clear(gap, CONTACT_GAP_M)
    require(bool(facts.gap_seen[a, b]), "no view shows the gap")
    relation = Sentence(words="The gap is {:.1f} m", numbers=(gap,))
    return Measured(answer="no", value=gap, unit="m", margin=gap, relation=relation)


def _size(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Measured:
    _bulky(facts, ids)
    volumes = facts.volume[ids]
    ratio = float(volumes.max() / volumes.min())
    _clear(ratio, SIZE_RATIO)
    one, other = _names(facts, ids)
    return Measured(
        answer=(one, other)[int(volumes.argmax())],
        value=ratio,
        unit="ratio",
        margin=ratio,
        relation=Sentence(
            words=f"The {one} fills {{:.0f}} l and the {other} fills {{:.0f}} l",
            numbers=tuple((1000 * volumes).tolist()),
        ),
    )


def _left_right(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Measured:
    first, second = _before_the_camera(facts, ids, facts.bearing_deg)
    _clear(abs(second - first), BEARING_DEG)
    one, other = _names(facts, ids)
    return Measured(
        answer="left" if first < second else "right",
        value=second - first,
        unit="deg",
        margin=abs(second - first),
        relation=Sentence(
            words=f"In degrees to the right, I see the {one} at {{:.0f}} and the {other} at "
            "{:.0f}",
            numbers=(first, second),
        ),
    )


def _front_behind(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Measured:
    first, second = _before_the_camera(facts, ids, facts.center[:, 1])
    _clear(abs(second - first), AHEAD_M)
    one, other = _names(facts, ids)
    return Measured(
        answer="in front" if first < second else "behind",
        value=second - first,
        unit="m",
        margin=abs(second - first),
        relation=Sentence(
            words=f"The {one} is {{:.1f}} m and the {other} is {{:.1f}} m ahead",
            numbers=(first, second),
        ),
    )


def _before_the_camera(facts: RoomFacts, ids: list[int], values: np.ndarray) -> tuple[float, float]:
    """The values of two bulky things that lie before the first camera."""
    _bulky(facts, ids)
    ahead = float(facts.center[ids, 1].min())
    require(ahead >= BEFORE_M - SLACK, "a thing named does not lie before the first camera")
    return float(values[ids[0]]), float(values[ids[1]])


def _direction(
    directions: set[str], edges: tuple[float, ...], clear: Callable[[float], bool]
) -> Rule:
    """Standing by one thing and facing another: where a third one is."""

    def rule(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Measured:
        require(set(choices) == directions, f"the options are {choices}")
        turn = turn_deg(*_standing(facts, ids))
        require(clear(abs(turn)), f"{turn:.1f} degrees are no clear direction")
        return Measured(
            answer=direction_said(turn, choices),
            value=turn,
            unit="deg",
            margin=min(abs(abs(turn) - edge) for edge in edges),
            relation=_turned(facts, ids, turn),
        )

    return rule


def _standing(facts: RoomFacts, ids: list[int]) -> list[np.ndarray]:
    """Places on the floor of three bulky things that are far enough from one another [m]."""
    _bulky(facts, ids)
    places = [facts.center[i, :2] for i in ids]
    apart = min(float(np.linalg.norm(places[a] - places[b])) for a, b in ((0, 1), (0, 2), (1, 2)))
    require(
        apart >= STANDING_M - SLACK,
        f"two of the places are {apart:.2f} m apart, at least {STANDING_M} m are required",
    )
    return places


def _turned(facts: RoomFacts, ids: list[int], turn: float) -> Sentence:
    name, side = facts.things[ids[-1]].name, "left" if turn > 0 else "right"
    return Sentence(words=f"The {name} is {{:.0f}} degrees to the {side}", numbers=(abs(turn),))


def _route(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Measured:
    require(set(choices) == {"Turn Left", "Turn Right", "Turn Back"}, f"the options are {choices}")
    require(rectangular(facts), "the room may lack a corner, its ways are unknown")
    start, corner, goal = _standing(facts, ids)
    turn = turn_deg(corner, 2 * corner - start, goal)
    answer = turn_said(turn)
    if answer is None:
        raise WrongError(f"{turn:.1f} degrees are no clear turn")
    for a, b in (ids[:2], ids[1:]):
        one, other = _names(facts, [a, b])
        require(free_way(facts, a, b), f"something stands between the {one} and the {other}")
    return Measured(
        answer=answer,
        value=turn,
        unit="deg",
        margin=min(abs(abs(turn) - 45.0), abs(abs(turn) - BACK_DEG)),
        relation=_turned(facts, ids, turn),
    )


def _order(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Measured:
    first = first_views(facts)
    require(
        all(i in first for i in ids) and len({first[i] for i in ids}) == len(ids),
        "two things come into view at once, or one only in part at first",
    )
    things = sorted(_names(facts, ids))
    for option in choices:
        require(sorted(option.split(", ")) == things, f"{option!r} is no order of the things named")
    answer = ", ".join(_names(facts, sorted(ids, key=lambda i: first[i])))
    relation = Sentence(words=f"They come in the order {answer}")
    return Measured(answer=answer, value=0.0, unit="views", margin=1.0, relation=relation)


def _abs_distance(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Measured:
    away = float(facts.distance[ids[0], ids[1]])
    _clear(away, LEAST_DISTANCE_M)
    return _number(
        away, 1, "m", Sentence(words="Between their surfaces are {:.1f} m", numbers=(away,))
    )


def _counting(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Measured:
    require(len(ids) >= 2, f"the room has {len(ids)} of the kind, two or more are required")
    return _number(
        float(len(ids)), 0, "count", Sentence(words="I count {:.0f}", numbers=(float(len(ids)),))
    )


def _longest_edge(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Measured:
    edge = 100.0 * float(facts.things[ids[0]].box.size.max())
    return _number(edge, 0, "cm", Sentence(words="Its longest edge is {:.0f} cm", numbers=(edge,)))


def _room_size(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Measured:
    size = facts.scene.room_size
    if size is None or not rectangular(facts):
        raise WrongError("the room's size is unknown")
    sides = (float(size[0]), float(size[1]))
    said = Sentence(words="The room is {:.1f} m by {:.1f} m", numbers=sides)
    return _number(sides[0] * sides[1], 1, "m2", said)


def _number(value: float, decimals: int, unit: str, relation: Sentence) -> Measured:
    """A number's value is what its answer says."""
    answer = f"{value:.{decimals}f}"
    return Measured(answer=answer, value=float(answer), unit=unit, margin=None, relation=relation)


def _to_a_side(turn: float) -> bool:
    return BEARING_DEG - SLACK <= turn <= BACK_DEG - BEARING_DEG + SLACK


def _to_a_side_or_back(turn: float) -> bool:
    return min(turn, abs(turn - BACK_DEG)) >= BEARING_DEG - SLACK


def _in_a_quadrant(turn: float) -> bool:
    return min(abs(turn - edge) for edge in (0.0, 90.0, 180.0)) >= BEARING_DEG - SLACK


RULES: dict[str, Rule] = {
    "proximity": _proximity,
    "contact": _contact,
    "size": _size,
    "left_right": _left_right,
    "front_behind": _front_behind,
    "object_rel_direction_easy": _direction({"left", "right"}, (0.0, BACK_DEG), _to_a_side),
    "object_rel_direction_medium": _direction(
        {"left", "right", "back"}, (0.0, BACK_DEG), _to_a_side_or_back
    ),
    "object_rel_direction_hard": _direction(
        {"front-left", "front-right", "back-left", "back-right"}, (0.0, 90.0, 180.0), _in_a_quadrant
    ),
    "object_rel_distance": _rel_distance,
    "obj_appearance_order": _order,
    "route_planning": _route,
    "object_abs_distance": _abs_distance,
    "object_counting": _counting,
    "object_size_estimation": _longest_edge,
    "room_size_estimation": _room_size,
}
