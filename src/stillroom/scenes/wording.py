"""The words of questions: short templates, several a family, and a set kept for the last test."""

from __future__ import annotations

import re

import numpy as np

from stillroom.records import Split

#: What each family asks, "{a}" being the first object named. Answers stand in the sentence.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "proximity": (
        "Which is closer to the {a}: the {b} or the {c}?",
        "Is the {b} or the {c} closer to the {a}?",
        "What is nearer to the {a}, the {b} or the {c}?",
    ),
    "contact": (
        "Are the {a} and the {b} touching?",
        "Does the {a} touch the {b}?",
        "Is the {a} in contact with the {b}?",
    ),
    "size": (
        "Which is bigger, the {a} or the {b}?",
        "Is the {a} or the {b} bigger?",
        "Which is larger: the {a} or the {b}?",
    ),
    "left_right": (
        "Seen from the first photo, is the {a} {p} or {q} of the {b}?",
        "In the first photo's view, is the {a} {p} or {q} of the {b}?",
        "From the first photo, is the {a} to the {p} or the {q} of the {b}?",
    ),
    "front_behind": (
        "Seen from the first photo, is the {a} {p} or {q} the {b}?",
        "In the first photo's view, is the {a} {p} or {q} the {b}?",
        "From the first photo, does the {a} stand {p} or {q} the {b}?",
    ),
    "description": ("Describe the room.", "What is in this room?", "Describe what you see."),
}

#: Never used for training: only split ``shifted`` and the tests of phrasing speak so.
HELD_OUT: dict[str, tuple[str, ...]] = {
    "proximity": (
        "Of the {b} and the {c}, which one is nearest the {a}?",
        "Which has the shorter distance to the {a}: the {b} or the {c}?",
    ),
    "contact": (
        "Do the {a} and the {b} touch each other?",
        "Is there contact between the {a} and the {b}?",
    ),
    "size": (
        "Of the {a} and the {b}, which one is the bigger?",
        "Which takes up more space: the {a} or the {b}?",
    ),
    "left_right": (
        "Looking from where the first photo was taken, is the {a} {p} or {q} of the {b}?",
    ),
    "front_behind": (
        "Looking from where the first photo was taken, is the {a} {p} or {q} the {b}?",
    ),
    "description": ("Tell me what this room looks like.",),
}

# How the answers of a front_behind question stand inside the sentence.
_IN_SENTENCE = {"in front": "in front of"}
_SIDES = "left|right|in front of|behind"

#: VSI-Bench's own sentences under its own task names.
VSI_WORDING = {
    "object_rel_direction_easy": (
        "If I am standing by the {a} and facing the {b}, is the {c} to the left or the right of "
        "the {b}?"
    ),
    "object_rel_direction_medium": (
        "If I am standing by the {a} and facing the {b}, is the {c} to my left, right, or back? "
        "An object is to my back if I would have to turn at least 135 degrees in order to face it."
    ),
    "object_rel_direction_hard": (
        "If I am standing by the {a} and facing the {b}, is the {c} to my front-left, front-right, "
        "back-left, or back-right? The directions refer to the quadrants of a Cartesian plane (if "
        "I am standing at the origin and facing along the positive y-axis)."
    ),
    "object_rel_distance": (
        "Measuring from the closest point of each object, which of these objects ({choices}) is "
        "the closest to the {a}? If there are multiple instances of an object category, measure to "
        "the closest."
    ),
    "object_abs_distance": (
        "Measuring from the closest point of each object, what is the distance between the {a} "
        "and the {b} (in meters)?"
    ),
    "object_counting": "How many {a}(s) are in this room?",
    "object_size_estimation": (
        "What is the length of the longest dimension (length, width, or height) of the {a}, "
        "measured in centimeters?"
    ),
    "room_size_estimation": (
        "What is the size of this room (in square meters)? If multiple rooms are shown, estimate "
        "the size of the combined space."
    ),
    "obj_appearance_order": (
        "What will be the first-time appearance order of the following categories in the video: "
        "{choices}?"
    ),
    "route_planning": (
        "You are a robot beginning at the {a} and facing the {b}. You want to navigate to the {c}. "
        "You will perform the following actions (Note: for each [please fill in], choose either "
        "'turn back,' 'turn left,' or 'turn right.'): 1. Go forward until the {b} 2. [please fill "
        "in] 3. Go forward until the {c}. You have reached the final destination."
    ),
}
#: Tasks of VSI-Bench answered by a letter, and by a number.
VSI_CHOICE_TASKS = (
    "object_rel_direction_easy",
    "object_rel_direction_medium",
    "object_rel_direction_hard",
    "object_rel_distance",
    "obj_appearance_order",
    "route_planning",
)
VSI_NUMBER_TASKS = (
    "object_abs_distance",
    "object_counting",
    "object_size_estimation",
    "room_size_estimation",
)


def phrase(kind: str, names: dict[str, str], *, split: Split, rng: np.random.Generator) -> str:
    """A sentence of that kind with the names put in; ``shifted`` draws from the held-out set."""
    templates = (HELD_OUT if split == "shifted" else PHRASINGS)[kind]
    inside = {key: _IN_SENTENCE.get(name, name) for key, name in names.items()}
    return templates[int(rng.integers(len(templates)))].format(**inside)


def named(kind: str, question: str, *, split: Split | None = None) -> dict[str, str] | None:
    """The names that a question of that kind was made with; None if no template of it fits.

    With ``split`` only the templates that are spoken there count.
    """
    spoken = () if split == "shifted" else PHRASINGS.get(kind, ())
    held_out = HELD_OUT.get(kind, ()) if split in (None, "shifted") else ()
    for template in spoken + held_out:
        pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
        match = re.fullmatch(_groups(pattern), question)
        if match is not None:
            outside = {said: answer for answer, said in _IN_SENTENCE.items()}
            return {key: outside.get(name, name) for key, name in match.groupdict().items()}
    return None


def named_in_vsi(task: str, question: str) -> dict[str, str] | None:
    """The names in a question of that VSI-Bench task; None if it is not its sentence."""
    pattern = re.escape(VSI_WORDING[task]).replace(r"\{", "{").replace(r"\}", "}")
    match = re.fullmatch(_groups(pattern), question)
    return None if match is None else match.groupdict()


def _groups(pattern: str) -> str:
    """``{a}`` becomes a named group the first time and a reference to it after that."""
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        key = match[1]
        if key in seen:
            return f"(?P={key})"
        seen.add(key)
        return f"(?P<{key}>{_SIDES if key in 'pq' else '[a-z ,-]+?'})"

    return re.sub(r"\{(\w+)\}", group, pattern)


def lettered(options: list[str]) -> tuple[str, ...]:
    """Options as VSI-Bench prints them: "A. left", "B. right"."""
    return tuple(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))


def article(name: str) -> str:
    """The name with "a" or "an" before it."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def listed(items: list[str]) -> str:
    """ "x, y and z"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
