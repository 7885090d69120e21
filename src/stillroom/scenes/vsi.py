"""The tasks of VSI-Bench, asked about made rooms under its own names.

Objects are called by their unique names. Bearings are between box centres seen from above;
distances are between surfaces. Clear cases only, as in the four families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np
from jaxtyping import Float

from stillroom.scenes.balance import Candidate
from stillroom.scenes.facts import MIN_SHARE, RoomFacts
from stillroom.scenes.families import BEARING_DEG, PROXIMITY_LEAST_M, PROXIMITY_RATIO

#: Where one stands, faces and looks for are this far apart (metres, seen from above).
STANDING_M = 0.5
#: "An object is to my back if I would have to turn at least 135 degrees".
BACK_DEG = 135.0
#: Shorter distances are not asked for: their relative error says nothing (metres).
LEAST_DISTANCE_M = 0.3
#: A thing has not appeared yet while it covers less than this share of a view.
UNSEEN_SHARE = 0.0005
#: A straight way is free if no other thing standing on the floor is this near to it (metres).
WAY_M = 0.15
CHOICES = 4
#: Shares wanted of left, right and back. One question is asked a room, and few rooms have anything
#: at one's back: with these, a third of what is asked is "back".
MEDIUM_TARGETS = (0.315, 0.315, 0.37)

_TRIES = 60
_QUADRANTS = ("front-left", "front-right", "back-left", "back-right")
_TURNS = ("Turn Left", "Turn Right", "Turn Back")


def turn_deg(
    at: Float[np.ndarray, "2"], facing: Float[np.ndarray, "2"], to: Float[np.ndarray, "2"]
) -> float:
    """How far one at ``at``, facing ``facing``, turns to the left to face ``to``: -180..180."""
    ahead, aim = facing - at, to - at
    cross = ahead[0] * aim[1] - ahead[1] * aim[0]
    return float(np.degrees(np.arctan2(cross, ahead @ aim)))


def direction_easy(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """Left or right of what one faces; never behind one's back."""
    found = []
    for ids, turn in _standings(facts, rng):
        if BEARING_DEG <= abs(turn) <= BACK_DEG - BEARING_DEG:
            task, said = "object_rel_direction_easy", ("left", "right")
            found.append(_direction(task, facts, ids, turn, said))
    return found


