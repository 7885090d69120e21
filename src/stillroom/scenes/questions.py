"""Questions about a made room, with answers computed from its geometry.

``ask_room`` is the way in. What may be asked is decided by margins (``families.py``, ``vsi.py``)
and by balance (``balance.py``); the words are in ``wording.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest

import numpy as np

from stillroom.records import FAMILIES, BadInputError, Question, Scene, content_hash
from stillroom.scenes import families, vsi
from stillroom.scenes.balance import Balance, Candidate, shipped_balance, thin
from stillroom.scenes.descriptions import describe
from stillroom.scenes.facts import RoomFacts
from stillroom.scenes.rationales import rationale
from stillroom.scenes.wording import (
    VSI_CHOICE_TASKS,
    VSI_WORDING,
    lettered,
    phrase,
)

#: Every room carries so many questions of each family.
LEAST_OF_EACH = 3
#: Three of each family and one description.
LEAST_QUESTIONS = LEAST_OF_EACH * len(FAMILIES) + 1
#: Share of all questions that the four families take together.
_FAMILY_SHARE = 0.66

_UNITS = {
    "proximity": "ratio",
    "contact": "m",
    "size": "ratio",
    "left_right": "deg",
    "front_behind": "m",
    "object_rel_distance": "m",
    "object_abs_distance": "m",
    "object_counting": "count",
    "object_size_estimation": "cm",
    "room_size_estimation": "m2",
    "obj_appearance_order": "views",
}


def ask_room(scene: Scene, *, count: int, rng: np.random.Generator) -> list[Question] | None:
    """``count`` questions about a made room; None if it cannot carry them (draw another room).

    At least three of each family, one description, the rest spread over the families and the
    tasks of VSI-Bench. Split ``shifted`` speaks in the held-out phrasings.

    Raises:
        BadInputError: ``count`` is less than a room must carry.
    """
    if count < LEAST_QUESTIONS:
        raise BadInputError(
            f"a room carries at least {LEAST_QUESTIONS} questions (three of each family and a "
            f"description), got {count}; ask for more"
        )
    from stillroom.scenes.physics import surface_distances

    facts = RoomFacts(scene=scene, distance=surface_distances(scene.objects))
    return ask_facts(facts, count=count, balance=shipped_balance(), rng=rng)


def ask_facts(
    facts: RoomFacts, *, count: int, balance: Balance, rng: np.random.Generator
) -> list[Question] | None:
    """As ``ask_room``, with the distances and the balance given."""
    scene = facts.scene
    description = describe(facts)
    if description is None:
        return None
    density = density_of(scene)
    pools = {}
    for family in FAMILIES:
        candidates = families.MAKERS[family](facts, rng=rng)
        pools[family] = _different(thin(candidates, balance, density, rng=rng))
        if len(pools[family]) < LEAST_OF_EACH:
            return None
    pools["contact"] = _evenly(pools["contact"], rng)
    wanted = _shares(count, {family: len(pool) for family, pool in pools.items()})
    chosen = [c for family in FAMILIES for c in pools[family][: wanted[family]]]
    others = _draw_vsi(facts, count - 1 - len(chosen), balance=balance, rng=rng)
    spare = [c for family in FAMILIES for c in pools[family][wanted[family] :]]
    chosen += others
    # Where the tasks of VSI-Bench do not fill the room, the families do.
    missing = count - 1 - len(chosen)
    if missing > len(spare):
        return None
    chosen += [spare[i] for i in rng.permutation(len(spare))[:missing]]
    questions = [_question(facts, c, index, rng) for index, c in enumerate(chosen)]
    words = phrase("description", {}, split=scene.split, rng=rng)
    questions.append(
        Question(
            scene_id=scene.scene_id,
            question_id=question_id(scene.scene_id, "description", words, len(questions)),
            split=scene.split,
            family="description",
            question=words,
            answer=description.renderings[0],
            renderings=description.renderings,
            facts=description.facts,
            object_ids=tuple(facts.things[i].object_id for i in description.ids),
            rationale="",
        )
    )
    return questions


def density_of(scene: Scene) -> str:
    """Which table of balance a room goes by: "made:furnished" is "furnished"."""
    return scene.source.rpartition(":")[2]


def question_id(scene_id: str, family: str, question: str, index: int) -> str:
    """The content hash that names a question."""
    return content_hash([scene_id, family, question, str(index)])


def sample_texts(questions: Iterable[Question]) -> Iterator[str]:
    """Everything a language model reads or writes about the questions, for the tokenizer."""
    for question in questions:
        yield question.prompt
        yield question.answer
        yield from question.renderings[1:]
        if question.rationale:
            yield question.rationale


def _different(candidates: list[Candidate]) -> list[Candidate]:
    """One candidate for each task and set of objects, the first."""
    seen: set[tuple[str, frozenset[int]]] = set()
    kept = []
    for candidate in candidates:
        key = (candidate.task, frozenset(candidate.ids))
        if key not in seen:
            seen.add(key)
            kept.append(candidate)
    return kept


def _evenly(candidates: list[Candidate], rng: np.random.Generator) -> list[Candidate]:
    """Pairs that touch and pairs that do not in turn, as many of one as of the other.

    Few pairs of a room touch: a room asked for more would be asked about the others only. What a
    room carries at least stays, whichever it is.
    """
    touching = [c for c in candidates if c.answer == 0]
    apart = [c for c in candidates if c.answer != 0]
    first, second = (touching, apart) if rng.random() < 0.5 else (apart, touching)
    turns = [c for pair in zip_longest(first, second) for c in pair if c is not None]
    return turns[: max(2 * min(len(first), len(second)), LEAST_OF_EACH)]


def _shares(count: int, have: dict[str, int]) -> dict[str, int]:
    """How many of each family: two thirds of ``count`` in equal parts, as far as there are."""
    fair = max(LEAST_OF_EACH, round(_FAMILY_SHARE * count / len(have)))
    return {family: min(fair, number) for family, number in have.items()}


def _draw_vsi(
    facts: RoomFacts, wanted: int, *, balance: Balance, rng: np.random.Generator
) -> list[Candidate]:
    """Up to ``wanted`` candidates: every task once in random order, then again."""
    density = density_of(facts.scene)
    pools: list[list[Candidate]] = []
    tasks = list(vsi.MAKERS)
    for i in rng.permutation(len(tasks)).tolist():
        if sum(bool(pool) for pool in pools) >= wanted:
            break
        made = vsi.MAKERS[tasks[i]](facts, rng=rng)
        pools.append(_different(thin(made, balance, density, rng=rng)))
    deepest = max((len(pool) for pool in pools), default=0)
    rounds = [pool[depth] for depth in range(deepest) for pool in pools if depth < len(pool)]
    return rounds[:wanted]


def _question(
    facts: RoomFacts, candidate: Candidate, index: int, rng: np.random.Generator
) -> Question:
    scene = facts.scene
    family = _family(candidate.task)
    words, options, answer = _spoken(facts, candidate, rng)
    number = _number(candidate)
    return Question(
        scene_id=scene.scene_id,
        question_id=question_id(scene.scene_id, family, words, index),
        split=scene.split,
        family=family,
        question=words,
        answer=answer,
        options=options,
        value=number,
        unit=_UNITS.get(candidate.task, "deg"),
        margin=candidate.margin if options else None,
        rationale=rationale(facts, candidate, answer),
        object_ids=tuple(facts.things[i].object_id for i in candidate.ids),
    )


def _family(task: str) -> str:
    return "orientation" if task in ("left_right", "front_behind") else task


def _number(candidate: Candidate) -> float:
    """A number question's value is what its answer says; others keep the exact quantity."""
    return float(_rounded(candidate)) if len(candidate.keys) == 1 else candidate.value


