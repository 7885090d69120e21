"""Descriptions of a room in 30 to 60 words, the facts they state, and reading facts back.

What is said follows from the room alone: the things seen well, from left to right in the first
photo, then what stands on what, then the outermost pairs. Every rendering says the same facts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from stillroom.scenes.facts import RoomFacts
from stillroom.scenes.families import AHEAD_M, BEARING_DEG, BEFORE_M, SIZE_RATIO
from stillroom.scenes.wording import article, listed

Fact = tuple[str, ...]

LEAST_WORDS = 30
MOST_WORDS = 60
MOST_OBJECTS = 8

#: How each rendering says each relation, and opens and closes its list of things.
_STYLES: tuple[dict[str, str], ...] = (
    {
        "list": "The room has {}.",
        "on": "The {} is on the {}.",
        "left of": "The {} is left of the {}.",
        "in front of": "The {} is in front of the {}.",
        "bigger than": "The {} is bigger than the {}.",
    },
    {
        "list": "There is {} in the room.",
        "on": "The {} stands on the {}.",
        "left of": "The {} is to the left of the {}.",
        "in front of": "The {} stands in front of the {}.",
        "bigger than": "The {} is larger than the {}.",
    },
    {
        "list": "I see {}.",
        "on": "On top of the {1} is the {0}.",
        "left of": "Left of the {1} is the {0}.",
        "in front of": "In front of the {1} is the {0}.",
        "bigger than": "Bigger than the {1} is the {0}.",
    },
)
_NAME = r"[a-z][a-z -]*?"


@dataclass(frozen=True, kw_only=True)
class Description:
    """One set of facts and its renderings; the first is the one to learn."""

    facts: tuple[Fact, ...]
    renderings: tuple[str, ...]
    ids: tuple[int, ...]


def describe(facts: RoomFacts) -> Description | None:
    """The description of a room; None if it cannot be said in 30 to 60 words."""
    ids = _listed_things(facts)
    relations = _relations(facts, ids)
    while len(ids) >= 2:
        objects: list[Fact] = [("object", facts.things[i].name) for i in ids]
        said = _fit(objects, [r for r in relations if _about(r, objects)])
        if said is not None:
            texts = tuple(_render(said, style) for style in range(len(_STYLES)))
            return Description(facts=tuple(said), renderings=texts, ids=tuple(ids))
        # Too long already: leave out the least seen.
        ids.remove(min(ids, key=lambda i: float(facts.pixel_share[:, i].sum())))
    return None


def facts_of(text: str) -> set[Fact]:
    """Facts that a text in our wording states; whatever else it says is passed over."""
    found: set[Fact] = set()
    for sentence in re.split(r"[.\n]+", text.lower()):
        sentence = " ".join(sentence.split())
        for pattern, kind, swapped in _patterns():
            match = re.fullmatch(pattern, sentence)
            if match is None:
                continue
            if kind == "list":
                found |= {("object", name) for name in _names(match[1])}
            else:
                first, second = match.groups()
                found.add((kind, second, first) if swapped else (kind, first, second))
            break
    return found


def _listed_things(facts: RoomFacts) -> list[int]:
    """The things seen best, at most ``MOST_OBJECTS``, from left to right before the camera."""
    shown = facts.shown.tolist()
    seen = facts.pixel_share.sum(axis=0)
    best = sorted(shown, key=lambda i: (-seen[i], i))[:MOST_OBJECTS]
    return sorted(best, key=lambda i: (float(facts.bearing_deg[i]), i))


def _relations(facts: RoomFacts, ids: list[int]) -> list[Fact]:
    """What stands on what in list order, then the outermost pairs that differ clearly."""
    by_id = {facts.things[i].object_id: i for i in ids}
    name = {i: facts.things[i].name for i in ids}
    found: list[Fact] = []
    for i in ids:
        carrier = by_id.get(facts.things[i].supported_by or 0)
        if carrier is not None:
            found.append(("on", name[i], name[carrier]))
    bulky = [i for i in ids if i in facts.bulky]
    before = [i for i in bulky if facts.center[i, 1] >= BEFORE_M]
    rules: tuple[tuple[str, list[int], Callable[[int], float], Callable[[float, float], bool]], ...]
    rules = (
        ("left of", before, lambda i: float(facts.bearing_deg[i]), _apart_by(BEARING_DEG)),
        ("in front of", before, lambda i: float(facts.center[i, 1]), _apart_by(AHEAD_M)),
        ("bigger than", bulky, lambda i: -float(facts.volume[i]), _times(SIZE_RATIO)),
    )
    for kind, among, key, clear in rules:
        order = sorted(among, key=key)
        if len(order) > 1 and clear(key(order[0]), key(order[-1])):
            found.append((kind, name[order[0]], name[order[-1]]))
    return list(dict.fromkeys(found))


def _apart_by(least: float) -> Callable[[float, float], bool]:
    return lambda low, high: high - low >= least


def _times(least: float) -> Callable[[float, float], bool]:
    return lambda low, high: low <= least * high


def _about(relation: Fact, objects: list[Fact]) -> bool:
    names = {fact[1] for fact in objects}
    return set(relation[1:]) <= names


def _fit(objects: list[Fact], relations: list[Fact]) -> list[Fact] | None:
    """The objects and as many relations, in order, as every rendering has room for."""
    said = list(objects)
    if _longest(said) > MOST_WORDS:
        return None
    for relation in relations:
        if _longest([*said, relation]) > MOST_WORDS:
            break
        said.append(relation)
    return said if _shortest(said) >= LEAST_WORDS else None


def _longest(said: list[Fact]) -> int:
    return max(len(_render(said, style).split()) for style in range(len(_STYLES)))


def _shortest(said: list[Fact]) -> int:
    return min(len(_render(said, style).split()) for style in range(len(_STYLES)))


def _render(said: list[Fact], style: int) -> str:
    words = _STYLES[style]
    things = listed([article(fact[1]) for fact in said if fact[0] == "object"])
    sentences = [words["list"].format(things)]
    sentences += [words[fact[0]].format(*fact[1:]) for fact in said if fact[0] != "object"]
    return " ".join(sentences)


def _patterns() -> list[tuple[str, str, bool]]:
    """(regular expression over a lower-case sentence, kind of fact, names swapped)."""
    found = []
    for words in _STYLES:
        for kind, template in words.items():
            plain = template.lower().rstrip(".")
            if kind == "list":
                found.append((re.escape(plain).replace(r"\{\}", "(.+)"), kind, False))
            else:
                body = re.sub(r"\\\{[01]?\\\}", f"({_NAME})", re.escape(plain))
                found.append((body, kind, "{1}" in plain))
    # "is on the" also fits inside "is to the left of the": longer wordings are tried first.
    return sorted(found, key=lambda entry: -len(entry[0]))


def _names(things: str) -> list[str]:
    pieces = re.split(r",\s*(?:and\s+)?|\s+and\s+", things)
    return [re.sub(r"^(?:an?|the)\s+", "", piece.strip()) for piece in pieces if piece.strip()]
