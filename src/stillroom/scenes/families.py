"""The paper's four families: every case that a room's geometry decides by a clear margin.

Margins are fixed (``docs/world.md``). A function gives candidates in random order, each naming
its objects in random order; which of them are asked is settled in ``balance.py``.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from stillroom.scenes.balance import Candidate
from stillroom.scenes.facts import RoomFacts

#: The farther object is at least this many times as far as the nearer one.
PROXIMITY_RATIO = 1.3
#: Nearer things than this count as touching or nearly so, where a ratio says nothing (metres).
PROXIMITY_LEAST_M = 0.05
#: Objects that do not touch are at least this far apart (metres).
CONTACT_GAP_M = 0.10
#: Half of the pairs that do not touch are nearer than this (metres).
CONTACT_NEAR_M = 0.60
SIZE_RATIO = 1.25
BEARING_DEG = 10.0
AHEAD_M = 0.30
#: Centres this far before the first camera lie "before" it (metres along y of view0).
BEFORE_M = 0.10

# Of all triples of a furnished room more than enough are looked at.
_MOST_TRIPLES = 600

#: Shares wanted of contact's three cases: touching, near, far. Rooms that can carry three
#: questions touch more than others; with these, half of what is asked touches.
CONTACT_TARGETS = (0.47, 0.26, 0.27)


def proximity(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """A, then B and C of which one is clearly closer to A, surface to surface."""
    found = []
    for a, b, c in _triples(facts.shown, rng):
        near, far = sorted((facts.distance[a, b], facts.distance[a, c]))
        if near < PROXIMITY_LEAST_M or far < PROXIMITY_RATIO * near:
            continue
        to, one, other = (facts.things[i].category for i in (a, b, c))
        found.append(
            Candidate(
                task="proximity",
                ids=(a, b, c),
                answer=0 if facts.distance[a, b] < facts.distance[a, c] else 1,
                keys=((f"{to}|{one}", one), (f"{to}|{other}", other)),
                value=float(far / near),
                margin=float(far / near),
            )
        )
    return found


def _triples(shown: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """(A, B, C) without repeats, B and C in random order, at most ``_MOST_TRIPLES``."""
    pairs = list(combinations(shown.tolist(), 2))
    triples = [(a, b, c) for a in shown.tolist() for b, c in pairs if a not in (b, c)]
    chosen = rng.permutation(len(triples))[:_MOST_TRIPLES]
    flips = rng.random(len(chosen)) < 0.5
    return [
        (a, c, b) if flip else (a, b, c)
        for (a, b, c), flip in zip((triples[i] for i in chosen), flips)
    ]


def _pairs(shown: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """All pairs in random order, each in random order."""
    pairs = list(combinations(shown.tolist(), 2))
    flips = rng.random(len(pairs)) < 0.5
    return [
        pairs[i][::-1] if flip else pairs[i] for i, flip in zip(rng.permutation(len(pairs)), flips)
    ]


def contact(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """Pairs that touch, and pairs apart with a gap that a view shows; answers yes, no."""
    found = []
    for a, b in _pairs(facts.shown, rng):
        gap = float(facts.distance[a, b])
        touching = bool(facts.touching[a, b])
        if touching and not facts.together[a, b]:
            continue
        if not touching and (gap < CONTACT_GAP_M or not facts.gap_seen[a, b]):
            continue
        kinds = sorted((facts.things[a].category, facts.things[b].category))
        found.append(
            Candidate(
                task="contact",
                ids=(a, b),
                answer=0 if touching else 1 if gap <= CONTACT_NEAR_M else 2,
                keys=(_case("yes", kinds), _case("near", kinds), ()),
                value=gap,
                margin=CONTACT_GAP_M - gap if touching else gap,
                targets=CONTACT_TARGETS,
            )
        )
    return found


def _case(case: str, kinds: list[str]) -> tuple[str, ...]:
    """A weight for the case, one for each kind in it, one for the pair."""
    return (case, f"{case}|{kinds[0]}", f"{case}|{kinds[1]}", f"{case}|{kinds[0]}|{kinds[1]}")


def size(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """Pairs whose box volumes differ clearly; the answer is the bigger one."""
    found = []
    for a, b in _pairs(facts.bulky, rng):
        small, large = sorted((facts.volume[a], facts.volume[b]))
        if large < SIZE_RATIO * small:
            continue
        one, other = facts.things[a].category, facts.things[b].category
        found.append(
            Candidate(
                task="size",
                ids=(a, b),
                answer=0 if facts.volume[a] > facts.volume[b] else 1,
                keys=((f"{one}|{other}", one), (f"{other}|{one}", other)),
                value=float(large / small),
                margin=float(large / small),
            )
        )
    return found


def orientation(facts: RoomFacts, *, rng: np.random.Generator) -> list[Candidate]:
    """Pairs before the first camera, clearly left/right of or in front of/behind each other."""
    before = facts.bulky[facts.center[facts.bulky, 1] >= BEFORE_M]
    found = []
    for a, b in _pairs(before, rng):
        turn = float(facts.bearing_deg[b] - facts.bearing_deg[a])
        ahead = float(facts.center[b, 1] - facts.center[a, 1])
        if abs(turn) >= BEARING_DEG:
            found.append(_side(facts, "left_right", (a, b), turn, ("left", "right"), rng))
        if abs(ahead) >= AHEAD_M:
            found.append(_side(facts, "front_behind", (a, b), ahead, ("in front", "behind"), rng))
    return [found[i] for i in rng.permutation(len(found))]


def _side(
    facts: RoomFacts,
    task: str,
    pair: tuple[int, int],
    lead: float,
    sides: tuple[str, str],
    rng: np.random.Generator,
) -> Candidate:
    """``lead`` > 0: the first named is on the first side. The sides are said in random order."""
    # Rooms have no left and right of their own, so names tell nothing of it.
    kinds = [facts.things[i].category for i in pair]
    keys = ((kinds[0],), (kinds[1],)) if task == "front_behind" else ((), ())
    truth = 0 if lead > 0 else 1
    if rng.random() < 0.5:
        sides, keys, truth = sides[::-1], keys[::-1], 1 - truth
    return Candidate(
        task=task, ids=pair, answer=truth, keys=keys, value=lead, margin=abs(lead), said=sides
    )


MAKERS = {"proximity": proximity, "contact": contact, "size": size, "orientation": orientation}
