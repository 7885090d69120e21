"""Every stored answer of a made room, worked out again from its geometry and the words asked.

Nothing of how the question was made is used but its text: names are read out of the sentence, and
distances, boxes and views are measured anew.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from stillroom.records import Question, Scene
from stillroom.scenes.descriptions import LEAST_WORDS, MOST_WORDS, facts_of
from stillroom.scenes.facts import RoomFacts
from stillroom.scenes.families import (
    AHEAD_M,
    BEARING_DEG,
    CONTACT_GAP_M,
    PROXIMITY_RATIO,
    SIZE_RATIO,
)
from stillroom.scenes.vsi import direction_said, first_views, turn_deg, turn_said
from stillroom.scenes.wording import VSI_CHOICE_TASKS, VSI_WORDING, named, named_in_vsi

#: Stored margins may differ from new ones by rounding only.
_SLACK = 1e-6
_PLACE = re.compile(r"the ([a-z -]+?) at \((-?[\d.]+), (-?[\d.]+), (-?[\d.]+)\)")
#: Rationales say positions to a decimetre.
_PLACE_SLACK_M = 0.05 + 1e-6


class _WrongError(Exception):
    """What is wrong with a question, in words."""


def check_scene(scene: Scene, questions: Sequence[Question]) -> list[str]:
    """What does not agree with the geometry of the room, one sentence each; empty if all does."""
    from stillroom.scenes.physics import surface_distances

    facts = RoomFacts(scene=scene, distance=surface_distances(scene.objects))
    return check_facts(facts, questions)


def check_facts(facts: RoomFacts, questions: Sequence[Question]) -> list[str]:
    """As ``check_scene``, with the distances given."""
    wrong = []
    for question_id, count in Counter(question.question_id for question in questions).items():
        if count > 1:
            wrong.append(f"{question_id}: {count} questions carry this id")
    for question in questions:
        try:
            _check(facts, question)
        except _WrongError as error:
            wrong.append(f"{question.question_id} ({question.family}): {error}")
    return wrong


def _check(facts: RoomFacts, question: Question) -> None:
    if question.family == "description":
        _check_description(facts, question)
        return
    kinds = _KINDS.get(question.family, (question.family,))
    for kind in kinds:
        read = named_in_vsi if kind in VSI_WORDING else named
        names = read(kind, question.question)
        if names is not None:
            break
    else:
        raise _WrongError(f"the sentence is none of this family's: {question.question!r}")
    ids = _indices(facts, kind, names)
    if not set(ids) <= set(facts.shown.tolist()):
        raise _WrongError("an object named is not seen well in two views")
    answer, margin = _RULES[kind](facts, ids, _choices(question, kind, names))
    if answer != _said(question):
        raise _WrongError(f"the stored answer is {_said(question)!r}, geometry says {answer!r}")
    if margin is not None and (question.margin is None or abs(margin - question.margin) > _SLACK):
        raise _WrongError(f"the stored margin is {question.margin}, geometry says {margin}")
    _check_rationale(facts, question)


# kinds of sentence of a family that has several
_KINDS = {"orientation": ("left_right", "front_behind")}


def _said(question: Question) -> str:
    """The answer as text: of a lettered option what stands behind the letter."""
    if question.family not in VSI_CHOICE_TASKS:
        return question.answer
    for option in question.options:
        if option.startswith(f"{question.answer}. "):
            return option[3:]
    raise _WrongError(f"no option carries the letter {question.answer!r}")


def _choices(question: Question, kind: str, names: dict[str, str]) -> tuple[str, ...]:
    """The answers to choose from, in the order named; they must be the question's options."""
    if kind in VSI_WORDING:
        return tuple(option[3:] for option in question.options)
    if kind == "contact":
        choices: tuple[str, ...] = ("yes", "no")
    elif "p" in names:
        choices = (names["p"], names["q"])
    else:
        choices = tuple(names[key] for key in sorted(names))[-2:]
    if question.options != choices:
        raise _WrongError(f"the sentence names {choices}, the options are {question.options}")
    return choices


def _indices(facts: RoomFacts, kind: str, names: dict[str, str]) -> list[int]:
    """The objects named: a to c, then those of a list."""
    if kind == "object_counting":
        return [i for i, thing in enumerate(facts.things) if thing.category == names["a"]]
    said = [names[key] for key in sorted(names) if key in "abc"]
    said += names["choices"].split(", ") if "choices" in names else []
    place = {thing.name: i for i, thing in enumerate(facts.things)}
    missing = [name for name in said if name not in place]
    if missing:
        raise _WrongError(f"the room has no {missing[0]!r}")
    return [place[name] for name in said]


Ruled = tuple[str, float | None]