def direction_medium(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """Left, right, or at one's back."""
    found = []
    for ids, turn in _standings(facts, rng):
        if abs(turn) >= BEARING_DEG and abs(abs(turn) - BACK_DEG) >= BEARING_DEG:
            task, said = "object_rel_direction_medium", ("left", "right", "back")
            found.append(replace(_direction(task, facts, ids, turn, said), targets=MEDIUM_TARGETS))
    return found


def direction_hard(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """Which quadrant, the faced thing lying on the forward axis."""
    found = []
    for ids, turn in _standings(facts, rng):
        if abs((turn + 45.0) % 90.0 - 45.0) >= BEARING_DEG:
            found.append(_direction("object_rel_direction_hard", facts, ids, turn, _QUADRANTS))
    return found


def direction_said(turn: float, said: tuple[str, ...]) -> str:
    """Which of the directions of a task a turn to the left by that many degrees is."""
    side = "left" if turn > 0 else "right"
    if len(said) == len(_QUADRANTS):
        return f"{'front' if abs(turn) < 90.0 else 'back'}-{side}"
    return "back" if "back" in said and abs(turn) > BACK_DEG else side


def _direction(
    task: str, facts: RoomFacts, ids: tuple[int, ...], turn: float, said: tuple[str, ...]
) -> Candidate:
    stand, face, ask = (facts.things[i].category for i in ids)
    behind = ("back", f"stand|{stand}", f"face|{face}", f"ask|{ask}")
    edges = np.array([0.0, 90.0, 180.0] if said == _QUADRANTS else [0.0, BACK_DEG])
    return Candidate(
        task=task,
        ids=ids,
        answer=said.index(direction_said(turn, said)),
        keys=tuple(behind if word.startswith("back") else () for word in said),
        value=turn,
        margin=float(np.abs(abs(turn) - edges).min()),
        said=said,
    )


def _standings(
    facts: RoomFacts, rng: np.random.Generator
) -> list[tuple[tuple[int, int, int], float]]:
    """Random (stand by, face, look for) with the turn to the left in degrees."""
    found = []
    for ids in _draws(facts.bulky, 3, rng):
        at, facing, to = (facts.center[i, :2] for i in ids)
        gaps = (facing - at, to - at, to - facing)
        if min(float(np.linalg.norm(gap)) for gap in gaps) >= STANDING_M:
            found.append(((ids[0], ids[1], ids[2]), turn_deg(at, facing, to)))
    return found


def _draws(pool: np.ndarray, size: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Random ordered choices of ``size`` different members, without repeats."""
    if len(pool) < size:
        return []
    draws = (tuple(rng.permutation(pool)[:size].tolist()) for _ in range(_TRIES))
    return list(dict.fromkeys(draws))


def rel_distance(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """Which of four is closest to another, by the margin of proximity."""
    found = []
    for a, *choices in _draws(facts.shown, 1 + CHOICES, rng):
        away = facts.distance[a, choices]
        near, second = np.sort(away)[:2]
        if near < PROXIMITY_LEAST_M or second < PROXIMITY_RATIO * near:
            continue
        to = facts.things[a].category
        others = [facts.things[i].category for i in choices]
        found.append(
            Candidate(
                task="object_rel_distance",
                ids=(a, *choices),
                answer=int(away.argmin()),
                keys=tuple((f"{to}|{other}", other) for other in others),
                value=float(near),
                margin=float(second / near),
                said=tuple(facts.things[i].name for i in choices),
            )
        )
    return found


def abs_distance(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """Metres between two surfaces."""
    pairs = [pair for pair in _draws(facts.shown, 2, rng) if _away(facts, pair) >= LEAST_DISTANCE_M]
    return [_number("object_abs_distance", pair, _away(facts, pair)) for pair in pairs]


def _away(facts: RoomFacts, pair: tuple[int, ...]) -> float:
    return float(facts.distance[pair[0], pair[1]])


def counting(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """How many of a kind, where there are two or more and all are seen well."""
    kinds: dict[str, list[int]] = {}
    for i, thing in enumerate(facts.things):
        kinds.setdefault(thing.category, []).append(i)
    shown = set(facts.shown.tolist())
    asked = [tuple(ids) for ids in kinds.values() if len(ids) > 1 and shown.issuperset(ids)]
    order = rng.permutation(len(asked)).tolist()
    return [_number("object_counting", asked[i], float(len(asked[i]))) for i in order]


def size_estimation(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """Longest edge of a box in centimetres."""
    longest = {i: 100.0 * float(facts.things[i].box.size.max()) for i in facts.shown.tolist()}
    return [
        _number("object_size_estimation", (i,), longest[i])
        for i in rng.permutation(facts.shown).tolist()
    ]


def room_size(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """Floor area in square metres, of rooms that are rectangles."""
    if facts.scene.room_size is None or not rectangular(facts):
        return []
    return [_number("room_size_estimation", (), float(np.prod(facts.scene.room_size[:2])))]


def rectangular(facts: RoomFacts) -> bool:
    """Whether the floor is known to be the rectangle of ``room_size``."""
    # Rooms of split "shifted" may lack a corner that ``room_size`` knows nothing of.
    return facts.scene.split != "shifted"


def _number(task: str, ids: tuple[int, ...], value: float) -> Candidate:
    return Candidate(task=task, ids=ids, answer=0, keys=((),), value=value, margin=0.0)


def first_views(facts: RoomFacts) -> dict[int, int]:
    """First view that shows each thing well; things half seen before that are left out."""
    found = {}
    for i in facts.shown.tolist():
        share = facts.pixel_share[:, i]
        first = int((share >= MIN_SHARE).argmax())
        if (share[:first] < UNSEEN_SHARE).all():
            found[i] = first
    return found


def appearance_order(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """In which order four things come into view (three where the room has no four)."""
    first = first_views(facts)
    count = min(CHOICES, len(set(first.values())))
    if count < 3:
        return []
    found = []
    for ids in _draws(np.array(list(first)), count, rng):
        if len({first[i] for i in ids}) == count:
            order = tuple(sorted(ids, key=lambda i: first[i]))
            found.append(_order(facts, ids, order, rng))
    return found


def _order(
    facts: RoomFacts, ids: tuple[int, ...], order: tuple[int, ...], rng: np.random.Generator
) -> Candidate:
    """Drawn options: any order is as good as another, so that none stands out as the middle."""
    others = [other for other in permutations(order) if other != order]
    drawn = [others[i] for i in rng.permutation(len(others))[: CHOICES - 1]]
    options = [order, *drawn]
    # A thing's weight counts once for every thing that comes after it.
    keys = tuple(
        tuple(
            facts.things[i].category
            for place, i in enumerate(option)
            for _ in range(len(option) - 1 - place)
        )
        for option in options
    )
    return Candidate(
        task="obj_appearance_order",
        ids=ids,
        answer=0,
        keys=keys,
        value=0.0,
        margin=1.0,
        said=tuple(", ".join(facts.things[i].name for i in option) for option in options),
    )


def route(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """One turn between two free straight ways: from A to B, then to C."""
    if not rectangular(facts):
        return []
    found = []
    for (a, b, c), _ in _standings(facts, rng):
        start, corner, goal = (facts.center[i, :2] for i in (a, b, c))
        # At B one looks away from A.
        turn = turn_deg(corner, 2 * corner - start, goal)
        said = turn_said(turn)
        if said is None or not (free_way(facts, a, b) and free_way(facts, b, c)):
            continue
        kinds = [facts.things[i].category for i in (a, b, c)]
        back = ("back", *(f"{role}|{kind}" for role, kind in zip("abc", kinds)))
        found.append(
            Candidate(
                task="route_planning",
                ids=(a, b, c),
                answer=_TURNS.index(said),
                keys=((), (), back),
                value=turn,
                margin=float(np.abs(abs(turn) - np.array([45.0, BACK_DEG])).min()),
                said=_TURNS,
            )
        )
    return found


def turn_said(turn: float) -> str | None:
    """The turn that a robot takes; None where it is none of the three by a clear margin."""
    if abs(turn) >= BACK_DEG + BEARING_DEG:
        return "Turn Back"
    if 45.0 + BEARING_DEG <= abs(turn) <= BACK_DEG - BEARING_DEG:
        return "Turn Left" if turn > 0 else "Turn Right"
    return None


def free_way(facts: RoomFacts, a: int, b: int) -> bool:
    """Whether nothing that stands on the floor lies on the straight way between two things."""
    first, last = facts.things[a].box.center[:2], facts.things[b].box.center[:2]
    way = first + np.linspace(0.0, 1.0, 24)[:, None] * (last - first)
    for i, thing in enumerate(facts.things):
        if i in (a, b) or thing.supported_by != 0:
            continue
        local = (way - thing.box.center[:2]) @ thing.box.rotation[:2, :2]
        if (np.abs(local) < 0.5 * thing.box.size[:2] + WAY_M).all(axis=1).any():
            return False
    return True


MAKERS: dict[str, Callable[..., list[Candidate]]] = {
    "object_rel_direction_easy": direction_easy,
    "object_rel_direction_medium": direction_medium,
    "object_rel_direction_hard": direction_hard,
    "object_rel_distance": rel_distance,
    "object_abs_distance": abs_distance,
    "object_counting": counting,
    "object_size_estimation": size_estimation,
    "room_size_estimation": room_size,
    "obj_appearance_order": appearance_order,
    "route_planning": route,
}
