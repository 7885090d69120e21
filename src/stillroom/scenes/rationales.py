"""Why an answer is right, in three short sentences: locate, relate, conclude.

Numbers are rounded metres in ``view0`` (``docs/conventions.md``), so that each can be checked.
"""

from __future__ import annotations

from stillroom.scenes.balance import Candidate
from stillroom.scenes.facts import RoomFacts
from stillroom.scenes.wording import listed


def rationale(facts: RoomFacts, candidate: Candidate, answer: str) -> str:
    """The three sentences for a question made from ``candidate``."""
    relation = _relation(facts, candidate)
    located = [f"the {facts.things[i].name} at {_place(facts, i)}" for i in candidate.ids]
    where = f"I find {listed(located)}. " if located else ""
    return f"{where}{relation}. So the answer is {answer}."


def _place(facts: RoomFacts, i: int) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    x, y, z = (round(float(v), 1) + 0.0 for v in facts.center[i])
    return f"({x:.1f}, {y:.1f}, {z:.1f})"


def _relation(facts: RoomFacts, candidate: Candidate) -> str:
    ids, names = candidate.ids, [facts.things[i].name for i in candidate.ids]
    match candidate.task:
        case "proximity" | "object_rel_distance":
            gaps = facts.distance[ids[0], list(ids[1:])]
            away = [f"{gap:.1f} m to the {name}" for gap, name in zip(gaps, names[1:])]
            return f"From the {names[0]} it is {listed(away)}"
        case "contact":
            touch = "Their surfaces touch"
            return touch if candidate.answer == 0 else f"The gap is {candidate.value:.1f} m"
        case "size":
            litres = [f"the {n} fills {1000 * facts.volume[i]:.0f} l" for i, n in zip(ids, names)]
            return _sentence(listed(litres))
        case "left_right":
            seen = [f"the {n} at {facts.bearing_deg[i]:.0f}" for i, n in zip(ids, names)]
            return f"In degrees to the right, I see {listed(seen)}"
        case "front_behind":
            ahead = [f"the {n} is {facts.center[i, 1]:.1f} m" for i, n in zip(ids, names)]
            return _sentence(f"{listed(ahead)} ahead")
        case "object_abs_distance":
            return f"Between their surfaces are {candidate.value:.1f} m"
        case "object_counting":
            return f"I count {len(ids)}"
        case "object_size_estimation":
            return f"Its longest edge is {candidate.value:.0f} cm"
        case "room_size_estimation":
            assert facts.scene.room_size is not None
            width, depth = facts.scene.room_size[:2]
            return f"The room is {width:.1f} m by {depth:.1f} m"
        case "obj_appearance_order":
            return f"They come in the order {candidate.said[candidate.answer]}"
        case _:
            side = "left" if candidate.value > 0 else "right"
            return f"The {names[-1]} is {abs(candidate.value):.0f} degrees to the {side}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