def _proximity(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Ruled:
    away = facts.distance[ids[0], ids[1:]]
    near, second = np.sort(away)[:2]
    _clear(second / near, PROXIMITY_RATIO)
    return facts.things[ids[1:][int(away.argmin())]].name, float(second / near)


def _contact(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Ruled:
    a, b = ids
    gap = float(facts.distance[a, b])
    if facts.touching[a, b]:
        return "yes", CONTACT_GAP_M - gap
    _clear(gap, CONTACT_GAP_M)
    if not facts.gap_seen[a, b]:
        raise _WrongError("no view shows the gap")
    return "no", gap


def _size(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Ruled:
    volumes = facts.volume[ids]
    ratio = float(volumes.max() / volumes.min())
    _clear(ratio, SIZE_RATIO)
    return facts.things[ids[int(volumes.argmax())]].name, ratio


def _left_right(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Ruled:
    turn = float(facts.bearing_deg[ids[0]] - facts.bearing_deg[ids[1]])
    _clear(abs(turn), BEARING_DEG)
    return "right" if turn > 0 else "left", abs(turn)


def _front_behind(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Ruled:
    ahead = float(facts.center[ids[0], 1] - facts.center[ids[1], 1])
    _clear(abs(ahead), AHEAD_M)
    return "behind" if ahead > 0 else "in front", abs(ahead)


def _clear(margin: float, least: float) -> None:
    if margin < least - _SLACK:
        raise _WrongError(f"the margin is {margin:.3f}, at least {least} is required")


def _direction(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Ruled:
    turn = turn_deg(*(facts.center[i, :2] for i in ids))
    return direction_said(turn, choices), None


def _route(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Ruled:
    start, corner, goal = (facts.center[i, :2] for i in ids)
    said = turn_said(turn_deg(corner, 2 * corner - start, goal))
    return said or "no clear turn", None


def _order(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Ruled:
    first = first_views(facts)
    if any(i not in first for i in ids) or len({first[i] for i in ids}) < len(ids):
        raise _WrongError("two things come into view at once, or one only in part at first")
    return ", ".join(facts.things[i].name for i in sorted(ids, key=lambda i: first[i])), None


def _number_of(
    value: Callable[[RoomFacts, list[int]], float], decimals: int
) -> Callable[..., Ruled]:
    def rule(facts: RoomFacts, ids: list[int], choices: tuple[str, ...]) -> Ruled:
        return f"{value(facts, ids):.{decimals}f}", None

    return rule


def _area(facts: RoomFacts, ids: list[int]) -> float:
    if facts.scene.room_size is None:
        raise _WrongError("the room's size is unknown")
    return float(np.prod(facts.scene.room_size[:2]))


_RULES: dict[str, Callable[[RoomFacts, list[int], tuple[str, ...]], Ruled]] = {
    "proximity": _proximity,
    "contact": _contact,
    "size": _size,
    "left_right": _left_right,
    "front_behind": _front_behind,
    "object_rel_direction_easy": _direction,
    "object_rel_direction_medium": _direction,
    "object_rel_direction_hard": _direction,
    "object_rel_distance": _proximity,
    "obj_appearance_order": _order,
    "route_planning": _route,
    "object_abs_distance": _number_of(lambda facts, ids: float(facts.distance[ids[0], ids[1]]), 1),
    "object_counting": _number_of(lambda facts, ids: float(len(ids)), 0),
    "object_size_estimation": _number_of(
        lambda facts, ids: 100.0 * float(facts.things[ids[0]].box.size.max()), 0
    ),
    "room_size_estimation": _number_of(_area, 1),
}


def _check_rationale(facts: RoomFacts, question: Question) -> None:
    if not question.rationale.endswith(f"So the answer is {question.answer}."):
        raise _WrongError("the rationale concludes something else than the answer")
    place = {thing.name: i for i, thing in enumerate(facts.things)}
    for name, *said in _PLACE.findall(question.rationale):
        if name not in place:
            raise _WrongError(f"the rationale speaks of {name!r}, which the room has not")
        off = np.abs(facts.center[place[name]] - np.array(said, dtype=np.float64)).max()
        if off > _PLACE_SLACK_M:
            raise _WrongError(f"the rationale puts the {name} {off:.2f} m off its place")


def _check_description(facts: RoomFacts, question: Question) -> None:
    for text in (question.answer, *question.renderings):
        count = len(text.split())
        if not LEAST_WORDS <= count <= MOST_WORDS:
            raise _WrongError(f"a rendering has {count} words, not {LEAST_WORDS} to {MOST_WORDS}")
        if facts_of(text) != set(question.facts):
            raise _WrongError(f"a rendering does not say the stored facts: {text!r}")
    place = {thing.name: i for i, thing in enumerate(facts.things)}
    for fact in question.facts:
        unknown = [name for name in fact[1:] if name not in place]
        if unknown or not _true(facts, fact[0], [place[name] for name in fact[1:]]):
            raise _WrongError(f"not so in the room: {' '.join(fact)}")


def _true(facts: RoomFacts, kind: str, ids: list[int]) -> bool:
    a, b = ids[0], ids[-1]
    match kind:
        case "object":
            return a in facts.shown
        case "on":
            return facts.things[a].supported_by == facts.things[b].object_id
        case "left of":
            return bool(facts.bearing_deg[b] - facts.bearing_deg[a] >= BEARING_DEG - _SLACK)
        case "in front of":
            return bool(facts.center[b, 1] - facts.center[a, 1] >= AHEAD_M - _SLACK)
        case "bigger than":
            return bool(facts.volume[a] >= SIZE_RATIO * facts.volume[b] - _SLACK)
    return False