def _rounded(candidate: Candidate) -> str:
    whole = candidate.task in ("object_counting", "object_size_estimation")
    return f"{candidate.value:.0f}" if whole else f"{candidate.value:.1f}"


def _spoken(
    facts: RoomFacts, candidate: Candidate, rng: np.random.Generator
) -> tuple[str, tuple[str, ...], str]:
    """(question, options, answer) of a candidate."""
    names = {letter: facts.things[i].name for letter, i in zip("abcde", candidate.ids)}
    if candidate.task in VSI_WORDING:
        return _spoken_vsi(facts, candidate, names, rng)
    if candidate.task == "contact":
        options: tuple[str, ...] = ("yes", "no")
        answer = options[min(candidate.answer, 1)]
    else:
        options = candidate.said or tuple(list(names.values())[-2:])
        answer = options[candidate.answer]
        names |= dict(zip("pq", candidate.said))
    words = phrase(candidate.task, names, split=facts.scene.split, rng=rng)
    return words, options, answer


def _spoken_vsi(
    facts: RoomFacts, candidate: Candidate, names: dict[str, str], rng: np.random.Generator
) -> tuple[str, tuple[str, ...], str]:
    template = VSI_WORDING[candidate.task]
    if candidate.task == "object_counting":
        names = {"a": facts.things[candidate.ids[0]].category}
    said = [facts.things[i].name for i in candidate.ids]
    if candidate.task == "object_rel_distance":
        said = said[1:]
    words = template.format(**names, choices=", ".join(said))
    if candidate.task not in VSI_CHOICE_TASKS:
        return words, (), _rounded(candidate)
    order = rng.permutation(len(candidate.said)).tolist()
    letter = chr(ord("A") + order.index(candidate.answer))
    return words, lettered([candidate.said[i] for i in order]), letter
